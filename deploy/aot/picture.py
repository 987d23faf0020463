"""The arena over time as an SVG picture: one column for each call, one rectangle for each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from deploy.aot.in_place import overwritten
from deploy.aot.plan import Lifetime, Plan, lifetimes
from deploy.graph import Graph
from deploy.units import render

WIDTH, HEIGHT = 1000, 480  # of the whole picture; more calls than fit make it wider
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 40  # margins, in which the scales are
NARROWEST = 6  # column
LETTER, LINE = 6.5, 12  # a letter's width and height
_STYLE = """\
text { font: 11px sans-serif; fill: #222 } .title { font-size: 14px; font-weight: bold } .end { text-anchor: end }
rect { stroke: #fff; stroke-width: 0.5 } .activation { fill: #8fb8de } .workspace { fill: #c9c9c9 }
.over { fill: #9bd0a0 } .peak { fill: none; stroke: #d1495b; stroke-width: 2 }
line { stroke: #999; stroke-dasharray: 2 3 }"""


def arena_svg(title: str, graph: Graph, plan: Plan) -> str:
    """An SVG file: calls from left to right, the arena from its start at the bottom to its end at the top.

    A tensor that is written over an input is of another colour; the call with most bytes alive is marked.
    """
    alive = lifetimes(graph)
    column = max(NARROWEST, (WIDTH - LEFT - RIGHT) / max(len(graph.calls), 1))
    width = round(LEFT + RIGHT + column * len(graph.calls))
    over = overwritten(graph, plan)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
            f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
            *_scales(graph, plan, column, width),
            *(line for tensor in alive for line in _tensor(tensor, graph, plan, over.get(tensor.name), column)),
            *_peak(alive, graph, plan, column),
            "</svg>\n",
        ]
    )


def _height(plan: Plan, nbytes: int) -> float:
    return (HEIGHT - TOP - BOTTOM) * nbytes / max(plan.arena_bytes, 1)


def _tensor(tensor: Lifetime, graph: Graph, plan: Plan, over: str | None, column: float) -> Iterator[str]:
    """The rectangle of a tensor, all that is known of it, and its name where there is room."""
    stored, offset = graph.tensors[tensor.name], plan.offsets[tensor.name]
    x, width = LEFT + tensor.first * column, (tensor.last - tensor.first + 1) * column
    height = _height(plan, tensor.nbytes)
    y = HEIGHT - BOTTOM - _height(plan, offset) - height
    shape = "x".join(map(str, stored.shape)) or "1"
    facts = [
        f"{tensor.name}: {shape} {stored.dtype}, {tensor.nbytes} bytes at {offset}",
        f"calls {tensor.first} to {tensor.last}",
        *([] if over is None else [f"written over {over}"]),
    ]
    style = stored.kind if over is None else "over"
    yield f"<g><title>{escape(', '.join(facts))}</title>"
    yield f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    if height >= LINE and width >= LETTER * len(tensor.name):
        yield f'<text x="{x + 3:.1f}" y="{y + LINE:.1f}">{escape(tensor.name)}</text>'
    yield "</g>"


def _peak(alive: list[Lifetime], graph: Graph, plan: Plan, column: float) -> Iterator[str]:
    """A frame around the call that has most bytes alive, and its name."""
    used = [_used([t for t in alive if t.first <= number <= t.last], plan) for number in range(len(graph.calls))]
    if not any(used):
        return
    peak = used.index(max(used))
    x = LEFT + peak * column
    yield f'<rect class="peak" x="{x:.1f}" y="{TOP}" width="{column:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
    text = f"arena {plan.arena_bytes} bytes; most are in use in call {peak}: {graph.calls[peak].kernel}"
    yield f'<text x="{LEFT}" y="40">{escape(text)}</text>'


def _used(alive: list[Lifetime], plan: Plan) -> int:
    """Bytes that tensors take, those only once that lie over each other."""
    total = end = 0
    for start, stop in sorted((plan.offsets[t.name], plan.offsets[t.name] + t.nbytes) for t in alive):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def _scales(graph: Graph, plan: Plan, column: float, width: int) -> Iterator[str]:
    for quarter in range(5):
        nbytes = plan.arena_bytes * quarter // 4
        y = HEIGHT - BOTTOM - _height(plan, nbytes)
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{render(nbytes, "bytes", 3)}</text>'
    every = max(1, round(40 / column))
    for number in range(0, len(graph.calls), every):
        yield f'<text x="{LEFT + number * column:.1f}" y="{HEIGHT - BOTTOM + 16}">{number}</text>'
    yield f'<text x="{LEFT}" y="{HEIGHT - 6}">call</text>'
