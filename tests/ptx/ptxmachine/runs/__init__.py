"""Compiles tritongru's kernels without a GPU, runs them in the PTX machine and keeps what was found."""
