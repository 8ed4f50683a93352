"""The stepwise kernels: one launch a time step, for recurrent weights that the chip cannot hold.

A program owns BH hidden units of BB batch rows in one direction: it streams its rows of W_hh past the state of the
step before, and does the gate math where the product ends. The end of a launch is what the programs meet at. Launches
differ in the step alone, a plain number, so that a CUDA graph of them replays without the host.
"""
