"""The micro-kernels of microcontrollers in TVMScript, for tensorize: what each computes, and the call of its function.

The text is made for each shape: an axis of one element is none in the blocks that tensorize compares with.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from textwrap import indent
from typing import Any

from tvm import script
from tvm.s_tir import TensorIntrin

from deploy.kernels.micro.helium import HeliumKernel
from deploy.kernels.micro.helium_depthwise import GatheredKernel
from deploy.kernels.micro.portable import PortableDepthwise, PortableKernel
from deploy.kernels.micro.rows import RowKernel
from deploy.kernels.micro.smlad import MicroKernel
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel

_NAME = re.compile(r"deploy\.(\w+)(?:\.(\d+))?")
_DESCRIPTION = """\
for {loops} in T.grid({extents}):
    with T.sblock("update"):
        {axes} = T.axis.remap("{kinds}", [{loops}])
        C[{p}, {i}] = C[{p}, {i}] + T.cast(A[{r} * {dilation}, {p} * {step} + {j} * 2 + {g}], "int32") * T.Select(
            {i} % 2 == 0,
            T.cast(T.cast(B[{r}, {j}, {i} // 2, {g}], "int8"), "int32"),
            T.cast(B[{r}, {j}, {i} // 2, {g}], "int32"),
        )
"""
_CALL = """\
T.evaluate(T.call_extern("int32", "{symbol}", T.address_of(A[0, 0]), T.address_of(B[0, 0, 0, 0]),
                         T.address_of(C[0, 0]), (pitch * {dilation} - {pairs} * 2) * 2))
"""
_FUNCTION = """\
@T.prim_func(s_tir=True)
def function(a: T.handle, b: T.handle, c: T.handle) -> None:
    pitch, sums = T.int32(), T.int32()
    A = T.match_buffer(a, ({height}, {length}), "int16", strides=[pitch, 1], offset_factor=1)
    B = T.match_buffer(b, ({rows}, {pairs}, {channel_pairs}, 2), "int16", offset_factor=1)
    C = T.match_buffer(c, ({pixels}, {channels}), "int32", strides=[sums, 1], offset_factor=1)
    with T.sblock("root"):
        T.reads(C[0:{pixels}, 0:{channels}], A[0:{height}, 0:{length}], B[0:{rows}, 0:{pairs}, 0:{channel_pairs}, 0:2])
        T.writes(C[0:{pixels}, 0:{channels}])
{body}
"""


def _function(kernel: MicroKernel, dilation: int, body: str) -> Any:
    sizes = {
        "pixels": kernel.pixels,
        "channels": kernel.channels,
        "channel_pairs": kernel.channels // 2,
        "rows": kernel.rows,
        "pairs": kernel.pairs,
        "height": (kernel.rows - 1) * dilation + 1,
        "length": (kernel.pixels - 1) * kernel.step + 2 * kernel.pairs,
    }
    return script.from_source(_FUNCTION.format(**sizes, body=indent(body, " " * 8)))


_DEPTHWISE = """\
for {loops} in T.grid({extents}):
    with T.sblock("update"):
        {axes} = T.axis.remap("{kinds}", [{loops}])
        C[{h}, {w}] = C[{h}, {w}] + T.cast(A[{h} * {stride_h} + {r}, {w} * {stride_w} + {k}], "int32") * T.cast(
            B[{r}, {tap}], "int32"
        )
"""
_DEPTHWISE_CALL = """\
T.evaluate(T.call_extern("int32", "{symbol}", T.address_of(A[0, 0]), T.address_of(B[0, 0]),
                         T.address_of(C[0, 0]), pitch))
"""
_DEPTHWISE_FUNCTION = """\
@T.prim_func(s_tir=True)
def function(a: T.handle, b: T.handle, c: T.handle) -> None:
    pitch, taps, sums = T.int32(), T.int32(), T.int32()
    A = T.match_buffer(a, ({height}, {width}), "{dtype}", strides=[pitch, 1], offset_factor=1)
    B = T.match_buffer(b, ({kernel_h}, {read}), "{dtype}", strides=[taps, 1], offset_factor=1)
    C = T.match_buffer(c, ({rows}, {columns}), "int32", strides=[sums, 1], offset_factor=1)
    with T.sblock("root"):
        T.reads(C[0:{rows}, 0:{columns}], A[0:{height}, 0:{width}], B[0:{kernel_h}, 0:{read}])
        T.writes(C[0:{rows}, 0:{columns}])
{body}
"""


_ROWS = """\
for {loops} in T.grid({extents}):
    with T.sblock("update"):
        {axes} = T.axis.remap("{kinds}", [{loops}])
        C[{p}, {o}] = C[{p}, {o}] + T.cast(A[{r} * {dilation}, {p} * {step} + {k}], "int32") * T.cast(
            B[{block}, {row}, {chunk}, {lane}, {tap}], "int32"
        )
"""
_ROWS_CALL = """\
T.evaluate(T.call_extern("int32", "{symbol}", T.address_of(A[0, 0]), T.address_of(B[0, 0, 0, 0, 0]),
                         T.address_of(C[0, 0]), pitch * {dilation}))
"""
_ROWS_FUNCTION = """\
@T.prim_func(s_tir=True)
def function(a: T.handle, b: T.handle, c: T.handle) -> None:
    pitch, sums, b0, b1, b2, b3 = T.int32(), T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
    A = T.match_buffer(a, ({height}, {length}), "int8", strides=[pitch, 1], offset_factor=1)
    B = T.match_buffer(b, ({blocks}, {stored_rows}, {chunks}, {channels}, {read}), "int8", strides=[b0, b1, b2, b3, 1],
                       offset_factor=1)
    C = T.match_buffer(c, ({pixels}, {total}), "int32", strides=[sums, 1], offset_factor=1)
    with T.sblock("root"):
        T.reads(C[0:{pixels}, 0:{total}], A[0:{height}, 0:{length}],
                B[0:{blocks}, 0:{stored_rows}, 0:{chunks}, 0:{channels}, 0:{read}])
        T.writes(C[0:{pixels}, 0:{total}])
{body}
"""


def register_rows(kernel: RowKernel, dilation: int) -> str:
    """Make a micro-kernel over rows of int8 known to TVM's tensorize; its name there."""
    name = f"deploy.{kernel.symbol}.{dilation}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        axes = _axes({"p": kernel.pixels, "o": kernel.total, "r": kernel.rows, "k": kernel.taps}, "po")
        both, together = kernel.blocks > 1 and kernel.channels > 1, bool(kernel.together)
        taps = kernel.taps * (kernel.rows if together else 1)
        tap = f"({axes['r']} * {kernel.taps} + {axes['k']})" if together else axes["k"]
        sizes = {
            **asdict(kernel),
            "together": kernel.together,
            "symbol": kernel.symbol,
            "dilation": dilation,
            "height": (kernel.rows - 1) * dilation + 1,
            "length": (kernel.pixels - 1) * kernel.step + kernel.taps,
            "chunks": kernel.chunks,
            "blocks": kernel.blocks,
            "stored_rows": 1 if together else kernel.rows,
            "read": min(taps, kernel.lanes),
            "block": f"{axes['o']} // {kernel.channels}" if both else axes["o"] if kernel.blocks > 1 else "0",
            "lane": f"{axes['o']} % {kernel.channels}" if both else "0" if kernel.blocks > 1 else axes["o"],
            "row": "0" if together else axes["r"],
            "chunk": "0" if kernel.chunks == 1 else tap if kernel.lanes == 1 else f"{tap} // {kernel.lanes}",
            "tap": "0" if kernel.lanes == 1 else f"{tap} % {kernel.lanes}" if kernel.chunks > 1 else tap,
        }
        bodies = (_ROWS.format(**{**sizes, **axes}), _ROWS_CALL.format(**sizes))
        texts = (_ROWS_FUNCTION.format(**sizes, body=indent(body, " " * 8)) for body in bodies)
        TensorIntrin.register(name, *map(script.from_source, texts))
    return name


_GATHERED = """\
for {loops} in T.grid({extents}):
    with T.sblock("update"):
        {axes} = T.axis.remap("{kinds}", [{loops}])
        C[{h}, {w}, {i}] = C[{h}, {w}, {i}] + T.cast(
            A[{i}, {h} * {stride_h} + {r}, {w} * {stride_w} + {k}], "int32"
        ) * T.cast(B[{i}, {r} * {kernel_w} + {k}], "int32")
"""
_GATHERED_CALL = """\
T.evaluate(T.call_extern("int32", "{symbol}", T.address_of(A[0, 0, 0]), T.address_of(B[0, 0]), T.address_of(C[0, 0, 0]),
                         plane, pitch))
"""
_GATHERED_FUNCTION = """\
@T.prim_func(s_tir=True)
def function(a: T.handle, b: T.handle, c: T.handle) -> None:
    plane, pitch, taps, s0, s1 = T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
    A = T.match_buffer(a, (4, {height}, {width}), "int8", strides=[plane, pitch, 1], offset_factor=1)
    B = T.match_buffer(b, (4, {read}), "int8", strides=[taps, 1], offset_factor=1)
    C = T.match_buffer(c, ({rows}, {columns}, 4), "int32", strides=[s0, s1, 1], offset_factor=1)
    with T.sblock("root"):
        T.reads(C[0:{rows}, 0:{columns}, 0:4], A[0:4, 0:{height}, 0:{width}], B[0:4, 0:{read}])
        T.writes(C[0:{rows}, 0:{columns}, 0:4])
{body}
"""


def register_gathered(kernel: GatheredKernel) -> str:
    """Make a depthwise micro-kernel for Helium known to TVM's tensorize; its name there."""
    name = f"deploy.{kernel.symbol}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        extents = {"h": kernel.rows, "w": kernel.columns, "i": 4, "r": kernel.kernel_h, "k": kernel.kernel_w}
        sizes = {
            **asdict(kernel),
            "symbol": kernel.symbol,
            "height": (kernel.rows - 1) * kernel.stride_h + kernel.kernel_h,
            "width": (kernel.columns - 1) * kernel.stride_w + kernel.kernel_w,
            "read": kernel.kernel_h * kernel.kernel_w,
        }
        bodies = (_GATHERED.format(**sizes, **_axes(extents, "hwi")), _GATHERED_CALL.format(**sizes))
        texts = (_GATHERED_FUNCTION.format(**sizes, body=indent(body, " " * 8)) for body in bodies)
        TensorIntrin.register(name, *map(script.from_source, texts))
    return name


def _axes(sizes: dict[str, int], spatial: str) -> dict[str, Any]:
    axes = [name for name, extent in sizes.items() if extent > 1]
    return {
        "loops": ", ".join(axes),
        "extents": ", ".join(str(sizes[name]) for name in axes),
        "axes": ", ".join(f"v{name}" for name in axes),
        "kinds": "".join("S" if name in spatial else "R" for name in axes),
        **{name: f"v{name}" if name in axes else "0" for name in sizes},
    }


def register_depthwise(kernel: DepthwiseKernel | PortableDepthwise) -> str:
    """Make a depthwise micro-kernel known to TVM's tensorize; its name there."""
    name = f"deploy.{kernel.symbol}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        axes = _axes({"h": kernel.rows, "w": kernel.columns, "r": kernel.kernel_h, "k": kernel.kernel_w}, "hw")
        tap, last = axes["k"], kernel.kernel_w - 1
        if isinstance(kernel, DepthwiseKernel):
            tap, last = f"{tap} + {tap} // {last} * {kernel.taps.last - last}", kernel.taps.last
        sizes = {
            **asdict(kernel),
            "symbol": kernel.symbol,
            "height": (kernel.rows - 1) * kernel.stride_h + kernel.kernel_h,
            "width": (kernel.columns - 1) * kernel.stride_w + kernel.kernel_w,
            "dtype": "int16" if isinstance(kernel, DepthwiseKernel) else "int8",
            "read": last + 1,
            "tap": tap,
        }
        bodies = (_DEPTHWISE.format(**axes, **sizes), _DEPTHWISE_CALL.format(**sizes))
        texts = (_DEPTHWISE_FUNCTION.format(**sizes, body=indent(body, " " * 8)) for body in bodies)
        TensorIntrin.register(name, *map(script.from_source, texts))
    return name


def register(kernel: MicroKernel, dilation: int) -> str:
    """Make a micro-kernel known to TVM's tensorize; its name there."""
    name = f"deploy.{kernel.symbol}.{dilation}"
    if TensorIntrin.get(name, allow_missing=True) is None:
        axes = _axes({"p": kernel.pixels, "i": kernel.channels, "r": kernel.rows, "j": kernel.pairs, "g": 2}, "pi")
        description = _DESCRIPTION.format(**axes, dilation=dilation, step=kernel.step)
        call = _CALL.format(symbol=kernel.symbol, dilation=dilation, pairs=kernel.pairs)
        TensorIntrin.register(name, *(_function(kernel, dilation, body) for body in (description, call)))
    return name


def register_named(name: str) -> None:
    """Make the micro-kernel of a name known to TVM's tensorize, which is all that a schedule on record has of it.

    Nothing happens for any other name.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return
    symbol, dilation = found[1], int(found[2] or 1)
    kernel: Any
    if (kernel := MicroKernel.of(symbol)) is not None:
        register(kernel, dilation)
    elif (kernel := HeliumKernel.of(symbol) or PortableKernel.of(symbol)) is not None:
        register_rows(kernel, dilation)
    elif (kernel := DepthwiseKernel.of(symbol) or PortableDepthwise.of(symbol)) is not None:
        register_depthwise(kernel)
    elif (kernel := GatheredKernel.of(symbol)) is not None:
        register_gathered(kernel)
