"""Convolution and matrix product as packed, register-blocked loops: what they compute and how they are scheduled."""
