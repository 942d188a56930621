"""Kernels for CUDA devices, in Triton. Each is tested on CPUs, through Triton's interpreter.

Importing a module of this package imports triton; nothing on a CPU's path does.
"""
