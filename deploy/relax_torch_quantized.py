"""Converters of the operators that torch's quantizers write: quantized_decomposed.quantize_… and dequantize_….

quantize:   clamp(round(x * (1 / scale)) + zero_point, quant_min, quant_max), a half rounded to the even
dequantize: (q - zero_point) * scale
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Smallest and largest number of the types that a tensor is quantized to.
_RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
}
_TENSORS = ("default", "tensor", "tensor2")  # scale and zero point as numbers, or as tensors of one element


def converters() -> dict[str, Any]:
    """Converters by operator name, for `from_exported_program(custom_convert_map=...)`."""
    per_tensor = {
        f"{name}.{form}": function
        for name, function in (("quantize_per_tensor", _quantize), ("dequantize_per_tensor", _dequantize))
        for form in _TENSORS
    }
    return {
        **per_tensor,
        "quantize_per_channel.default": _quantize_per_channel,
        "dequantize_per_channel.default": _dequantize_per_channel,
    }


def _quantize(node: Any, importer: Any) -> Any:
    data, scale, zero_point, low, high, dtype = importer.retrieve_args(node)[:6]
    return _quantized(importer, data, scale, zero_point, -1, (low, high), dtype)


def _quantize_per_channel(node: Any, importer: Any) -> Any:
    data, scale, zero_point, axis, low, high, dtype = importer.retrieve_args(node)[:7]
    return _quantized(importer, data, scale, zero_point, axis, (low, high), dtype)


def _quantized(  # an operator's own parameters, as torch has them
    importer: Any, data: Any, scale: Any, zero_point: Any, axis: int, limits: tuple[Any, Any], dtype: Any
) -> Any:
    from tvm import relax

    kind = _dtype(dtype)
    emit = importer.block_builder.emit
    parameters = _parameter(importer, scale, "float32"), _parameter(importer, zero_point, "int32")
    data = data if str(data.ty.dtype) == "float32" else emit(relax.op.astype(data, "float32"))
    result = emit(relax.op.quantize(data, *parameters, axis=axis, out_dtype=kind))
    low, high = (int(limit) for limit in limits)
    return result if (low, high) == _RANGES[kind] else emit(relax.op.clip(result, low, high))


def _dequantize(node: Any, importer: Any) -> Any:
    data, scale, zero_point = importer.retrieve_args(node)[:3]
    return _dequantized(importer, node, data, scale, zero_point, -1)


def _dequantize_per_channel(node: Any, importer: Any) -> Any:
    data, scale, zero_point, axis = importer.retrieve_args(node)[:4]
    return _dequantized(importer, node, data, scale, zero_point, axis)


def _dequantized(importer: Any, node: Any, data: Any, scale: Any, zero_point: Any, axis: int) -> Any:
    from tvm import relax

    kind = node.kwargs.get("out_dtype")
    if kind is not None and _dtype(kind) != "float32":
        raise ValueError(f"it gives {_dtype(kind)}; only float32 is known here")
    parameters = _parameter(importer, scale, "float32"), _parameter(importer, zero_point, "int32")
    return importer.block_builder.emit(relax.op.dequantize(data, *parameters, axis=axis))


def _parameter(importer: Any, value: Any, dtype: str) -> Any:
    """A scale or zero point as a tensor of that type: a number, the model's own tensor, or none for zeros."""
    from tvm import relax

    if value is None:
        return relax.const(np.array(0, dtype), dtype)
    if isinstance(value, int | float):
        return relax.const(np.array(value, dtype), dtype)
    return value if str(value.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(value, dtype))


def _dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _RANGES and name != "float32":
        raise ValueError(f"it quantizes to {name}; known here are {', '.join(_RANGES)}")
    return name
