"""May a result be written over an input? The answer is compared with what really happens in shared memory."""

from textwrap import indent

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import script

from deploy.kernels import in_place
from deploy.kernels.in_place import may_share

pytestmark = pytest.mark.tvm

HEAD = """\
@T.prim_func(s_tir=True)
def function(A: T.Buffer(({read},), "{dtype}"), B: T.Buffer(({written},), "{to}")):
"""


def kernel(body, read=16, written=16, dtype="int8", to="int8"):
    """A function of A and B; `body` in TVMScript."""
    return script.from_source(HEAD.format(read=read, written=written, dtype=dtype, to=to) + indent(body, "    "))


@st.composite
def affine(draw):
    """for i, j: B[an index] = A[another index] + 100, each a sum of multiples, modulo the size."""
    outer, inner, size = draw(st.integers(1, 4)), draw(st.integers(1, 4)), 16
    p, q, r, s, t, u = (draw(st.integers(0, 5)) for _ in range(6))
    return outer, inner, (p, q, r), (s, t, u), size, draw(st.sampled_from(["T.serial", "T.parallel", "T.vectorized"]))


def index(numbers, i, j, size):
    p, q, r = numbers
    return (i * p + j * q + r) % size


def in_shared_memory(made, backwards):
    """Every value that is read, where A and B are one array; and where they are two."""
    outer, inner, read, written, size, _ = made
    steps = [(i, j) for i in range(outer) for j in (range(inner)[::-1] if backwards else range(inner))]
    memory, source, shared, separate = list(range(size)), list(range(size)), [], []
    for i, j in steps:
        value = memory[index(read, i, j, size)]
        shared.append(value)
        separate.append(source[index(read, i, j, size)])
        memory[index(written, i, j, size)] = value + 100
    return shared, separate


@given(affine())
def test_the_answer_is_what_happens(made):
    outer, inner, read, written, size, kind = made
    text = f"for i in T.serial({outer}):\n    for j in {kind}({inner}):\n        B[{{}}] = A[{{}}] + T.int8(100)\n"
    at = [f"(i * {p} + j * {q} + {r}) % {size}" for p, q, r in (written, read)]
    orders = (False,) if kind == "T.serial" else (False, True)
    runs = [in_shared_memory(made, backwards) for backwards in orders]
    assert may_share(kernel(text.format(*at)), 0, 1) == all(shared == separate for shared, separate in runs)


ALLOWED = {
    "element by element": "for i in range(16):\n    B[i] = A[i] + T.int8(1)",
    "in parallel": "for i in T.parallel(16):\n    B[i] = A[i] + T.int8(1)",
    "behind what is read": "for i in range(15):\n    B[i] = A[i + 1]",
    "after all is read": (
        "C = T.alloc_buffer((16,), 'int8')\nfor i in range(16):\n    C[i] = A[i]\n"
        "for i in range(16):\n    B[i] = C[15 - i]"
    ),
    "where a condition keeps out": "for i in range(32):\n    if i < 16:\n        B[i] = A[i % 16]",
    "where a choice keeps out": "for i in range(16):\n    B[i] = T.if_then_else(i < 1, A[15 - i], T.int8(0))",
    "a block": "for i in range(16):\n    with T.sblock('b'):\n        v = T.axis.spatial(16, i)\n        B[v] = A[v]",
}
REFUSED = {
    "backwards": "for i in range(16):\n    B[i] = A[15 - i]",
    "before what is read": "for i in range(15):\n    B[i + 1] = A[i]",
    "read again": "for i in range(16):\n    B[i] = A[i]\nfor i in range(16):\n    B[i] = A[i]",
    "in parallel, behind what is read": "for i in T.parallel(15):\n    B[i] = A[i + 1]",
    "in lanes, behind what is read": "for i in T.vectorized(15):\n    B[i] = A[i + 1]",
    "data tell where": "for i in range(16):\n    B[i] = A[T.Cast('int32', A[i])]",
    "by address": "for i in range(16):\n    B[i] = A[i]\nT.evaluate(T.call_extern('int32', 'f', T.address_of(A[0])))",
    "the result by address": (
        "for i in range(16):\n    B[i] = A[i]\nT.evaluate(T.call_extern('int32', 'f', T.address_of(B[0])))"
    ),
    "by pointer": "for i in range(16):\n    B[i] = A[i]\nT.evaluate(T.call_extern('int32', 'f', A.data))",
    "an unknown number of times": "i = T.alloc_buffer((1,), 'int32')\nwhile i[0] < 9:\n    B[0] = A[0]",
    "the input is written": "for i in range(16):\n    B[i] = A[i]\n    A[i] = T.int8(0)",
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_is_allowed(case):
    assert may_share(kernel(ALLOWED[case]), 0, 1)


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    assert not may_share(kernel(REFUSED[case]), 0, 1)


def test_other_types_are_refused():
    assert not may_share(kernel("for i in range(16):\n    B[i] = T.Cast('uint8', A[i])", to="uint8"), 0, 1)
    assert not may_share(kernel("for i in range(4):\n    B[i] = T.Cast('int32', A[i])", to="int32", written=4), 0, 1)


def test_a_matched_part_of_a_buffer_is_refused():
    body = (
        "for i in range(4):\n    with T.sblock('b'):\n        v = T.axis.spatial(4, i)\n"
        "        C = T.match_buffer(A[v * 4:v * 4 + 4], (4,), 'int8', offset_factor=1)\n"
        "        for j in range(4):\n            B[v * 4 + j] = C[j]"
    )
    assert not may_share(kernel(body), 0, 1)


def test_what_would_take_long_is_refused(monkeypatch):
    made = kernel("for i in range(16):\n    B[i] = A[i]")
    assert may_share(made, 0, 1)
    monkeypatch.setattr(in_place, "EXECUTIONS", 15)
    assert not may_share(made, 0, 1)
