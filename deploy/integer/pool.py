"""Averages and maxima over windows and axes."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import Call

from deploy.integer.context import Array, Context, Output, Quantized, Stays, const, recall
from deploy.integer.fixed_point import quantize_multiplier
from deploy.integer.requantize import clamp, convert, finish, from_float, rescale
from deploy.relax_rewrite import op_name, shape_of


def max_pool(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A maximum over windows, of the integers. Raises Stays."""
    data = ctx.quantized(call.args[0])
    pooled = ctx.emit(recall(call, [data.value]))
    return convert(ctx, Quantized(pooled, data.scale, data.zero_point), out)


def average(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """An average over windows between a dequantization and a quantization. Raises Stays."""
    data = ctx.quantized(call.args[0])
    if ctx.rules.fixed_point:
        raise Stays("TFLite has no average over windows that changes the scale")
    total, counts = _window_sum(ctx, call, ctx.centered(data, "int16"))
    scales = np.float64(data.scale) / np.float64(out.scale) / counts
    return from_float(ctx, ctx.emit(relax.op.astype(total, "float32")), scales, out, counts.shape)


def average_of_integers(ctx: Context, data: relax.Expr, call: Call, out: Output) -> relax.Expr:
    """TFLite's average over windows: the integers' sum divided by their number, a half away from zero."""
    total, counts = _window_sum(ctx, call, ctx.emit(relax.op.astype(data, "int16")))
    half = const(counts // 2 if counts.size > 1 else counts.flat[0] // 2, "int32")
    count = const(counts if counts.size > 1 else counts.flat[0], "int32")
    # -1 for a sum that is not positive, else 0: half is added to a positive sum and subtracted from others
    sign = ctx.emit(relax.op.subtract(total, const(1, "int32")))
    sign = ctx.emit(relax.op.right_shift(sign, const(31, "int32")))
    sign = ctx.emit(relax.op.add(ctx.emit(relax.op.add(sign, sign)), const(1, "int32")))
    total = ctx.emit(relax.op.add(total, ctx.emit(relax.op.multiply(half, sign))))
    mean = ctx.emit(relax.op.divide(total, count))  # towards zero
    return ctx.emit(relax.op.astype(clamp(ctx, mean, out.low, out.high), out.dtype))


def _window_sum(ctx: Context, call: Call, values: relax.Expr) -> tuple[relax.Expr, Array]:
    """int32 sums over the windows of pooling `call`, and the number of elements in each (broadcast to the sums)."""
    if op_name(call) == "relax.nn.adaptive_avg_pool2d":
        return _whole_sum(ctx, call, values)
    attrs, shape = call.attrs, shape_of(call.args[0])
    layout = str(attrs.layout)
    if layout not in ("NHWC", "NCHW") or str(attrs.out_layout) not in ("", layout):
        raise Stays(f"it is in layout {layout}")
    window, strides, dilation = ([int(s) for s in part] for part in (attrs.pool_size, attrs.strides, attrs.dilation))
    padding = [int(p) for p in attrs.padding]
    padding = padding * (4 // len(padding))
    spatial = [shape[layout.index("H")], shape[layout.index("W")]]
    if spatial == window and not any(padding):
        return _sum(ctx, values, layout), np.array([window[0] * window[1]])
    channels = shape[layout.index("C")]
    ones = (*window, channels, 1) if layout == "NHWC" else (channels, 1, *window)
    total = relax.op.nn.conv2d(
        values,
        const(np.ones(ones), "int8"),
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=channels,
        data_layout=layout,
        kernel_layout="HWOI" if layout == "NHWC" else "OIHW",
        out_dtype="int32",
    )
    if shape_of(ctx.builder.normalize(total)) != shape_of(call):
        raise Stays("its last windows reach beyond the padding")
    counts = _counts(spatial, window, strides, dilation, padding, bool(attrs.count_include_pad))
    return ctx.emit(total), counts.reshape((1, *counts.shape, 1) if layout == "NHWC" else (1, 1, *counts.shape))


def _whole_sum(ctx: Context, call: Call, values: relax.Expr) -> tuple[relax.Expr, Array]:
    shape, layout = shape_of(call.args[0]), str(call.attrs.layout)
    height, width = layout.index("H"), layout.index("W")
    if shape_of(call)[height] != 1 or shape_of(call)[width] != 1:
        raise Stays("its windows have different sizes")
    return _sum(ctx, values, layout), np.array([shape[height] * shape[width]])


def _sum(ctx: Context, values: relax.Expr, layout: str) -> relax.Expr:
    wide = ctx.emit(relax.op.astype(values, "int32"))
    return ctx.emit(relax.op.sum(wide, axis=[layout.index("H"), layout.index("W")], keepdims=True))


def _counts(
    size: list[int], window: list[int], strides: list[int], dilation: list[int], padding: list[int], padded: bool
) -> Array:
    """How many elements each window holds, [1] where all hold the same number, else [height, width]."""
    rows = []
    for axis in range(2):
        reach = (window[axis] - 1) * dilation[axis]
        starts = np.arange(-padding[axis], size[axis] + padding[axis + 2] - reach, strides[axis])
        places = starts[:, None] + np.arange(window[axis]) * dilation[axis]
        inside = np.ones_like(places, bool) if padded else (places >= 0) & (places < size[axis])
        rows.append(inside.sum(axis=1))
    counts = np.outer(rows[0], rows[1])
    return counts[:1, :1] if (counts == counts[0, 0]).all() else counts


def mean(ctx: Context, call: Call, out: Output) -> relax.Expr:
    """A mean over axes. Raises Stays."""
    data = ctx.quantized(call.args[0])
    shape, axes = shape_of(call.args[0]), [int(axis) for axis in call.attrs.axis or range(len(shape_of(call.args[0])))]
    count = int(np.prod([shape[axis] for axis in axes]))
    wide = ctx.emit(relax.op.astype(data.value, "int32"))
    total = ctx.emit(relax.op.sum(wide, axis=axes, keepdims=bool(call.attrs.keepdims)))
    if data.zero_point:
        total = ctx.emit(relax.op.subtract(total, const(data.zero_point * count, "int32")))
    ratio = ctx.rules.ratio(data.scale, out.scale, in_float=False)
    is_mean = op_name(call) == "relax.mean"
    if not ctx.rules.fixed_point:
        scale = np.array([ratio / count if is_mean else ratio])
        return from_float(ctx, ctx.emit(relax.op.astype(total, "float32")), scale, out)
    multiplier, shift = quantize_multiplier(ratio)
    if is_mean:
        moved = min(count.bit_length() - 1, 32, 31 + shift)
        multiplier, shift = (multiplier << moved) // count, shift - moved
    return finish(ctx, rescale(ctx, total, [(multiplier, shift)]), out)
