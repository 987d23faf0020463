"""Sizes of TVM buffers."""

from __future__ import annotations

from math import prod

from tvm import tirx
from tvm.runtime import DataType


def element_bytes(dtype: str) -> int:
    """Bytes of one element, vectors and sub-byte types rounded up."""
    parsed = DataType(dtype)
    return -(-int(parsed.bits) * int(parsed.lanes) // 8)


def buffer_bytes(buffer: tirx.Buffer) -> int:
    """Bytes of a buffer whose shape is static."""
    return prod(int(d) for d in buffer.ty.shape) * element_bytes(str(buffer.ty.dtype))
