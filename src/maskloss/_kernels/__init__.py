"""Kernels for GPUs: each an implementation of what _rows states, for the rows that it takes."""
