"""Runs a program of a GPU on the CPU: all CTAs of a grid at once, with checks of memory, order and waiting.

`Machine` schedules groups of warps; `Group` is the `k` of the generated code, whose methods are in `instructions`.
An *agent* is a warp of the whole grid, by number: `cta * num_warps + warp`.
"""
