"""Timing kernels on the GPU of this machine: the operators that the GPU model prices, and the vendor's beside ours."""
