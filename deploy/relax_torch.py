"""Converters of torch operators that replace TVM's own, which make every matrix product and convolution float32."""

from __future__ import annotations

from typing import Any


def converters() -> dict[str, Any]:
    """Converters by operator name, for `from_exported_program(custom_convert_map=...)`."""
    return {
        "mm.default": _matmul,
        "bmm.default": _matmul,
        "matmul.default": _matmul,
        "addmm.default": _addmm,
        "convolution.default": _convolution,
    }


def without_pairs(mod: Any) -> Any:
    """`mod` without the tuples of a maximum and its places, of which TVM's frontend only computes the first."""
    from tvm import relax, transform

    return transform.Sequential([relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()])(mod)


def _matmul(node: Any, importer: Any) -> Any:
    from tvm import relax

    left, right = importer.retrieve_args(node)[:2]
    return importer.block_builder.emit(relax.op.matmul(left, right))


def _addmm(node: Any, importer: Any) -> Any:
    """beta * bias + alpha * (left @ right)"""
    from tvm import relax

    bias, left, right = importer.retrieve_args(node)[:3]
    emit = importer.block_builder.emit
    product = _scaled(emit(relax.op.matmul(left, right)), node.kwargs.get("alpha", 1), emit)
    return emit(relax.op.add(product, _scaled(bias, node.kwargs.get("beta", 1), emit)))


def _scaled(value: Any, factor: float, emit: Any) -> Any:
    from tvm import relax

    return value if factor == 1 else emit(relax.op.multiply(value, relax.const(factor, str(value.ty.dtype))))


def _convolution(node: Any, importer: Any) -> Any:
    from tvm import relax

    data, weight, bias, strides, padding, dilation, transposed, _, groups = importer.retrieve_args(node)
    if transposed:
        return importer._convolution(node)
    rank, emit = len(strides), importer.block_builder.emit
    conv = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[rank]
    result = emit(conv(data, weight, strides=strides, padding=padding, dilation=dilation, groups=groups))
    if bias is None:
        return result
    return emit(relax.op.add(result, emit(relax.op.reshape(bias, (1, -1, *[1] * rank)))))
