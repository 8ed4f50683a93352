"""The persistent kernels: the whole time loop in one launch, the recurrent weights spread over many programs.

A program owns BH hidden units of the batch tiles it serves, in one direction, and keeps its slice of W_hh on chip. At
every step it collects the tile's states (backward: its gate gradients) from the programs that own the other units,
multiplies, and publishes its own. If there are more tiles than fit on the chip at once, a program serves several in
turn with the same weights: while one tile's values are in transit, it works on another.
"""
