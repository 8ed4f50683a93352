"""A machine for PTX: runs the kernels that Triton compiles on the CPU, all programs of a grid at once, with checks.

``code`` reads PTX and turns it into Python over NumPy, ``machine`` runs that, ``runs`` feeds it with launches.
"""
