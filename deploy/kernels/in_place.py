"""May a kernel's result be written over one of its inputs? Answered by following every access of a scheduled PrimFunc.

Every statement has a moment in the kernel's run, a number that grows with the loops around it. A result may take an
input's place where no element is read after the moment at which the result's element at the same place is written:
an element-wise kernel reads what it overwrites in the same statement; a depthwise one copies a channel before it writes
it; a product of fewer outputs than inputs stays behind of what it reads. Shapes are static, so all moments are known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import ir, s_tir, tirx
from tvm_ffi import WalkResult, structural_walk

EXECUTIONS = 1 << 22  # of one statement; where there are more, the answer is no

Numbers = npt.NDArray[np.int64]
_UNORDERED = (tirx.ForKind.PARALLEL, tirx.ForKind.VECTORIZED)
_LOOPS = (*_UNORDERED, tirx.ForKind.SERIAL, tirx.ForKind.UNROLLED)


class _UnknownError(Exception):
    """The function does something that is not followed here."""


@dataclass(frozen=True)
class _Loop:
    """A loop around a statement; `moments` pass in one of its steps; `unordered` where steps run at the same time."""

    var: Any
    extent: int
    moments: int
    unordered: bool


@dataclass(frozen=True)
class _Access:
    """Element `indices` of a buffer, read or written at `moment` of the first step of all `loops`, and in every other.

    conditions: all of them must hold. values: what the variables stand for, other than those of the loops.
    """

    writes: bool
    shape: tuple[int, ...]
    indices: tuple[Any, ...]
    conditions: tuple[Any, ...] = ()
    moment: int = 0
    loops: tuple[_Loop, ...] = ()
    values: Mapping[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Part:
    """Some of a function: how many moments it takes, and what it accesses."""

    moments: int
    accesses: tuple[_Access, ...] = ()


def may_share(func: tirx.PrimFunc, read: int, written: int) -> bool:
    """Whether parameter `written` of the scheduled `func` may start at the address of parameter `read`.

    False where it cannot be shown: other element types, accesses by address, indices that depend on data.
    """
    source, result = func.params[read], func.params[written]
    if str(source.ty.dtype) != str(result.ty.dtype):
        return False
    try:
        accesses = [_decisive(access) for access in _Follow(source, result).statement(func.body).accesses]
        if any(prod(loop.extent for loop in access.loops) > EXECUTIONS for access in accesses):
            return False
        ways = (False, True) if any(loop.unordered for access in accesses for loop in access.loops) else (False,)
        return all(_in_order(accesses, backwards) for backwards in ways)
    except _UnknownError:
        return False


class _Follow:
    """Parts of a function, from its statements: what they read of one buffer and write to another."""

    def __init__(self, source: Any, result: Any) -> None:
        self._source = source
        self._result = result

    def statement(self, node: Any) -> _Part:
        """The part that a statement is."""
        match node:
            case tirx.SeqStmt():
                return _in_turn(*map(self.statement, node.seq))
            case tirx.For():
                return self._loop(node)
            case s_tir.SBlockRealize():
                return self._block(node)
            case tirx.IfThenElse():
                parts = [self._expressions(node.condition), _under(node.condition, self.statement(node.then_case))]
                if node.else_case is not None:
                    parts.append(_under(tirx.Not(node.condition), self.statement(node.else_case)))
                return _in_turn(*parts)
            case tirx.BufferStore():
                part = self._expressions(node.value, *node.indices)
                if node.buffer.same_as(self._source):
                    raise _UnknownError
                written = (_access(node.buffer, node.indices, True),) if node.buffer.same_as(self._result) else ()
                return _Part(1, (*part.accesses, *written))
            case tirx.Evaluate() | tirx.Bind():
                return self._expressions(node.value)
            case tirx.AllocBuffer():
                return _Part(0)
        raise _UnknownError

    def _loop(self, node: tirx.For) -> _Part:
        if node.kind not in _LOOPS or int(node.min) != 0 or (node.step is not None and int(node.step) != 1):
            raise _UnknownError
        body, extent = self.statement(node.body), int(node.extent)
        loop = _Loop(node.loop_var, extent, body.moments, node.kind in _UNORDERED)
        return _Part(extent * body.moments, tuple(replace(a, loops=(loop, *a.loops)) for a in body.accesses))

    def _block(self, node: s_tir.SBlockRealize) -> _Part:
        block = node.block
        regions = [region.source.source for region in block.match_buffers]
        if any(buffer.same_as(one) for buffer in regions for one in (self._source, self._result)):
            raise _UnknownError
        parts = [self._expressions(node.predicate, *node.iter_values)]
        parts += [self.statement(one) for one in (block.init, block.body) if one is not None]
        values = {axis.var: value for axis, value in zip(block.iter_vars, node.iter_values, strict=True)}
        whole = _under(node.predicate, _in_turn(*parts))
        return _Part(whole.moments, tuple(replace(a, values={**values, **a.values}) for a in whole.accesses))

    def _expressions(self, *expressions: Any) -> _Part:
        """What is read, all at one moment."""
        if any(map(self._otherwise_used, expressions)):
            raise _UnknownError
        return _Part(1, tuple(access for expression in expressions for access in self._reads(expression)))

    def _reads(self, expression: Any) -> list[_Access]:
        found: list[_Access] = []

        def load(node: Any) -> None:
            if node.source.same_as(self._source):
                found.append(_access(node.source, node.indices, False))

        def call(node: ir.Call) -> WalkResult:
            if _name(node) != "if_then_else":
                return WalkResult.ADVANCE
            condition, *cases = node.args
            found.extend(self._reads(condition))
            for case, holds in zip(cases, (condition, tirx.Not(condition)), strict=True):
                found.extend(replace(a, conditions=(*a.conditions, holds)) for a in self._reads(case))
            return WalkResult.SKIP

        structural_walk(expression, [(ir.Call, call), (ir.TensorLoad, load)], order="pre")
        return found

    def _otherwise_used(self, expression: Any) -> bool:
        """Whether one of the buffers appears other than in reads of elements: it could be used in any way."""
        loads: list[Any] = []
        named: list[Any] = []

        def variable(node: Any) -> None:
            named.append(node)

        def address(node: ir.Call) -> None:
            if _name(node) == "address_of":
                structural_walk(node, (ir.Var, variable))  # named twice, then, and loaded once

        def load(node: Any) -> None:
            loads.append(node.source)

        structural_walk(expression, [(ir.TensorLoad, load), (ir.Var, variable), (ir.Call, address)])
        return sum(map(self._concerns, named)) != sum(map(self._concerns, loads))

    def _concerns(self, buffer: Any) -> bool:
        return bool(buffer.same_as(self._source) or buffer.same_as(self._result))


def _name(call: ir.Call) -> str:
    return str(getattr(call.op, "name", "")).rpartition(".")[-1]


def _under(condition: Any, part: _Part) -> _Part:
    """A part that is executed where a condition holds."""
    return replace(part, accesses=tuple(replace(a, conditions=(condition, *a.conditions)) for a in part.accesses))


def _access(buffer: Any, indices: Any, writes: bool) -> _Access:
    return _Access(writes, tuple(int(extent) for extent in buffer.ty.shape), tuple(indices))


def _in_turn(*parts: _Part) -> _Part:
    moments, accesses = 0, []
    for part in parts:
        accesses += [replace(access, moment=access.moment + moments) for access in part.accesses]
        moments += part.moments
    return _Part(moments, tuple(accesses))


def _decisive(access: _Access) -> _Access:
    """An access without loops that touch the same elements again and again: the last read counts, the first write."""
    needed = {variable for one in (*access.indices, *access.conditions) for variable in _variables(one, access.values)}
    kept = tuple(loop for loop in access.loops if loop.var in needed)
    later = sum((loop.extent - 1) * loop.moments for loop in access.loops if loop.var not in needed)
    return replace(access, loops=kept, moment=access.moment + (0 if access.writes else later))


def _variables(expression: Any, values: Mapping[Any, Any]) -> set[Any]:
    found: list[Any] = []
    structural_walk(expression, (ir.Var, found.append))
    inner = [_variables(values[one], values) for one in set(found) if one in values]
    return set(found).union(*inner)


def _in_order(accesses: list[_Access], backwards: bool) -> bool:
    """Whether no element is read after it was written, where unordered loops run in one of two directions.

    Two steps of an unordered loop that touch the same element are out of order in one of the two.
    """
    size = max((prod(access.shape) for access in accesses), default=0)
    last_read = np.full(size, -1, np.int64)
    first_written = np.full(size, np.iinfo(np.int64).max, np.int64)
    for access in accesses:
        elements, moments = _executed(access, backwards)
        if access.writes:
            np.minimum.at(first_written, elements, moments)
        else:
            np.maximum.at(last_read, elements, moments)
    return bool((last_read <= first_written).all())


def _executed(access: _Access, backwards: bool) -> tuple[Numbers, Numbers]:
    """Every element that an access touches, with the moment; what lies outside of the buffer is not touched."""
    extents = [loop.extent for loop in access.loops]
    moments = np.full(extents, access.moment, np.int64)
    values = dict(access.values)
    for axis, loop in enumerate(access.loops):
        steps = np.arange(loop.extent).reshape([-1 if other == axis else 1 for other in range(len(extents))])
        values[loop.var] = steps
        moments += (loop.extent - 1 - steps if backwards and loop.unordered else steps) * loop.moments
    element, inside = np.zeros(extents, np.int64), np.ones(extents, bool)
    for index, extent in zip(access.indices, access.shape, strict=True):
        position = _value(index, values)
        element = element * extent + position
        inside &= (position >= 0) & (position < extent)
    for condition in access.conditions:
        inside &= _holds(condition, values)
    return element[inside], moments[inside]


def _holds(condition: Any, values: dict[Any, Any]) -> Any:
    """Where a condition may hold: everywhere, if it depends on data."""
    try:
        return np.asarray(_value(condition, values), bool)
    except _UnknownError:
        return True


def _value(expression: Any, values: dict[Any, Any]) -> Any:
    """An index in every step of the loops around it, with as many axes as there are loops, or one number."""
    match expression:
        case ir.Var():
            if expression not in values:
                raise _UnknownError
            if isinstance(values[expression], ir.Expr):
                values[expression] = _value(values[expression], values)
            return values[expression]
        case tirx.IntImm():
            return np.int64(int(expression.value))
        case tirx.Cast():
            return _value(expression.value, values)
        case tirx.Not():
            return ~np.asarray(_value(expression.a, values), bool)
    operation = _OPERATIONS.get(type(expression))
    if operation is None:
        raise _UnknownError
    return operation(_value(expression.a, values), _value(expression.b, values))


_OPERATIONS: dict[type, np.ufunc] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.LT: np.less,
    tirx.LE: np.less_equal,
    tirx.GT: np.greater,
    tirx.GE: np.greater_equal,
    tirx.EQ: np.equal,
    tirx.NE: np.not_equal,
    tirx.And: np.logical_and,
    tirx.Or: np.logical_or,
}
