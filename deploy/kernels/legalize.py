"""Relax operators with constant weights → this package's packed kernels.

An operator that no packed kernel computes keeps TVM's own definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from tvm import relax, te, topi
from tvm.ir import Call

from deploy.kernels import compute, packing
from deploy.kernels.machine import Machine
from deploy.relax_rewrite import array_of

Legalize = Callable[[relax.BlockBuilder, Call], relax.Expr]
OUT_ELEMENTWISE_FUSABLE = 4  # tvm::relax::OpPatternKind::kOutEWiseFusable: element-wise work may follow in the kernel


def _is_float(expr: relax.Expr) -> bool:
    return str(expr.ty.dtype) == "float32"


def _upstream(bb: relax.BlockBuilder, call: Call) -> relax.Expr:
    return call.op.get_attr("FLegalize")(bb, call)


def emit(bb: relax.BlockBuilder, function: Callable[..., object], *args: relax.Expr, **sizes: object) -> relax.Expr:
    """Call `function(*args, **sizes)` as a kernel that element-wise operators may be fused into."""
    pattern = {"op_pattern": OUT_ELEMENTWISE_FUSABLE}
    kernel = partial(function, **sizes)
    return bb.call_te(kernel, *args, primfunc_name_hint=function.__name__, primfunc_attrs=pattern)


def as_hwio(weight: npt.NDArray[np.generic], layout: str, groups: int) -> npt.NDArray[np.generic]:
    """[KH, KW, CI / groups, CO] from a kernel in another order.

    TFLite's depthwise kernels come as HWOI with O the input channel and I its multiplier.
    """
    hwio = weight.transpose([layout.index(axis) for axis in "HWIO"])
    if groups > 1 and layout == "HWOI":
        height, width = hwio.shape[:2]
        return weight.reshape(height, width, 1, -1)
    return hwio


def conv2d(machine: Machine) -> Legalize:
    """Legalize relax.nn.conv2d in NHWC with one group, or with one group a channel."""

    def legalize(bb: relax.BlockBuilder, call: Call) -> relax.Expr:
        data, attrs = call.args[0], call.attrs
        weight, groups = array_of(call.args[1]), int(attrs.groups)
        nhwc = attrs.data_layout == "NHWC" and attrs.out_layout in ("", "NHWC")
        if weight is None or not nhwc or not _is_float(data):
            return _upstream(bb, call)
        kernel = as_hwio(weight, attrs.kernel_layout, groups)
        channels = int(kernel.shape[3])
        window = compute.Window(pair(attrs.strides), pair(attrs.dilation), four(attrs.padding))
        if groups == 1:
            lanes = packing.lanes_for(channels, machine.lanes(32))
            packed = relax.const(packing.pack_channels(kernel, lanes))
            return emit(bb, compute.conv2d, data, packed, channels=channels, window=window)
        if groups == channels == int(data.ty.shape[3]):
            lanes = packing.dividing_lanes(channels, machine.lanes(32))
            packed = relax.const(packing.pack_channels(kernel[:, :, 0, :], lanes))
            return emit(bb, compute.depthwise, data, packed, channels=channels, window=window)
        return _upstream(bb, call)

    return legalize


def conv2d_transpose(machine: Machine) -> Legalize:
    """Legalize relax.nn.conv2d_transpose: as a convolution over the input with zeros between its pixels.

    With groups or a computed weight it is TVM's own kernel, which knows one layout, between transposes.
    """

    def legalize(bb: relax.BlockBuilder, call: Call) -> relax.Expr:
        data, attrs = call.args[0], call.attrs
        weight, groups = array_of(call.args[1]), int(attrs.groups)
        nhwc = attrs.data_layout == "NHWC" and attrs.out_layout in ("", "NHWC")
        if weight is None or not nhwc or groups != 1 or not _is_float(data):
            return _transposed_upstream(bb, call)
        kernel = weight.transpose([attrs.kernel_layout.index(axis) for axis in "HWIO"])[::-1, ::-1]
        height, width, _, channels = kernel.shape
        (top, left, bottom, right), (dilate_h, dilate_w) = four(attrs.padding), pair(attrs.dilation)
        more_h, more_w = pair(attrs.output_padding)
        reach_h, reach_w = dilate_h * (height - 1), dilate_w * (width - 1)
        padding = (reach_h - top, reach_w - left, reach_h - bottom + more_h, reach_w - right + more_w)
        window = compute.Window((1, 1), (dilate_h, dilate_w), padding, pair(attrs.strides))
        lanes = packing.lanes_for(channels, machine.lanes(32))
        packed = relax.const(packing.pack_channels(kernel, lanes))
        return emit(bb, compute.conv2d, data, packed, channels=channels, window=window)

    return legalize


def _transposed_upstream(bb: relax.BlockBuilder, call: Call) -> relax.Expr:
    attrs = call.attrs
    data_axes, kernel_axes = str(attrs.data_layout), str(attrs.kernel_layout)
    strides, padding, more = (tuple(map(int, a)) for a in (attrs.strides, attrs.padding, attrs.output_padding))
    dilation, groups = pair(attrs.dilation), int(attrs.groups)

    def transposed_conv2d(data: te.Tensor, weight: te.Tensor) -> te.Tensor:
        nchw = topi.transpose(data, [data_axes.index(axis) for axis in "NCHW"])
        iohw = topi.transpose(weight, [kernel_axes.index(axis) for axis in "IOHW"])
        spread = topi.nn.dilate(iohw, (1, 1, *dilation)) if dilation != (1, 1) else iohw
        result = topi.nn.group_conv2d_transpose_nchw(nchw, spread, strides, padding, data.dtype, more, groups)
        return topi.transpose(result, ["NCHW".index(axis) for axis in data_axes])

    return bb.call_te(transposed_conv2d, *call.args)


def pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = (int(value) for value in values)
    return first, second


def four(values: Sequence[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = (int(value) for value in values)
    return top, left, bottom, right


def matmul(machine: Machine) -> Legalize:
    """Legalize relax.matmul with a constant matrix on the right."""

    def legalize(bb: relax.BlockBuilder, call: Call) -> relax.Expr:
        data, weight = call.args[0], array_of(call.args[1])
        if weight is None or weight.ndim != 2 or not _is_float(data) or len(data.ty.shape) < 2:
            return _upstream(bb, call)
        channels = int(weight.shape[1])
        packed = packing.pack_channels(weight, packing.lanes_for(channels, machine.lanes(32)))
        return emit(bb, compute.matmul, data, relax.const(packed), channels=channels)

    return legalize


def legalizations(machine: Machine) -> dict[str, Legalize]:
    """What LegalizeOps shall use in place of TVM's own definitions."""
    return {
        "relax.nn.conv2d": conv2d(machine),
        "relax.nn.conv2d_transpose": conv2d_transpose(machine),
        "relax.matmul": matmul(machine),
    }
