"""The stepwise kernels: one launch per time step, for recurrent weights that do not fit on the chip.

A program owns BH hidden units of BB batch rows in one direction: it streams its rows of W_hh, multiplies them with the
previous state, and then does the gate math. The end of a launch synchronizes the programs. Launches differ only in the
step, a plain number, so that a CUDA graph of them replays without the host.
"""
