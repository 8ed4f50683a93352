"""Kernels compiled without a GPU: what the compiler makes of them, and the tables of launches that come of it."""
