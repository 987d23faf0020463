"""The benchmark of the tuning engine: its arithmetic, our half of it, and how it looks at memory and load."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import tuning
from hypothesis import given
from hypothesis import strategies as st
from tuning_support import calling, product, this_machine

pytest.importorskip("psutil", reason="stock MetaSchedule needs psutil, which is not installed")
pytestmark = pytest.mark.tvm
SECONDS = st.none() | st.floats(min_value=1e-9, max_value=1e3)


@given(st.lists(SECONDS))
def test_an_order_agrees_with_itself_and_not_with_its_reverse(times):
    agreed = tuning.agreement(times, times)
    assert agreed in (1.0, None)
    opposite = tuning.agreement(times, [None if one is None else 1 / one for one in times])
    assert opposite in (0.0, None)


def test_times_that_hardly_differ_have_no_order():
    assert tuning.agreement([1.0, 1.05], [1.05, 1.0]) is None
    assert tuning.agreement([1.0, 1.2, 2.0], [1.0, 3.0, 2.0]) == pytest.approx(2 / 3)


def test_a_ratio_needs_something_to_compare_with():
    def of(stock):
        return tuning.Rate("", 4, {"stock": stock, "ours": [60.0, 90.0, 30.0]}, {}, {}, None).ratio

    assert of([6.0, 6.0, 6.0]) == 10.0
    assert of([0.0, 0.0, 6.0]) is None


def test_our_half_builds_and_measures_and_counts_failures():
    from deploy.kernels.default import default_schedule
    from deploy.kernels.for_target import machine_for

    target = this_machine()
    schedules = [default_schedule(func, machine_for(target)) for func in (product(16), calling("abort"))]
    timed = tuning.build_and_run(schedules, target)
    assert timed.seconds[0] > 0
    assert (timed.seconds[1], timed.failed) == (None, 1)
    assert timed.per_minute == pytest.approx(60 / timed.wall_s)
    assert timed.cpu_s > 0


def test_memory_is_that_of_all_processes():
    child = subprocess.Popen([sys.executable, "-c", "kept = bytearray(100 << 20); print(1, flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        child.stdout.readline()
        assert child.pid in tuning.family(os.getpid())
        assert tuning.own_bytes(child.pid) > 100 << 20
        with tuning.Memory(every_s=0.02) as memory:
            time.sleep(0.2)
    finally:
        child.communicate(b"\n")
    assert memory.samples
    assert all(mib > 100 for _, mib in memory.samples)
    assert tuning.own_bytes(child.pid) == 0


def test_every_core_is_busy_and_then_free_again():
    before = set(tuning.family(os.getpid()))
    with tuning.busy():
        children = set(tuning.family(os.getpid())) - before
        assert len(children) == len(os.sched_getaffinity(0))
    assert not children & set(tuning.family(os.getpid()))
