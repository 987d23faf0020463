"""Tuning: which kernels, which schedules of them, how candidates are built and timed, and what is remembered."""
