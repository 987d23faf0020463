"""Ahead-of-time compilation: kernels to objects, the call sequence to readable C, activations to one arena."""
