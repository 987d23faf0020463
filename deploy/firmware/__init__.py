"""Firmware: linking images for bare metal, the harness that runs a model in one, and how large its parts are."""
