"""Small random ONNX networks between QuantizeLinear and DequantizeLinear, an operator at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from models.onnx_models import model, node, value

RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


class QdqNet:
    """Builds one network in NCHW; every operator's result is quantized, and is an output as integers."""

    def __init__(self, seed: int, dtype: str = "int8", per_channel: bool = True) -> None:
        self.rng, self.dtype, self.per_channel = np.random.default_rng(seed), dtype, per_channel
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: list[tuple[str, tuple[int, ...]]] = []
        self.outputs: list[tuple[str, tuple[int, ...]]] = []
        self.scales: dict[str, tuple[str, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def name(self, prefix: str) -> str:
        """A name not used yet."""
        return f"{prefix}{len(self.nodes) + len(self.constants) + len(self.inputs)}"

    def constant(self, data: Any, prefix: str = "k") -> str:
        """An initializer."""
        name = self.name(prefix)
        self.constants[name] = np.asarray(data)
        return name

    def scale(self, scale: float | None = None, zero_point: int | None = None) -> tuple[str, str]:
        """Names of a scale and a zero point for the whole tensor."""
        low, high = RANGES[self.dtype]
        if zero_point is None:
            zero_point = int(self.rng.integers(low // 2, high // 2))
        found = self.rng.uniform(0.01, 0.06) if scale is None else scale
        return self.constant(np.float32(found), "s"), self.constant(np.array(zero_point, self.dtype), "z")

    def input(self, *shape: int) -> str:
        """A quantized input of the network, dequantized; its float name."""
        name = self.name("x")
        self.inputs.append((name, shape))
        return self.dequantize(name, self.scale(), shape)

    def dequantize(self, name: str, scale: tuple[str, str], shape: tuple[int, ...]) -> str:
        """The float name of integers `name`."""
        real = self.name("d")
        self.nodes.append(node("DequantizeLinear", [name, *scale], [real]))
        self.scales[real], self.shapes[real] = scale, shape
        return real

    def op(
        self, op: str, inputs: list[str], shape: tuple[int, ...], scale: tuple[str, str] | None = None, then: Any = (),
        **attributes: Any,
    ) -> str:  # fmt: skip
        """One operator, those of `then` behind it, and the quantization; the float name of the result."""
        real = self.name("f")
        self.nodes.append(node(op, inputs, [real], **attributes))
        for activation, extra in then:
            self.nodes.append(node(activation, [real, *extra], [real + "a"]))
            real += "a"
        return self.quantize(real, shape, scale or self.scale())

    def quantize(self, real: str, shape: tuple[int, ...], scale: tuple[str, str]) -> str:
        """Float `real` quantized, as an output, and dequantized again."""
        name = self.name("q")
        self.nodes.append(node("QuantizeLinear", [real, *scale], [name]))
        self.outputs.append((name, shape))
        return self.dequantize(name, scale, shape)

    def weight(self, shape: tuple[int, ...], axis: int = 0) -> tuple[str, np.ndarray]:
        """The float name of int8 weights, and their scales."""
        size = shape[axis] if self.per_channel else 1
        scales = self.rng.uniform(0.001, 0.02, size).astype(np.float32)
        data = self.rng.integers(-127, 128, shape).astype(np.int8)
        stored = scales if self.per_channel else scales[0]
        parts = [
            self.constant(data, "w"),
            self.constant(stored, "s"),
            self.constant(np.zeros_like(stored, np.int8), "z"),
        ]
        real = self.name("d")
        attributes = {"axis": axis} if self.per_channel else {}
        self.nodes.append(node("DequantizeLinear", parts, [real], **attributes))
        return real, scales

    def bias(self, x: str, scales: np.ndarray, channels: int) -> str:
        """The float name of an int32 bias in the accumulator's unit."""
        unit = self.constants[self.scales[x][0]] * scales
        stored = unit if self.per_channel else unit[0]
        data = self.rng.integers(-2000, 2000, channels).astype(np.int32)
        parts = [
            self.constant(data, "b"),
            self.constant(stored, "s"),
            self.constant(np.zeros_like(stored, np.int32), "z"),
        ]
        real = self.name("d")
        self.nodes.append(node("DequantizeLinear", parts, [real], **({"axis": 0} if self.per_channel else {})))
        return real

    def conv(self, x: str, channels: int, size: int, groups: int = 1, then: Any = (), **attributes: Any) -> str:
        """A convolution that keeps height and width, unless `attributes` say otherwise."""
        batch, depth, height, width = self.shapes[x]
        w, scales = self.weight((channels, depth // groups, size, size))
        pads = attributes.pop("pads", [size // 2] * 4)
        stride = attributes.get("strides", [1, 1])[0]
        shape = (batch, channels, -(-height // stride), -(-width // stride))
        spread = float(self.constants[self.scales[x][0]]) * float(np.mean(scales)) * 4000 * size
        scale = self.scale(spread * np.sqrt(depth / groups) / 100)
        inputs = [x, w, self.bias(x, scales, channels)]
        return self.op("Conv", inputs, shape, scale, then, group=groups, pads=pads, **attributes)

    def pack(self) -> Any:
        """The model."""
        kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[self.dtype]
        inputs = [value(name, shape, kind) for name, shape in self.inputs]
        outputs = [value(name, shape, kind) for name, shape in self.outputs]
        return model(self.nodes, inputs, outputs, self.constants)

    def data(self, seed: int) -> list[np.ndarray]:
        """Inputs around the middle of the type."""
        rng, (low, high) = np.random.default_rng(seed), RANGES[self.dtype]
        found = [rng.normal((low + high) / 2, 40, shape) for _, shape in self.inputs]
        return [np.clip(np.round(values), low, high).astype(self.dtype) for values in found]
