"""Quantized graphs in true integer arithmetic: between import and lowering, where the source model is quantized."""

from deploy.integer.rules import Rounding
from deploy.integer.transform import FloatOperator, IntegerModel, to_integer

__all__ = ["FloatOperator", "IntegerModel", "Rounding", "to_integer"]
