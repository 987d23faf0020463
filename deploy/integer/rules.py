"""What a source format says about rounding: one object, so that no operator decides on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploy.errors import InputError

Rounding = Literal["single", "double"]
Float = np.float32
Scales = npt.NDArray[np.float64]
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Rules:
    """`rounding` chooses between TFLite's two implementations: `single` is LiteRT's reference kernels, `double` TFLite
    Micro and CMSIS-NN. Both round a scaled accumulator twice, but LiteRT's fully connected layer only once. They also
    compute some scales in different precisions, and logistic and tanh in float or in fixed point.

    The other formats scale accumulators in float32 and round a half to the even neighbour, like ONNX Runtime and torch.
    A real number becomes an integer by division in the former, by multiplication with 1 / scale in the latter.
    All scales are the source's float32 values. Raises InputError.
    """

    source_format: str
    rounding: Rounding = "single"

    def __post_init__(self) -> None:
        if self.source_format not in ("tflite", "onnx", "torch"):
            raise InputError(f"Source format '{self.source_format}' is not one of tflite, onnx, torch.")
        if self.rounding not in ("single", "double"):
            raise InputError(f"Rounding '{self.rounding}' is not one of single, double.")

    @property
    def fixed_point(self) -> bool:
        """Whether results are defined by integer arithmetic."""
        return self.source_format == "tflite"

    @property
    def micro(self) -> bool:
        """Whether TFLite Micro's conventions hold where they differ from LiteRT's."""
        return self.rounding == "double"

    @property
    def dense_rounds_once(self) -> bool:
        """Whether fully connected layers are scaled in floating point."""
        return self.fixed_point and not self.micro

    def inverse(self, scale: Any) -> Any:
        """What a real number is multiplied with to be quantized, or nothing where it is divided by the scale."""
        return Float(1 / np.float64(scale)) if self.source_format == "torch" else None

    def steps(self, real: Any, scale: Any) -> Any:
        """Real numbers in float32 in units of a scale, not rounded."""
        inverse = self.inverse(scale)
        return real / Float(scale) if inverse is None else real * inverse

    def linear(self, data: Any, weight: Scales, out: Any, in_float: bool) -> Scales:
        """Scales of an accumulator; `in_float` where TFLite multiplies the first two as float32."""
        if in_float:
            return (Float(data) * weight.astype(Float)).astype(np.float64) / np.float64(out)
        return np.float64(data) * weight / np.float64(out)

    def product(self, left: Any, right: Any, out: Any) -> float:
        """Scale of an element-wise product."""
        if self.micro or not self.fixed_point:
            return float(np.float64(left) * np.float64(right) / np.float64(out))
        return float(Float(left) * Float(right) / Float(out))

    def ratio(self, data: Any, out: Any, in_float: bool) -> float:
        """Scale of a value that only changes its quantization."""
        return float(Float(data) / Float(out)) if in_float else float(np.float64(data) / np.float64(out))

    def quantized(self, value: float, scale: Any, zero_point: int) -> int:
        """A real number in a quantization, not saturated; infinite ones are far outside every type."""
        if np.isinf(value):
            return -(2**31) if value < 0 else 2**31 - 1
        ratio = float(self.steps(Float(value), scale))
        away = np.copysign(np.floor(abs(ratio) + 0.5), ratio)
        return int(away if self.fixed_point else np.round(ratio)) + zero_point
