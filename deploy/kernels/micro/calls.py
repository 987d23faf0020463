"""The loops around a micro-kernel that bring activations into its form → calls of functions written for that.

`schedule` marks them. The functions are those of `smlad` and `smlad_depthwise`; what depends on where TVM put a
buffer, such as the distance of its rows, is known only here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import ir, tirx
from tvm.sym import Analyzer
from tvm_ffi import structural_map

from deploy.kernels.micro.compute import OVERWRITTEN, PLANE, WIDENED
from deploy.kernels.micro.helium import COPY, SET, HeliumKernel
from deploy.kernels.micro.helium_depthwise import GatheredKernel, Planes
from deploy.kernels.micro.portable import PortableDepthwise, PortableKernel, PortablePlane
from deploy.kernels.micro.smlad import FILL, WIDEN, MicroKernel
from deploy.kernels.micro.smlad_depthwise import DepthwiseKernel, Plane


def with_calls(body: tirx.Stmt) -> tirx.Stmt:
    """`body` with a call in place of every marked loop, and micro-kernels called with 32-bit distances."""
    return structural_map(structural_map(body, (ir.Call, _micro_kernel)), (tirx.For, _loop))


def _micro_kernel(call: ir.Call) -> ir.Call:
    if str(getattr(call.op, "name", "")) != "tirx.call_extern":
        return call
    symbol, arguments, pitch = str(call.args[0].value), list(call.args[1:-1]), call.args[-1]
    gathered = GatheredKernel.of(symbol)
    if gathered is not None and len(arguments) == 4:
        *addresses, plane = arguments
        called = replace(gathered, plane=int(plane), pitch=int(pitch))
        return tirx.call_extern("int32", called.symbol, *addresses)
    for kind in (HeliumKernel, DepthwiseKernel, PortableKernel, PortableDepthwise):
        kernel = kind.of(symbol)
        if kernel is not None and len(arguments) == 3:
            return tirx.call_extern("int32", replace(kernel, pitch=int(pitch)).symbol, *arguments)
    if MicroKernel.of(symbol) is not None:
        return tirx.call_extern("int32", symbol, *arguments, pitch.astype("int32"))
    return call


def _loop(loop: tirx.For) -> tirx.Stmt:
    marks = {name: loop.annotations.get(name) for name in (WIDENED, PLANE, OVERWRITTEN)}
    if marks[OVERWRITTEN] is not None:
        return tirx.Evaluate(0)
    if marks[PLANE] is not None:
        return _plane(loop, *_numbers(marks[PLANE]))
    if marks[WIDENED] is not None:
        row, first, last = _numbers(marks[WIDENED])
        copy = _Copy.of([loop])
        return _row(copy, first, last) if row else _pixels(copy, last)
    return loop


def _numbers(mark: Any) -> list[int]:
    return [int(number) for number in str(mark).split()]


@dataclass(frozen=True)
class _Copy:
    """Loops that copy an image, widened, into a buffer: what is stored where, and under which condition."""

    loops: list[tirx.For]
    store: tirx.BufferStore
    condition: Any
    source: Any
    border: Any

    @classmethod
    def of(cls, loops: list[tirx.For]) -> _Copy:
        store = loops[-1].body
        while not isinstance(store, tirx.BufferStore):
            if isinstance(store, tirx.For):
                loops = [*loops, store]
            store = store.body
        if isinstance(store.value, ir.Call):
            condition, image, border = store.value.args
            return cls(loops, store, condition, _loaded(image), border)
        return cls(loops, store, tirx.const(1, "bool"), _loaded(store.value), None)  # there is no border

    def at(self, expr: Any, *elements: int) -> Any:
        """`expr` at these steps of the loops."""
        for loop, element in zip(self.loops, elements, strict=True):
            expr = _substituted(expr, loop.loop_var, tirx.const(element, loop.loop_var.ty.dtype))
        return Analyzer().simplify(expr)

    def into(self, *elements: int) -> Any:
        """The address of the element that is stored at these steps."""
        return tirx.address_of(tirx.BufferLoad(self.store.buffer, [self.at(i, *elements) for i in self.store.indices]))

    def widen(self, element: int, count: Any) -> tirx.Stmt:
        """Copy `count` elements from one step on."""
        source = tirx.address_of(self.at(self.source, element))
        function = WIDEN if str(self.store.buffer.ty.dtype) == "int16" else COPY
        return tirx.Evaluate(tirx.call_extern("int32", function, source, self.into(element), count))

    def fill(self, first: int, last: int) -> list[tirx.Stmt]:
        """The border from one step to before another."""
        if first >= last:
            return []
        count, value = tirx.const(last - first, "int32"), self.border.astype("int32")
        function = FILL if str(self.store.buffer.ty.dtype) == "int16" else SET
        return [tirx.Evaluate(tirx.call_extern("int32", function, self.into(first), count, value))]


def _substituted(expr: Any, variable: tirx.Var, value: Any) -> Any:
    return structural_map(expr, (tirx.Var, lambda var: value if var.same_as(variable) else var))


def _loaded(value: Any) -> Any:
    """The image's element, which may be widened."""
    return value.value if isinstance(value, tirx.Cast) else value


def _row(copy: _Copy, first: int, last: int) -> tirx.Stmt:
    """A row of an image; the whole of it is border where the row lies outside."""
    extent = int(copy.loops[0].extent)
    last = min(last, extent)
    inside = copy.at(copy.condition, first)
    filled = [copy.widen(first, tirx.const(last - first, "int32")), *copy.fill(0, first), *copy.fill(last, extent)]
    if isinstance(inside, tirx.IntImm):
        return tirx.SeqStmt(filled) if len(filled) > 1 else filled[0]
    return tirx.IfThenElse(inside, tirx.SeqStmt(filled) if len(filled) > 1 else filled[0], copy.fill(0, extent)[0])


def _pixels(copy: _Copy, last: int) -> tirx.Stmt:
    """Pixels one after the other, up to the image's last element; what would lie behind it is not read."""
    extent = tirx.const(int(copy.loops[0].extent), "int32")
    if copy.border is None:
        return copy.widen(0, extent)
    left = last - _position(copy.at(copy.source, 0))
    return copy.widen(0, tirx.min(extent, left.astype("int32")))


def _position(load: Any) -> Any:
    """The element of a dense buffer that is loaded, counted from its first."""
    position: Any = 0
    for extent, index in zip(load.source.ty.shape, load.indices, strict=True):
        position = position * extent + index
    return position


def _plane(loop: tirx.For, height: int, width: int, channels: int, top: int, left: int, border: int) -> tirx.Stmt:
    """The image of one channel as int16 or int8, or of four as int8."""
    copy = _Copy.of([loop])
    *outer, rows, columns = (int(one.extent) for one in copy.loops)
    wide = str(copy.store.buffer.ty.dtype) == "int16"
    kind = Planes if outer else Plane if wide else PortablePlane
    strides = copy.store.buffer.ty.strides
    pitch = int(strides[-2]) if len(strides) else columns
    symbol = kind(height, width, channels, top, left, rows, pitch, border).symbol
    start = [0] * len(outer)
    source, into = tirx.address_of(copy.at(copy.source, *start, top, left)), copy.into(*start, 0, 0)
    return tirx.Evaluate(tirx.call_extern("int32", symbol, source, into))
