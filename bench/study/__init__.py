"""The study: GRU, LSTM and plain RNN on three tasks, how accurate each gets and how long its training takes."""
