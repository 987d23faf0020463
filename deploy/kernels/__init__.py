"""Kernels: what they compute, how they are scheduled, and how they become plain C functions."""
