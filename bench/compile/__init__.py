"""Kernels compiled without a GPU: the resulting machine code, and the launch tables made from it."""
