"""The picture of the arena: well-formed, to scale, and with everything in it."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.aot.picture import BOTTOM, HEIGHT, TOP, arena_svg
from deploy.aot.plan import lifetimes, plan, shares
from deploy.aot.pools import Limits, plan_pools
from deploy.graph import Call, Graph, Tensor

SVG = "{http://www.w3.org/2000/svg}"


def graph(names=("a", "b", "c"), sizes=(1000, 2000, 1000)):
    """x → a → b → c → y; each call has a workspace."""
    tensors = [Tensor("x", (64,), "uint8", "input"), Tensor("y", (64,), "uint8", "output")]
    tensors += [Tensor(name, (size,), "uint8", "activation") for name, size in zip(names, sizes, strict=True)]
    tensors += [Tensor(f"w{i}", (128,), "uint8", "workspace") for i in range(len(names))]
    chain = ("x", *names)
    calls = tuple(
        Call(f"k{i}", (before,), (after,), (f"w{i}",))
        for i, (before, after) in enumerate(zip(chain, names, strict=False))
    )
    return Graph({t.name: t for t in tensors}, (*calls, Call("copy", (names[-1],), ("y",))), ("x",), ("y",))


def drawn(made, allowed=lambda *_: False, title="net for host"):
    """The parsed picture, and the plan."""
    found = plan(lifetimes(made), 64, shares(made, allowed))
    return ElementTree.fromstring(arena_svg(title, made, found)), found


def test_every_tensor_is_drawn_to_scale():
    made = graph()
    root, found = drawn(made)
    groups = root.findall(f"{SVG}g")
    assert len(groups) == 6
    scale = (HEIGHT - TOP - BOTTOM) / found.arena_bytes
    for group in groups:
        name = group.find(f"{SVG}title").text.split(":")[0]
        rect = group.find(f"{SVG}rect")
        height, y = float(rect.get("height")), float(rect.get("y"))
        assert height == pytest.approx(made.tensors[name].nbytes * scale, abs=0.1)
        assert HEIGHT - BOTTOM - y - height == pytest.approx(found.offsets[name] * scale, abs=0.2)
        assert rect.get("class") == made.tensors[name].kind


def test_each_memory_is_a_band():
    made = graph()
    found = plan_pools(made, {}, Limits({"fast": 1000, "slow": 1500}, None, 8))
    assert found.pools.keys() == {"fast", "slow"}
    root = ElementTree.fromstring(arena_svg("net", made, found))
    spans = {}
    for group in root.findall(f"{SVG}g"):
        title, rect = group.find(f"{SVG}title").text, group.find(f"{SVG}rect")
        memory, top = found.pool_of.get(title.split(":")[0], ""), float(rect.get("y"))
        assert title.split(",")[1].endswith(f" of {memory}" if memory else f"at {found.offsets[title.split(':')[0]]}")
        spans.setdefault(memory, []).append((top, top + float(rect.get("height"))))
    ends = {memory: (min(t for t, _ in some), max(b for _, b in some)) for memory, some in spans.items()}
    assert TOP - 0.1 <= ends["slow"][0] < ends["slow"][1] < ends["fast"][0] < ends["fast"][1] < ends[""][0]
    text = [element.text for element in root.iter(f"{SVG}text")]
    assert {"fast", "slow"} <= set(text)
    sizes = f"arena {found.arena_bytes} bytes, fast {found.pools['fast']} bytes, slow {found.pools['slow']} bytes"
    assert any(one.startswith(sizes) for one in text)


def test_the_peak_is_named():
    root, found = drawn(graph())
    text = [element.text for element in root.iter(f"{SVG}text")]
    assert "net for host" in text
    assert f"arena {found.arena_bytes} bytes; most are in use in call 1: k1" in text
    assert len([rect for rect in root.findall(f"{SVG}rect") if rect.get("class") == "peak"]) == 1


def test_what_is_written_over_an_input_says_so():
    root, _ = drawn(graph(), lambda *_: True)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "b: 2000 uint8, 2000 bytes at 0, calls 1 to 2, written over a" in titles


def test_names_that_mean_something_in_xml_are_text():
    root, _ = drawn(graph(names=("<a>", "b&c", '"d"')), title="<net>")
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert any(title.startswith("b&c: ") for title in titles)


def test_nothing_to_place_is_a_picture_too():
    empty = Graph({"x": Tensor("x", (1,), "uint8", "input")}, (), ("x",), ())
    root, _ = drawn(empty)
    assert root.findall(f"{SVG}g") == []


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=300))
def test_any_graph_can_be_drawn(sizes):
    made = graph(tuple(f"t{i}" for i in range(len(sizes))), tuple(sizes))
    root, _ = drawn(made)
    assert len(root.findall(f"{SVG}g")) == 2 * len(sizes)
