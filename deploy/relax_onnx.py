"""ONNX graphs through TVM's frontend, with operators on integers that it lacks or computes otherwise.

ConvInteger and MatMulInteger sum products of 8-bit numbers in int32. They are written in the form that becomes a
dot-product kernel: astype(x, int16), minus a zero point where that is constant, times constant int8 weights. A zero
point that is only known when the model runs is not subtracted from every element, but its share from every sum:

    sum((x - z) * w) = sum(x * w) - z * sum(w)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def known_operators() -> set[str]:
    """Names of the operators that can be imported."""
    from tvm.relax.frontend.onnx import onnx_frontend

    return {*onnx_frontend._get_convert_map(), *_CONVERTERS, "If", "Constant"}


def import_graph(model: Any) -> Any:
    """The IRModule of an onnx.ModelProto whose operators are all known, its weights constants."""
    from tvm.relax.frontend.onnx import onnx_frontend

    class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
        """TVM's importer with the converters of this module; they see every operator first."""

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            pass  # it only knows TVM's own

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
            converter = _CONVERTERS.get(op_name)
            if converter is None:
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return converter(self.bb, [*inputs, None, None, None], attrs)

    versions = [int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return Importer({}, "float32", sanitize=False).from_onnx(model.graph, versions[0] if versions else 1)


@dataclass(frozen=True, eq=False)
class _Window:
    """How a convolution's kernel moves, as ONNX writes it; padding is [begins, ends]."""

    strides: list[int]
    dilations: list[int]
    padding: list[int]
    groups: int


def _constant(value: Any) -> Array | None:
    """The values of a constant tensor, nothing for a computed one."""
    numbers = getattr(getattr(value, "value", None), "numpy", None)
    return None if numbers is None else np.asarray(numbers())


def _dims(value: Any) -> list[int]:
    return [int(size) for size in value.ty.shape]


def _const(values: Any, dtype: str) -> Any:
    from tvm import relax

    return relax.const(np.asarray(values).astype(dtype), dtype)


def _weights(weight: Array, zero_point: Any, axis: int) -> Any | None:
    """Constant weights minus their constant zero point, one or one for each index of `axis`; nothing if computed."""
    zero = np.zeros(1, np.int64) if zero_point is None else _constant(zero_point)
    if zero is None:
        return None
    shape = [1] * weight.ndim
    shape[axis] = -1
    centered = weight.astype(np.int64) - (zero.astype(np.int64).reshape(shape) if zero.ndim < 2 else zero)
    small = centered.min(initial=0) >= -128 and centered.max(initial=0) <= 127
    return centered.astype(np.int8 if small else np.int16)


def _centered(bb: Any, value: Any, zero_point: Any, zero_shape: Sequence[int]) -> Any:
    """value - zero point in int16, which holds every difference of 8-bit numbers."""
    from tvm import relax

    wide = bb.emit(relax.op.astype(value, "int16"))
    zero = None if zero_point is None else _constant(zero_point)
    if zero_point is None or (zero is not None and not zero.any()):
        return wide
    if zero is not None:
        return bb.emit(relax.op.subtract(wide, _const(zero.reshape(tuple(zero_shape)), "int16")))
    computed = bb.emit(relax.op.astype(zero_point, "int16"))
    return bb.emit(relax.op.subtract(wide, bb.emit(relax.op.reshape(computed, zero_shape))))


def _computed_scalar(zero_point: Any) -> bool:
    """Whether a zero point is one number that only running the model gives."""
    return zero_point is not None and _constant(zero_point) is None and math.prod(_dims(zero_point)) == 1


def _less(bb: Any, total: Any, zero_point: Any, sums: Array) -> Any:
    """total - zero point * sums, in int32."""
    from tvm import relax

    zero = bb.emit(relax.op.astype(bb.emit(relax.op.reshape(zero_point, [])), "int32"))
    return bb.emit(relax.op.subtract(total, bb.emit(relax.op.multiply(zero, _const(sums, "int32")))))


def _matmul_integer(bb: Any, inputs: Sequence[Any], _: Mapping[str, Any]) -> Any:
    """(a - a's zero point) @ (b - b's zero point): zero points are one number, or a's per row, b's per column."""
    from tvm import relax

    a, b, a_zero, b_zero = inputs[:4]
    constant = _constant(b)
    weight = None if constant is None else _weights(constant, b_zero, constant.ndim - 1)
    if weight is None:
        right = _centered(bb, b, b_zero, _zero_shape(b_zero, [1, -1]))
    else:
        right = _const(weight, str(weight.dtype))
    if weight is not None and _computed_scalar(a_zero):
        total = bb.emit(relax.op.matmul(_centered(bb, a, None, []), right, out_dtype="int32"))
        sums = weight.astype(np.int64).sum(axis=-2, keepdims=weight.ndim > 2)
        return _less(bb, total, a_zero, sums)
    left = _centered(bb, a, a_zero, _zero_shape(a_zero, [-1, 1]))
    return bb.emit(relax.op.matmul(left, right, out_dtype="int32"))


def _zero_shape(zero_point: Any, vector: list[int]) -> list[int]:
    """The shape that broadcasts a zero point to its matrix: `vector`'s for one for each row or column."""
    shape = [] if zero_point is None else _dims(zero_point)
    size = math.prod(shape)
    if size == 1:
        return []
    return [size if s == -1 else s for s in vector] if len(shape) == 1 else shape


def _conv_integer(bb: Any, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """The convolution of x - x's zero point, padded with zeros, and w - w's zero point (one, or one per channel)."""
    from tvm import relax

    x, w, x_zero, w_zero = inputs[:4]
    constant = _constant(w)
    weight = None if constant is None else _weights(constant, w_zero, 0)
    if weight is None:
        raise ValueError("its weights or their zero point are computed when the model runs; make them constants")
    window = _window(attrs, _dims(x)[2:], list(weight.shape[2:]))
    if not _computed_scalar(x_zero):
        return _convolve(bb, _centered(bb, x, x_zero, []), weight, window)
    rank = len(window.strides)
    x = _padded(bb, x, x_zero, window)
    plain = _Window(window.strides, window.dilations, [0] * 2 * rank, window.groups)
    total = _convolve(bb, bb.emit(relax.op.astype(x, "int16")), weight, plain)
    sums = weight.astype(np.int64).sum(axis=tuple(range(1, weight.ndim)))
    return _less(bb, total, x_zero, sums.reshape(1, -1, *[1] * rank))


def _convolve(bb: Any, data: Any, weight: Array, window: _Window) -> Any:
    from tvm import relax

    rank = len(window.strides)
    operator = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[rank]
    kernel = _const(weight, str(weight.dtype))
    sizes = {"strides": window.strides, "dilation": window.dilations, "padding": window.padding}
    return bb.emit(operator(data, kernel, **sizes, groups=window.groups, out_dtype="int32"))


def _window(attrs: Mapping[str, Any], size: list[int], kernel: list[int]) -> _Window:
    rank = len(kernel)
    strides, dilations = list(attrs.get("strides", [1] * rank)), list(attrs.get("dilations", [1] * rank))
    padding, mode = list(attrs.get("pads", [0] * 2 * rank)), attrs.get("auto_pad", b"NOTSET").decode()
    if mode.startswith("SAME"):
        steps = zip(size, kernel, strides, dilations, strict=True)
        spare = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in steps]
        small, large = [n // 2 for n in spare], [n - n // 2 for n in spare]
        padding = small + large if mode == "SAME_UPPER" else large + small
    elif mode == "VALID":
        padding = [0] * 2 * rank
    return _Window(strides, dilations, padding, int(attrs.get("group", 1)))


def _padded(bb: Any, x: Any, zero_point: Any, window: _Window) -> Any:
    """x with a border of its zero point: a border of 0, to which 1 or 0 times the zero point is added."""
    from tvm import relax

    if not any(window.padding):
        return x
    rank = len(window.strides)
    widths = [(0, 0), (0, 0), *zip(window.padding[:rank], window.padding[rank:], strict=True)]
    border = np.pad(np.zeros((1, 1, *_dims(x)[2:]), np.uint8), widths, constant_values=1)
    padded = bb.emit(relax.op.nn.pad(x, [n for pair in widths for n in pair]))
    dtype = str(x.ty.dtype)
    zero = bb.emit(relax.op.reshape(zero_point, []))
    return bb.emit(relax.op.add(padded, bb.emit(relax.op.multiply(zero, _const(border, dtype)))))


def _dynamic_quantize_linear(bb: Any, inputs: Sequence[Any], _: Mapping[str, Any]) -> Any:
    """(y, scale, zero point): x in uint8, in the range of its own values and 0; a tensor of zeros has scale 1."""
    from tvm import relax

    x, zero = inputs[0], relax.const(0.0, "float32")
    largest = bb.emit(relax.op.maximum(bb.emit(relax.op.max(x)), zero))
    smallest = bb.emit(relax.op.minimum(bb.emit(relax.op.min(x)), zero))
    extent = bb.emit(relax.op.subtract(largest, smallest))
    ratio = bb.emit(relax.op.divide(extent, relax.const(255.0, "float32")))
    empty = bb.emit(relax.op.equal(extent, zero))
    scale = bb.emit(relax.op.where(empty, relax.const(1.0, "float32"), ratio))
    place = bb.emit(relax.op.subtract(zero, bb.emit(relax.op.divide(smallest, scale))))
    place = bb.emit(relax.op.round(bb.emit(relax.op.clip(place, 0, 255))))
    zero_point = bb.emit(relax.op.astype(place, "uint8"))
    quantized = bb.emit(relax.op.quantize(x, scale, zero_point, axis=0, out_dtype="uint8"))
    return relax.Tuple([quantized, scale, zero_point])


_CONVERTERS: Mapping[str, Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]] = MappingProxyType(
    {
        "ConvInteger": _conv_integer,
        "MatMulInteger": _matmul_integer,
        "DynamicQuantizeLinear": _dynamic_quantize_linear,
    }
)
