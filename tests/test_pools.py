"""Plans over several memories: right by the independent check, within all limits, and the fastest memory well used."""

from dataclasses import replace
from itertools import combinations

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_plan import graphs, in_place

from deploy.aot.plan import Plan, lifetimes, live_bound, plan, shares
from deploy.aot.plan_check import violations
from deploy.aot.pools import Limits, plan_pools, uses
from deploy.graph import Call, Graph, Tensor

limits = st.lists(st.integers(0, 4000), min_size=1, max_size=3).map(
    lambda sizes: {f"p{i}": s for i, s in enumerate(sizes)}
)
rams = st.none() | st.integers(0, 5000)


@settings(max_examples=30)
@given(graphs(), in_place, limits, rams)
def test_every_plan_is_right_and_within_the_pools(graph, allowed, sizes, ram):
    alive, over = lifetimes(graph), shares(graph, allowed)
    found = plan_pools(graph, over, Limits(sizes, ram, 8))
    assert violations(graph, found, allowed, sizes) == []
    assert list(found.offsets) == [t.name for t in alive]
    assert set(found.pools) == set(found.pool_of.values()) <= set(sizes)
    assert list(found.pools) == [name for name in sizes if name in found.pools]
    assert all(0 < nbytes <= sizes[name] for name, nbytes in found.pools.items())
    assert found.bound_bytes == live_bound(alive, 8)
    assert found.in_place_bound_bytes <= found.arena_bytes + sum(found.pools.values())
    assert found == plan_pools(graph, over, Limits(sizes, ram, 8))


@settings(max_examples=30)
@given(graphs(), in_place, limits)
def test_what_is_in_ram_found_no_room_in_the_last_pool(graph, allowed, sizes):
    found = plan_pools(graph, shares(graph, allowed), Limits(sizes, None, 8))
    smallest = min((graph.tensors[n].nbytes for n in found.offsets if n not in found.pool_of), default=None)
    unused = [size for name, size in sizes.items() if name not in found.pools]
    assert smallest is None or all(-(-smallest // 8) * 8 > size for size in unused)


@settings(max_examples=12)
@given(graphs(), in_place)
def test_a_pool_that_is_large_enough_has_everything(graph, allowed):
    over = shares(graph, allowed)
    alone = plan(lifetimes(graph), 8, over)
    found = plan_pools(graph, over, Limits({"fast": alone.arena_bytes + 4000, "slow": 1 << 20}, None, 8))
    assert found.arena_bytes == 0
    assert list(found.pools) == ["fast"]


@settings(max_examples=25)
@given(graphs(), in_place, st.integers(0, 3000))
def test_without_room_it_is_the_plan_of_one_arena(graph, allowed, ram):
    over = shares(graph, allowed)
    found, alone = plan_pools(graph, over, Limits({"none": 0}, ram, 8)), plan(lifetimes(graph), 8, over)
    assert (found.pools, found.pool_of, found.arena_bytes) == ({}, {}, alone.arena_bytes)


@settings(max_examples=40)
@given(graphs(), st.data())
def test_wrong_plans_are_found(graph, data):
    """Another pool's tensor at the same offset is no clash; the same pool's is, and so is a pool that overflows."""
    found = plan_pools(graph, {}, Limits({"p": 1500}, None, 8))
    assume(found.pool_of)
    assert violations(graph, found, None, {"p": 1500}) == []
    assert "the pool p is not there" in violations(graph, found)
    used = found.pools["p"]
    assert f"the pool p takes {used} bytes of {used - 1}" in violations(graph, found, None, {"p": used - 1})
    ends = {n: found.offsets[n] + graph.tensors[n].nbytes for n in found.pool_of}
    last = max(ends, key=ends.__getitem__)
    short = replace(found, pools={"p": ends[last] - 1})
    assert any(
        f"{last} ends at {ends[last]}, beyond the pool p" in one for one in violations(graph, short, None, {"p": 9999})
    )
    pairs = [(a, b) for a, b in combinations(lifetimes(graph), 2) if a.overlaps(b)]
    assume(pairs)
    one, other = data.draw(st.sampled_from(pairs))
    moved = {**found.offsets, one.name: 0, other.name: 0}
    together = replace(found, offsets=moved, pool_of={one.name: "p", other.name: "p"}, pools={"p": 1 << 20})
    assert any("over" in problem or "lost" in problem for problem in violations(graph, together, None, {"p": 1 << 20}))


def net(*sizes, extra=()):
    """x → t0 → t1 → ... → y: each call reads what the one before wrote; `extra`: (call, tensor) that it reads too."""
    names = [f"t{i}" for i in range(len(sizes))]
    tensors = {n: Tensor(n, (size,), "uint8", "activation") for n, size in zip(names, sizes, strict=True)}
    ends = {"x": Tensor("x", (8,), "uint8", "input"), "y": Tensor("y", (8,), "uint8", "output")}
    chain = ["x", *names, "y"]
    calls = [Call(f"k{i}", (chain[i],), (chain[i + 1],)) for i in range(len(chain) - 1)]
    for number, name in extra:
        calls[number] = replace(calls[number], inputs=(*calls[number].inputs, name))
    return Graph({**tensors, **ends}, tuple(calls), ("x",), ("y",))


def test_the_most_used_go_first():
    graph = net(96, 96, 96, extra=[(2, "t0"), (3, "t0")])
    assert uses(graph) == {"t0": 4, "t1": 2, "t2": 2}
    found = plan_pools(graph, {}, Limits({"fast": 100}, None, 8))
    assert found.pool_of == {"t0": "fast"}


def test_workspaces_are_written_and_read():
    graph = net(64)
    made = replace(
        graph,
        tensors={**graph.tensors, "w": Tensor("w", (64,), "uint8", "workspace")},
        calls=(replace(graph.calls[0], workspaces=("w",)), graph.calls[1]),
    )
    assert uses(made) == {"t0": 2, "w": 2}


def test_small_ones_go_together_where_that_is_more():
    """Three that take turns are accessed more often than the large one that would fill the pool."""
    found = plan_pools(net(1000, 800, 1000, 800, 8000), {}, Limits({"fast": 2000}, None, 8))
    assert found.pool_of.keys() == {"t0", "t1", "t2", "t3"}
    assert found.pools == {"fast": 1800}


def test_the_ram_s_limit_comes_before_speed():
    """What fits nowhere else must go into the pool, although many small ones would use it better."""
    graph = net(1000, 1000, extra=[(2, "t0")])
    more = net(1000, 1000, 16, 16, extra=[(2, "t0"), *((number, "t2") for number in (4,))])
    assert plan_pools(graph, {}, Limits({"fast": 1000}, 1000, 8)).arena_bytes == 1000
    hot = replace(more, calls=(*more.calls, *(Call("again", ("t2", "t3"), ("y",)) for _ in range(200))))
    free, tight = (plan_pools(hot, {}, Limits({"fast": 1000}, ram, 8)) for ram in (None, 1100))
    assert {"t2", "t3"} <= free.pool_of.keys()
    assert free.arena_bytes == 2000
    assert tight.arena_bytes <= 1100


def test_the_second_pool_has_what_the_first_has_no_room_for():
    found = plan_pools(net(504, 400, 304), {}, Limits({"fast": 710, "slow": 510, "none": 0}, None, 8))
    assert found.pool_of == {"t0": "fast", "t1": "slow", "t2": "fast"}  # t0 and t2 take turns
    assert (found.pools, found.arena_bytes) == ({"fast": 504, "slow": 400}, 0)


def test_sharing_in_place_is_within_a_pool_only():
    graph = net(64, 64)
    over = shares(graph, lambda *_: True)
    assert over == {"t1": {"t0"}}
    found = plan_pools(graph, over, Limits({"fast": 64}, None, 8))
    assert found.pool_of == {"t0": "fast", "t1": "fast"}
    assert found.offsets == {"t0": 0, "t1": 0}
    apart = Plan({"t0": 0, "t1": 0}, 64, 128, 8, pools={"fast": 64}, pool_of={"t1": "fast"})
    assert violations(graph, apart, None, {"fast": 64}) == []
    assert violations(graph, replace(apart, pool_of={}, pools={}), None, {}) == ["call 1 (k1) writes t1 over t0"]


def test_large_models_can_be_planned():
    extra = [(number, f"t{number - 4}") for number in range(6, 120, 5)]
    graph = net(*(64 * (1 + 37 * number % 101) for number in range(120)), extra=extra)
    found = plan_pools(graph, {}, Limits({"fast": 6000, "slow": 20000}, None, 8))
    assert violations(graph, found, None, {"fast": 6000, "slow": 20000}) == []
    assert len(found.pools) == 2
