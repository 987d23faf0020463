"""Small random quantized TFLite networks, an operator at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from models.tflite_models import TYPES, Builder, Builtin, options, pack

TYPES.setdefault("int16", schema.TensorType.INT16)
Activation = schema.ActivationFunctionType
ACTIVATIONS = (Activation.NONE, Activation.RELU, Activation.RELU6, Activation.RELU_N1_TO_1)
RANGES = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767)}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its index and what it holds."""

    index: int
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    dtype: str = "int8"


class Net:
    """Builds one network; scales, zero points, weights and shapes come from `seed`."""

    def __init__(self, seed: int, dtype: str = "int8") -> None:
        self.rng, self.b, self.dtype = np.random.default_rng(seed), Builder(), dtype
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def tensor(self, shape: tuple[int, ...], scale: float | None = None, zero_point: int | None = None) -> Tensor:
        """A new tensor, by default with a quantization that keeps results of unit size in range."""
        low, high = RANGES[self.dtype]
        scale = float(np.float32(self.rng.uniform(0.01, 0.06) if scale is None else scale))
        if zero_point is None:
            zero_point = 0 if self.dtype == "int16" else int(self.rng.integers(low, high + 1))
        index = self.b.tensor(f"t{len(self.b.tensors)}", shape, self.dtype, scale=scale, zero_point=zero_point)
        return Tensor(index, shape, scale, zero_point, self.dtype)

    def input(self, *shape: int) -> Tensor:
        """An input of the network."""
        tensor = self.tensor(shape)
        self.inputs.append(tensor)
        return tensor

    def constant(self, *shape: int) -> Tensor:
        """A quantized constant tensor."""
        low, high = RANGES[self.dtype]
        data = self.rng.integers(low, high + 1, shape)
        scale, zero_point = float(np.float32(self.rng.uniform(0.005, 0.05))), int(self.rng.integers(low, high + 1))
        index = self.b.tensor("c", shape, self.dtype, data=data, scale=scale, zero_point=zero_point)
        return Tensor(index, shape, scale, zero_point, self.dtype)

    def op(self, code: int, inputs: list[int], out: Tensor, kind: Any = None, **values: Any) -> Tensor:
        """One operator; its result is also an output of the network."""
        self.b.op(code, inputs, [out.index], None if kind is None else options(kind, **values))
        self.outputs.append(out)
        return out

    def weights(self, shape: tuple[int, ...], axis: int, per_channel: bool) -> tuple[int, np.ndarray]:
        """int8 weights and their scales."""
        channels = shape[axis]
        scales = self.rng.uniform(0.001, 0.02, channels if per_channel else 1).astype(np.float32)
        data = self.rng.integers(-127, 128, shape)
        return self.b.tensor("w", shape, "int8", data=data, scale=scales, axis=axis if per_channel else 0), scales

    def wide_conv(self, x: Tensor, channels: int, size: int) -> Tensor:
        """A convolution of 16-bit activations with 32-bit sums, which is what a 32-bit bias says."""
        w, scales = self.weights((channels, size, size, x.shape[3]), 0, True)
        values = {"strideH": 1, "strideW": 1, "padding": 0, "dilationHFactor": 1, "dilationWFactor": 1}
        out = self.tensor((*self.windows(x, size, values), channels), x.scale * float(np.mean(scales)) * 200)
        inputs, kind = [x.index, w, self.bias(x, scales, channels)], schema.Conv2DOptionsT
        return self.op(Builtin.CONV_2D, inputs, out, kind, **values, quantizedBiasType=schema.TensorType.INT32)

    def bias(self, x: Tensor, scales: np.ndarray, channels: int) -> int:
        """int32 bias in the accumulator's unit."""
        data = self.rng.integers(-2000, 2000, channels)
        return self.b.tensor("b", (channels,), "int32", data=data, scale=np.float32(x.scale) * scales)

    def conv(self, x: Tensor, channels: int, size: int, **values: Any) -> Tensor:
        """A convolution with weights per channel."""
        w, scales = self.weights((channels, size, size, x.shape[3]), 0, True)
        return self._windowed(Builtin.CONV_2D, x, w, scales, channels, size, schema.Conv2DOptionsT, values)

    def depthwise(self, x: Tensor, multiplier: int, size: int, **values: Any) -> Tensor:
        """A depthwise convolution."""
        channels = x.shape[3] * multiplier
        w, scales = self.weights((1, size, size, channels), 3, True)
        values = {"depthMultiplier": multiplier, **values}
        return self._windowed(
            Builtin.DEPTHWISE_CONV_2D, x, w, scales, channels, size, schema.DepthwiseConv2DOptionsT, values
        )

    def _windowed(
        self, code: int, x: Tensor, w: int, scales: np.ndarray, channels: int, size: int, kind: Any, values: Any
    ) -> Tensor:
        values = {"strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1, "padding": 0, **values}
        shape = self.windows(x, size, values)
        spread = x.scale * float(np.mean(scales)) * 4000 * np.sqrt(size * size * x.shape[3])
        out = self.tensor((*shape, channels), spread / 100)
        return self.op(code, [x.index, w, self.bias(x, scales, channels)], out, kind, **values)

    def windows(self, x: Tensor, size: int, values: Any) -> tuple[int, int, int]:
        """Batch, height and width of what a window operator gives."""
        sizes = []
        for axis, letter in ((1, "H"), (2, "W")):
            reach = (size - 1) * values.get(f"dilation{letter}Factor", 1) + 1
            length = x.shape[axis] if values["padding"] == schema.Padding.SAME else x.shape[axis] - reach + 1
            sizes.append(-(-length // values[f"stride{letter}"]))
        return x.shape[0], sizes[0], sizes[1]

    def dense(self, x: Tensor, units: int, per_channel: bool = False, has_bias: bool = True, **values: Any) -> Tensor:
        """A fully connected layer on [batch, depth]."""
        w, scales = self.weights((units, x.shape[1]), 0, per_channel)
        out = self.tensor((x.shape[0], units), x.scale * float(np.mean(scales)) * 4000 * np.sqrt(x.shape[1]) / 100)
        inputs = [x.index, w, *([self.bias(x, scales, units)] if has_bias else [])]
        return self.op(Builtin.FULLY_CONNECTED, inputs, out, schema.FullyConnectedOptionsT, **values)

    def pool(self, x: Tensor, code: int, size: int, **values: Any) -> Tensor:
        """An average or maximum over windows."""
        values = {"strideH": 1, "strideW": 1, "padding": 0, **values}
        out = self.tensor((*self.windows(x, size, values), x.shape[3]), x.scale, x.zero_point)
        kind = schema.Pool2DOptionsT
        return self.op(code, [x.index], out, kind, filterHeight=size, filterWidth=size, **values)

    def binary(self, code: int, a: Tensor, b: Tensor, kind: Any = None, **values: Any) -> Tensor:
        """An element-wise operator of two tensors."""
        return self.op(code, [a.index, b.index], self.tensor(np.broadcast_shapes(a.shape, b.shape)), kind, **values)

    def unary(self, code: int, x: Tensor, kind: Any = None, **values: Any) -> Tensor:
        """An operator of one tensor with a quantization of its own."""
        return self.op(code, [x.index], self.tensor(x.shape), kind, **values)

    def fixed(self, code: int, x: Tensor, scale: float, zero_point: int, kind: Any = None, **values: Any) -> Tensor:
        """An operator of one tensor whose result's quantization the format prescribes."""
        return self.op(code, [x.index], self.tensor(x.shape, scale, zero_point), kind, **values)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """A reshape."""
        target = self.b.tensor("s", (len(shape),), "int32", data=np.array(shape))
        out = self.tensor(shape, x.scale, x.zero_point)
        return self.op(Builtin.RESHAPE, [x.index, target], out, schema.ReshapeOptionsT, newShape=list(shape))

    def reduce(self, x: Tensor, code: int, axes: tuple[int, ...], keep: bool) -> Tensor:
        """A mean or sum over axes."""
        shape = tuple(1 if i in axes else s for i, s in enumerate(x.shape) if keep or i not in axes)
        axis = self.b.tensor("a", (len(axes),), "int32", data=np.array(axes))
        return self.op(code, [x.index, axis], self.tensor(shape), schema.ReducerOptionsT, keepDims=keep)

    def concat(
        self, parts: list[Tensor], axis: int, scale: float | None = None, zero_point: int | None = None
    ) -> Tensor:
        """Parts joined."""
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        out = self.tensor(tuple(shape), scale, zero_point)
        return self.op(Builtin.CONCATENATION, [p.index for p in parts], out, schema.ConcatenationOptionsT, axis=axis)

    def transpose_conv(
        self, x: Tensor, channels: int, size: int, stride: int, padding: int, has_bias: bool = True
    ) -> Tensor:
        """A transposed convolution."""
        w, scales = self.weights((channels, size, size, x.shape[3]), 0, True)
        grown = [s * stride if padding == schema.Padding.SAME else (s - 1) * stride + size for s in x.shape[1:3]]
        shape = (x.shape[0], *grown, channels)
        target = self.b.tensor("s", (4,), "int32", data=np.array(shape))
        out = self.tensor(shape, x.scale * float(np.mean(scales)) * 4000 * np.sqrt(size * size * x.shape[3]) / 100)
        inputs = [target, w, x.index, *([self.bias(x, scales, channels)] if has_bias else [])]
        kind = schema.TransposeConvOptionsT
        return self.op(Builtin.TRANSPOSE_CONV, inputs, out, kind, strideH=stride, strideW=stride, padding=padding)

    def resize(self, x: Tensor, height: int, width: int, **values: Any) -> Tensor:
        """A nearest-neighbour resize."""
        target = self.b.tensor("s", (2,), "int32", data=np.array([height, width]))
        out = self.tensor((x.shape[0], height, width, x.shape[3]), x.scale, x.zero_point)
        code = Builtin.RESIZE_NEAREST_NEIGHBOR
        return self.op(code, [x.index, target], out, schema.ResizeNearestNeighborOptionsT, **values)

    def integers(self, values: Any, dtype: str = "int32") -> int:
        """A constant tensor of whole numbers that mean themselves."""
        data = np.array(values)
        return self.b.tensor(f"i{len(self.b.tensors)}", data.shape, dtype, data=data)

    def plain(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A new tensor that is not quantized."""
        return Tensor(self.b.tensor(f"p{len(self.b.tensors)}", shape, dtype), shape, 0.0, 0, dtype)

    def move(
        self, code: int, x: Tensor, shape: tuple[int, ...], *others: Any, kind: Any = None, **values: Any
    ) -> Tensor:
        """An operator that gives elements of `x` in `shape`; `others` are its constant operands."""
        inputs = [x.index, *(self.integers(other) for other in others)]
        return self.op(code, inputs, self.tensor(shape, x.scale, x.zero_point), kind, **values)

    def wide_bias(self, x: Tensor, scales: np.ndarray, channels: int) -> int:
        """An int64 bias, which the convolutions of 16-bit activations have."""
        data = self.rng.integers(-(2**24), 2**24, channels)
        return self.b.tensor("b", (channels,), "int64", data=data, scale=np.float32(x.scale) * scales)

    def float_input(self, *shape: int) -> Tensor:
        """A float input of the network."""
        tensor = self.plain(shape, "float32")
        self.inputs.append(tensor)
        return tensor

    def hybrid(
        self, code: int, x: Tensor, shape: tuple[int, ...], weight: tuple[int, ...], kind: Any, **more: Any
    ) -> Tensor:
        """Float activations, int8 weights; `more` has options, the channels' `axis`, `one` scale or not, a `bias`."""
        axis, one, bias = more.pop("axis", 0), more.pop("one", False), more.pop("bias", True)
        w, _ = self.weights(weight, axis, not one)
        numbers = self.rng.normal(0, 0.5, weight[axis]).astype(np.float32)
        inputs = [x.index, w, self.b.tensor("fb", numbers.shape, data=numbers) if bias else -1]
        return self.op(code, inputs, self.plain(shape, "float32"), kind, **more)

    def pack(self) -> bytes:
        """The flatbuffer, with every result as an output."""
        return pack(self.b.model([t.index for t in self.inputs], [t.index for t in self.outputs]))

    def data(self, seed: int) -> list[np.ndarray]:
        """Inputs that use the whole type, or stay near the zero point, by the seed."""
        rng, found = np.random.default_rng(seed), []
        for tensor in self.inputs:
            if tensor.dtype == "float32":
                found.append(rng.normal(0.3, 1, tensor.shape).astype(np.float32))
                continue
            low, high = RANGES[tensor.dtype]
            values = rng.normal(tensor.zero_point, (high - low) / (8 if seed % 2 else 2), tensor.shape)
            found.append(np.clip(np.round(values), low, high).astype(tensor.dtype))
        return found
