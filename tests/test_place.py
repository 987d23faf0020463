"""The search for a placement: it finds what greedy orders miss, always the same, in little time."""

import random
import time

from hypothesis import given
from hypothesis import strategies as st

from deploy.aot.place import Choice, Problem, place, search
from deploy.aot.plan import Lifetime, greedy, live_bound, problem


def tensors(seed, count, longest=20):
    """Tensors of any size, one a call, of which some live long."""
    dice = random.Random(seed)
    return [
        Lifetime(
            f"t{i}", 64 * dice.randint(1, 60), i, min(count - 1, i + dice.randint(1, dice.choice((1, 3, longest))))
        )
        for i in range(count)
    ]


@st.composite
def problems(draw):
    """Intervals of which some may start at one address."""
    count = draw(st.integers(1, 8))
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=count, max_size=count)))
    pairs = [(a, b) for a in range(count) for b in range(a) if draw(st.booleans())]
    over = [pair for pair in pairs if draw(st.booleans())]
    conflicts = tuple(tuple(b + a - t for a, b in pairs if t in (a, b)) for t in range(count))
    shares = tuple(frozenset(b + a - t for a, b in over if t in (a, b)) for t in range(count))
    return Problem(sizes, conflicts, shares)


@given(problems(), st.data())
def test_every_placement_keeps_tensors_apart(made, data):
    count = len(made.sizes)
    order = tuple(data.draw(st.permutations(range(count))))
    offsets = place(made, Choice(order, frozenset(data.draw(st.sets(st.integers(0, count - 1))))))
    for one, others in enumerate(made.conflicts):
        for other in others:
            apart = (
                offsets[one] + made.sizes[one] <= offsets[other] or offsets[other] + made.sizes[other] <= offsets[one]
            )
            assert apart or (other in made.shares[one] and offsets[one] == offsets[other])


@given(problems())
def test_the_search_is_never_worse_than_where_it_starts_and_always_the_same(made):
    starts = [Choice(tuple(range(len(made.sizes)))), Choice(tuple(reversed(range(len(made.sizes)))))]
    found = search(made, starts, 0, work=500)
    assert made.extent(found) <= min(made.extent(place(made, start)) for start in starts)
    assert found == search(made, starts, 0, work=500)


def test_the_search_finds_what_greedy_orders_miss():
    gained = 0
    for seed in range(5):
        alive = tensors(seed, 40)
        made, bound = problem(alive), live_bound(alive)
        best = min(made.extent(place(made, choice)) for choice in greedy(alive))
        found = made.extent(search(made, greedy(alive), bound))
        assert bound <= found <= best
        gained += best - found
    assert gained > 0


def test_a_large_graph_takes_about_a_second():
    alive = tensors(1, 300)
    start = time.process_time()
    search(problem(alive), greedy(alive), live_bound(alive))
    assert time.process_time() - start < 5  # on a slow machine


def test_a_tensor_lies_on_its_input_unless_it_is_kept_apart():
    made = Problem((64, 64), ((1,), (0,)), (frozenset({1}), frozenset({0})))
    assert place(made, Choice((0, 1))) == [0, 0]
    assert place(made, Choice((0, 1), frozenset({1}))) == [0, 64]
    assert search(made, [Choice((0, 1), frozenset({0, 1}))], 64) == [0, 0]
