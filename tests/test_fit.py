"""A model that does not fit its target is refused before anything is compiled, with what it lacks."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.aot.fit import check_fit, check_flash, io_bytes, weights_outside
from deploy.aot.plan import Plan
from deploy.errors import InputError
from deploy.firmware.size_map import FlashSizes
from deploy.graph import Call, Graph, Tensor
from deploy.target_memory import Memory, Pool
from deploy.targets import load_target

MICROBIT = load_target("cortex-m0-microbit")


def graph(weights=100, first=1000, second=2000):
    """x → a → b, and both of them → y; weights are read on the way."""
    tensors = [
        Tensor("x", (40,), "uint8", "input"),
        Tensor("w", (weights,), "uint8", "constant", values=np.zeros(weights, np.uint8)),
        Tensor("a", (1, first), "uint8", "activation"),
        Tensor("b", (1, second), "uint8", "activation"),
        Tensor("y", (60,), "uint8", "output"),
    ]
    calls = (Call("k0", ("x", "w"), ("a",)), Call("k1", ("a",), ("b",)), Call("k2", ("a", "b"), ("y",)))
    return Graph({t.name: t for t in tensors}, calls, ("x",), ("y",))


def test_what_fits_is_let_pass():
    check_fit("net", graph(), MICROBIT)
    check_fit("net", graph(weights=1 << 18, first=8000, second=16384 - 8000 - 100 - 4), MICROBIT)


def test_too_many_weights():
    with pytest.raises(InputError) as caught:
        check_fit("net", graph(weights=(1 << 18) + 10), MICROBIT)
    assert str(caught.value) == (
        "model 'net' does not fit cortex-m0-microbit: its 256 KiB of weights are 10 B more than the 256 KiB of flash; "
        "make the model smaller, or take a target with more memory"
    )


def test_too_large_activations_name_those_alive_at_the_peak():
    with pytest.raises(InputError) as caught:
        check_fit("net", graph(first=10240, second=8192), MICROBIT)
    assert str(caught.value) == (
        "model 'net' does not fit cortex-m0-microbit: its 18 KiB of activations and 100 B of inputs and outputs are "
        "2.1 KiB more than the 16 KiB of RAM; alive at the peak: a 1x10240 uint8 (10 KiB), b 1x8192 uint8 (8 KiB); "
        "make the model smaller, or take a target with more memory"
    )


def test_a_finished_plan_counts_as_it_is():
    with pytest.raises(InputError, match=r"its 16 KiB of activations and 100 B of inputs and outputs are 100 B more"):
        check_fit("net", graph(), MICROBIT, Plan({"a": 0, "b": 8192}, 16384, 16384))


def test_before_there_is_a_plan_a_result_may_lie_over_a_dying_input():
    made = graph(first=10240, second=8192)
    dying = replace(made, calls=(*made.calls[:2], Call("k2", ("b",), ("y",))))
    check_fit("net", dying, MICROBIT)


def test_a_compiled_library_must_fit_too():
    check_flash("net", FlashSizes(1 << 17, 1 << 17, 0, 0), MICROBIT)
    with pytest.raises(InputError, match=r"its 257 KiB of library are 1 KiB more than the 256 KiB of flash"):
        check_flash("net", FlashSizes(200 << 10, 50 << 10, 7 << 10, 0), MICROBIT)


def more(**memory):
    """The micro:bit with more memories."""
    return replace(MICROBIT, memory=replace(MICROBIT.memory, **memory))


def test_pools_count_with_the_ram_until_there_is_a_plan():
    target = more(pools=(Pool("dtcm", 2048), Pool("sram", 1024)))
    made = graph(first=10240, second=8192)
    check_fit("net", made, target)
    with pytest.raises(InputError) as caught:
        check_fit("net", graph(first=10240, second=9216), target)
    assert str(caught.value) == (
        "model 'net' does not fit cortex-m0-microbit: its 19 KiB of activations and 100 B of inputs and outputs are "
        "100 B more than the 19 KiB of RAM, dtcm and sram; alive at the peak: a 1x10240 uint8 (10 KiB), b 1x9216 "
        "uint8 (9 KiB); make the model smaller, or take a target with more memory"
    )


def test_what_a_plan_has_in_no_pool_must_fit_the_ram():
    target, made = more(pools=(Pool("dtcm", 8192),)), graph(first=16384, second=8192)
    plan = Plan({"a": 0, "b": 0}, 16384, 24576, 8, pools={"dtcm": 8192}, pool_of={"b": "dtcm"})
    with pytest.raises(InputError) as caught:
        check_fit("net", made, target, plan)
    assert str(caught.value) == (
        "model 'net' does not fit cortex-m0-microbit: its 16 KiB of activations that are not in dtcm and 100 B of "
        "inputs and outputs are 100 B more than the 16 KiB of RAM; alive at the peak: a 1x16384 uint8 (16 KiB); make "
        "the model smaller, or take a target with more memory"
    )
    check_fit("net", made, target, replace(plan, arena_bytes=16000))


def test_weights_fit_one_of_two_flash_memories():
    huge = graph(weights=(1 << 20) + 1)
    outside = more(external_flash=2 << 20)
    check_fit("net", huge, outside)
    with pytest.raises(InputError, match="768 KiB more than the 256 KiB of flash;"):
        check_fit("net", huge, more(external_flash=2 << 20, weights="internal"))
    with pytest.raises(InputError, match="its 1 MiB of weights are 1 B more than the 1 MiB of external flash;"):
        check_fit("net", huge, more(external_flash=1 << 20))
    with pytest.raises(InputError, match="of external flash;"):
        check_fit("net", graph(weights=1000), more(external_flash=999, weights="external"))
    check_fit("net", graph(weights=1000), more(external_flash=999))


def test_weights_go_outside_where_they_are_to_or_must():
    sizes = FlashSizes(200 << 10, 50 << 10, 7 << 10, 0)
    outside = more(external_flash=2 << 20)
    assert weights_outside(sizes, outside.memory)
    assert not weights_outside(replace(sizes, glue=0), outside.memory)
    assert weights_outside(replace(sizes, glue=0), replace(outside.memory, weights="external"))
    assert not weights_outside(sizes, replace(outside.memory, weights="internal"))
    assert not weights_outside(sizes, MICROBIT.memory)
    gone = sizes.outside()
    assert (gone.weights, gone.external, gone.total) == (0, 200 << 10, 57 << 10)
    check_flash("net", gone, outside)
    with pytest.raises(InputError, match="its 200 KiB of weights are 72 KiB more than the 128 KiB of external flash"):
        check_flash("net", gone, more(external_flash=128 << 10))
    with pytest.raises(InputError, match="its 300 KiB of library without its weights are 44 KiB more than the 2"):
        check_flash("net", replace(gone, code=300 << 10, glue=0), outside)


def test_only_microcontrollers_are_limited():
    huge = graph(weights=1 << 20, first=1 << 20)
    check_fit("net", huge, load_target("host"))
    check_fit("net", huge, replace(MICROBIT, memory=Memory()))


@given(st.integers(1, 30000), st.integers(1, 30000), st.integers(1000, 60000))
def test_more_memory_never_refuses_what_less_accepts(first, second, ram):
    made = graph(first=first, second=second)

    def fits(size):
        try:
            check_fit("net", made, replace(MICROBIT, memory=Memory(ram=size)))
        except InputError:
            return False
        return True

    assert fits(ram) <= fits(ram + 1000)
    assert fits(ram) == (-(-first // 8) * 8 + -(-second // 8) * 8 + io_bytes(made) <= ram)
