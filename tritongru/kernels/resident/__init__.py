"""The resident kernels: one program runs the whole time loop of BB batch rows in one direction.

W_hh is loaded once, before the loop, and the compiler keeps it in shared memory; the state stays in registers, and
the software pipeline (``STAGES``) prefetches what later steps need from memory.
"""
