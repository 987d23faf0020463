"""The memory plan, and the check of it: a plan is right, and a wrong one is found out."""

from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from built import SHARED, build
from hypothesis import given
from hypothesis import strategies as st

from deploy import model
from deploy.aot.place import place
from deploy.aot.plan import ALIGNMENT, Lifetime, Plan, greedy, lifetimes, live_bound, plan, problem, shares
from deploy.aot.plan_check import violations
from deploy.aot.weights import pack_weights
from deploy.graph import Call, Graph, Tensor


@st.composite
def graphs(draw):
    """Any order of calls: each reads values that exist (some through an alias), writes new ones, has workspaces."""
    tensors = {"x": Tensor("x", (draw(st.integers(1, 300)),), "uint8", "input")}
    readable, calls = ["x"], []
    for number in range(draw(st.integers(1, 12))):
        inputs = tuple(draw(st.lists(st.sampled_from(readable), min_size=1, max_size=3)))
        new = []
        for index in range(draw(st.integers(1, 3))):
            kind = "workspace" if index == 2 else "activation"
            name = f"{kind[0]}{number}_{index}"
            tensors[name] = Tensor(name, (draw(st.integers(1, 1000)),), "uint8", kind)
            new.append(name)
        outputs = tuple(name for name in new if tensors[name].kind == "activation")
        calls.append(Call("k", inputs, outputs, tuple(name for name in new if name not in outputs)))
        for name in outputs:
            readable.append(name)
            if draw(st.booleans()):
                tensors[f"alias_{name}"] = replace(tensors[name], name=f"alias_{name}", alias_of=name)
                readable.append(f"alias_{name}")
    tensors["y"] = Tensor("y", (1,), "uint8", "output")
    calls.append(Call("last", (readable[-1],), ("y",)))
    return Graph(tensors, tuple(calls), ("x",), ("y",))


@given(graphs())
def test_every_plan_is_right_and_no_smaller_than_the_bound(graph):
    alive = lifetimes(graph)
    result = plan(alive)
    assert violations(graph, result) == []
    assert set(result.offsets) == {t.name for t in alive}
    assert live_bound(alive) == result.bound_bytes <= result.arena_bytes <= sum(-(-t.nbytes // 64) * 64 for t in alive)


def allowing(numbers):
    """Some outputs of some calls may be written over some inputs: those of which a number says so."""
    return lambda call, read, written: bool(numbers >> (crc32(f"{call.outputs} {read} {written}".encode()) % 16) & 1)


in_place = st.integers(0, (1 << 16) - 1).map(allowing) | st.just(allowing((1 << 16) - 1))


@given(graphs(), in_place)
def test_a_plan_in_place_is_right_and_between_its_bound_and_the_best_greedy_one(graph, allowed):
    alive, over = lifetimes(graph), shares(graph, allowed)
    result, to_place = plan(alive, shares=over), problem(alive, shares=over)
    assert violations(graph, result, allowed) == []
    assert live_bound(alive, shares=over) == result.in_place_bound_bytes <= result.arena_bytes
    assert result.in_place_bound_bytes <= result.bound_bytes == live_bound(alive)
    assert result.arena_bytes <= min(to_place.extent(place(to_place, choice)) for choice in greedy(alive, over))


@given(graphs(), in_place)
def test_what_lies_over_each_other_is_allowed_to_and_nothing_else_is_there(graph, allowed):
    alive, over = {t.name: t for t in lifetimes(graph)}, shares(graph, allowed)
    result = plan(list(alive.values()), shares=over)
    for one in alive.values():
        for other in alive.values():
            start, stop = result.offsets[other.name], result.offsets[other.name] + other.nbytes
            apart = result.offsets[one.name] + one.nbytes <= start or stop <= result.offsets[one.name]
            if one is other or not one.overlaps(other) or apart:
                continue
            assert result.offsets[one.name] == start
            assert other.name in over.get(one.name, ()) or one.name in over.get(other.name, ())


@given(graphs())
def test_a_plan_in_place_is_wrong_where_nothing_may_be(graph):
    """The check does not take the planner's word for it."""
    result = plan(lifetimes(graph), shares=shares(graph, lambda *_: True))
    wrong = violations(graph, result, lambda *_: False)
    assert wrong == violations(graph, result)
    assert all("over" in problem or "lost" in problem for problem in wrong)
    if result.arena_bytes < result.bound_bytes:
        assert wrong


def test_an_input_may_be_overwritten_only_where_it_dies_and_from_its_start_on():
    graph = chain()
    assert shares(graph, lambda *_: True) == {}  # a is read again by the last call
    shorter = replace(graph, calls=(*graph.calls[:2], Call("third", ("b",), ("y",))))
    assert shares(shorter, lambda *_: True) == {"b": {"a"}}
    assert plan(lifetimes(shorter), shares={"b": frozenset("a")}).offsets == {"a": 0, "b": 0}
    assert violations(graph, Plan({"a": 0, "b": 0}, 64, 64), lambda *_: True) == [
        "call 2 (third) reads a, of which 64 bytes are lost"
    ]
    shifted = replace(shorter, tensors={**shorter.tensors, "a": replace(shorter.tensors["a"], shape=(128,))})
    assert violations(shifted, Plan({"a": 0, "b": 64}, 128, 192), lambda *_: True) == [
        "call 1 (second) writes b over a"
    ]


def test_an_input_that_comes_twice_must_be_free_at_both_places():
    tensors = [Tensor("x", (64,), "uint8", "input"), *(Tensor(n, (64,), "uint8", "activation") for n in "ab")]
    calls = (Call("first", ("x",), ("a",)), Call("second", ("a", "x", "a"), ("b",)), Call("third", ("b",), ("y",)))
    graph = Graph({t.name: t for t in [*tensors, Tensor("y", (64,), "uint8", "output")]}, calls, ("x",), ("y",))
    assert shares(graph, lambda call, read, written: read == 0) == {}
    assert shares(graph, lambda call, read, written: read in (0, 2)) == {"b": {"a"}}
    at_once = Plan({"a": 0, "b": 0}, 64, 128)
    assert violations(graph, at_once, lambda call, read, written: read == 0) == ["call 1 (second) writes b over a"]
    assert violations(graph, at_once, lambda call, read, written: read in (0, 2)) == []


@given(graphs(), st.data())
def test_overlapping_neighbours_are_found(graph, data):
    """Put a tensor where another one lies that is alive at the same time."""
    alive, result = lifetimes(graph), plan(lifetimes(graph))
    pairs = [(a.name, b.name) for a in alive for b in alive if a is not b and a.overlaps(b)]
    if not pairs:
        return
    moved, onto = data.draw(st.sampled_from(pairs))
    wrong = replace(result, offsets={**result.offsets, moved: result.offsets[onto]}, arena_bytes=1 << 30)
    assert violations(graph, wrong)


@given(graphs(), st.data())
def test_a_misaligned_tensor_is_found(graph, data):
    result = plan(lifetimes(graph))
    name = data.draw(st.sampled_from(sorted(result.offsets)))
    offset = result.offsets[name] + data.draw(st.sampled_from([1, 4, 32, -ALIGNMENT * 1000]))
    wrong = replace(result, offsets={**result.offsets, name: offset}, arena_bytes=1 << 30)
    assert any("not aligned" in problem and name in problem for problem in violations(graph, wrong))


@given(graphs())
def test_an_arena_that_is_too_small_is_found(graph):
    result = plan(lifetimes(graph))
    ends = {name: result.offsets[name] + graph.tensors[name].nbytes for name in result.offsets}
    name = max(ends, key=lambda n: ends[n])
    wrong = replace(result, arena_bytes=ends[name] - 1)
    assert any("beyond the arena" in problem for problem in violations(graph, wrong))


def chain() -> Graph:
    """x → a → b → y, where the last call reads both a and b."""
    tensors = [Tensor("x", (64,), "uint8", "input"), Tensor("a", (64,), "uint8", "activation")]
    tensors += [Tensor("b", (64,), "uint8", "activation"), Tensor("y", (64,), "uint8", "output")]
    calls = (Call("first", ("x",), ("a",)), Call("second", ("a",), ("b",)), Call("third", ("a", "b"), ("y",)))
    return Graph({t.name: t for t in tensors}, calls, ("x",), ("y",))


def test_problems_name_the_call_and_the_tensors():
    assert violations(chain(), Plan({"a": 0, "b": 64}, 128, 128)) == []
    assert violations(chain(), Plan({"a": 0, "b": 0}, 64, 64)) == [
        "call 1 (second) writes b over a",
        "call 2 (third) reads a, of which 64 bytes are lost",
    ]


def test_a_value_that_nothing_wrote_is_found():
    graph = replace(chain(), calls=chain().calls[1:])
    assert (
        violations(graph, Plan({"a": 0, "b": 64}, 128, 128))[0] == "call 0 (second) reads a, of which 64 bytes are lost"
    )


def test_two_results_of_one_call_may_not_overlap():
    tensors = [Tensor("x", (64,), "uint8", "input"), *(Tensor(n, (64,), "uint8", "activation") for n in "ab")]
    graph = Graph({t.name: t for t in tensors}, (Call("k", ("x",), ("a", "b")),), ("x",), ())
    assert violations(graph, Plan({"a": 0, "b": 0}, 64, 64)) == ["call 0 (k) writes b over a"]


def test_memory_is_reused_when_its_tensor_is_dead():
    alive = [Lifetime(f"t{i}", 100, i, i + 1) for i in range(20)]
    result = plan(alive)
    assert result.arena_bytes == result.bound_bytes == 2 * 128


def test_nothing_to_place_needs_no_arena():
    assert plan([]) == Plan({}, 0, 0)


def test_equal_weights_share_their_place_and_are_aligned():
    a, b = np.arange(5, dtype=np.float32), np.arange(7, dtype=np.int8)
    constants = {n: Tensor(n, v.shape, str(v.dtype), "constant", values=v) for n, v in {"a": a, "b": b, "c": a}.items()}
    unused = {"d": Tensor("d", (1,), "int8", "constant", values=np.ones(1, np.int8))}
    graph = Graph({**constants, **unused}, (Call("k", ("a", "b", "c"), ()),), (), ())
    weights = pack_weights(graph)
    assert weights.offsets == {"a": 0, "b": 64, "c": 0}
    assert weights.data == a.tobytes() + bytes(44) + b.tobytes()
    assert graph.constant_bytes == 20 + 7 + 20


@pytest.mark.tvm
@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize("name", ["ic_resnet8_f32", "vww_mobilenetv1_f32", "ad_autoencoder_f32"])
def test_real_models_need_little_more_than_the_bound(name):
    sizes = build(model.load(SHARED / "models" / "mlperf-tiny" / f"{name}.tflite")).facts["sizes"]
    assert sizes["arena_in_place_bound_bytes"] <= sizes["arena_bytes"] <= 1.05 * sizes["arena_bound_bytes"]
