"""Tiny models, generated: every test makes the model it needs, nothing is downloaded."""
