"""Kernels for CUDA devices, in Triton. Each is tested on CPUs, through Triton's interpreter.

Most modules of this package import triton as they are imported; nothing on a CPU's path does.
"""
