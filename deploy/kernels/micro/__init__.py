"""Kernels for microcontrollers: written around inner loops in assembly, for cores with DSP instructions or Helium."""
