"""What a kernel is known by: the same whatever it is called, another one for another kernel.

That other processes find the same is tested with what they look up, in test_tuning_search.
"""

from __future__ import annotations

import pytest
from tuning_support import calling, product
from tvm import te
from tvm.ir import IRModule
from tvm.s_tir import Schedule

from deploy.tuning.kernel_id import KernelIds, arguments, kernel_id, readable_name
from deploy.tuning.task import workload

pytestmark = pytest.mark.tvm


def of(func):
    return kernel_id(workload(func))


def sums(name="a", size=16, dtype="float32", constant=1.0):
    a = te.placeholder((size, size), name=name, dtype=dtype)
    func = te.compute((size, size), lambda i, j: a[i, j] + te.const(constant, dtype), name=f"{name}_out")
    return te.create_prim_func([a, func])


def test_names_do_not_count():
    assert of(sums("a")) == of(sums("something")) == of(sums("a").with_attr("global_symbol", "fused_17"))


def test_everything_else_does():
    schedule = Schedule(workload(sums()))
    schedule.split(schedule.get_loops(schedule.get_sblock("a_out"))[0], [None, 4])
    others = [
        sums(), sums(size=32), sums(dtype="int8", constant=1), sums(constant=2.0), product(16), product(24),
        calling("abort"), calling("abort", 1), calling("pause"), schedule.mod["main"], sums().with_attr("x", 1),
    ]  # fmt: skip
    assert len({of(func) for func in others}) == len(others)


def test_kernels_of_the_same_structural_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr("deploy.tuning.kernel_id.structural_hash", lambda mod: 1)
    ids = KernelIds()
    found = [ids.of(workload(func)) for func in (product(16), product(24), product(16), sums())]
    assert found[0] == found[2]
    assert len(set(found)) == 3


def test_words_for_people():
    assert arguments(workload(product(8))) == "float32[8,8] float32[8,8] float32[8,8]"
    assert arguments(IRModule({"main": sums(dtype="int8", constant=1)})) == "int8[16,16] int8[16,16]"
    assert readable_name("fused_conv2d12_add3_relu") == "fused_conv2d_add_relu"
    assert readable_name("take1") == readable_name("take") == "take"
    assert len(readable_name("fused_" * 40)) == 48
