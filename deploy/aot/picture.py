"""The arena over time as an SVG picture: one column for each call, one rectangle for each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from deploy.aot.in_place import overwritten
from deploy.aot.plan import Lifetime, Plan, lifetimes
from deploy.graph import Graph
from deploy.units import render

WIDTH, HEIGHT = 1000, 480  # of the whole picture; more calls than fit make it wider
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 60, 40  # margins, in which the scales are
NARROWEST = 6  # column
GAP = 24  # between the bands of two memories
LETTER, LINE = 6.5, 12  # a letter's width and height
_STYLE = """\
text { font: 11px sans-serif; fill: #222 } .title { font-size: 14px; font-weight: bold } .end { text-anchor: end }
rect { stroke: #fff; stroke-width: 0.5 } .activation { fill: #8fb8de } .workspace { fill: #c9c9c9 }
.over { fill: #9bd0a0 } .peak { fill: none; stroke: #d1495b; stroke-width: 2 }
line { stroke: #999; stroke-dasharray: 2 3 }"""


def arena_svg(title: str, graph: Graph, plan: Plan) -> str:
    """An SVG file: calls from left to right, the arena from its start at the bottom to its end at the top.

    Above it there is a band for each pool, to the same scale.

    A tensor that is written over an input is of another colour; the call with most bytes alive is marked.
    """
    alive, bands = lifetimes(graph), _Bands({"": plan.arena_bytes, **plan.pools})
    column = max(NARROWEST, (WIDTH - LEFT - RIGHT) / max(len(graph.calls), 1))
    width = round(LEFT + RIGHT + column * len(graph.calls))
    over = overwritten(graph, plan)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{HEIGHT}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>',
            f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
            *(line for memory in bands.sizes for line in _bytes_scale(bands, memory, width)),
            *_calls_scale(graph, column),
            *(
                line
                for tensor in alive
                for line in _tensor(tensor, graph, (plan, bands), over.get(tensor.name), column)
            ),
            *_peak(alive, graph, plan, column),
            "</svg>\n",
        ]
    )


@dataclass(frozen=True)
class _Bands:
    """Where bytes of each memory are in the picture: `sizes` by name, the arena's empty, from the bottom upwards."""

    sizes: Mapping[str, int]

    def height(self, nbytes: int) -> float:
        """So many bytes in pixels."""
        room = HEIGHT - TOP - BOTTOM - GAP * (len(self.sizes) - 1)
        return room * nbytes / max(sum(self.sizes.values()), 1)

    def bottom(self, memory: str) -> float:
        """The pixel at which a memory begins."""
        below = list(self.sizes)[: list(self.sizes).index(memory)]
        return HEIGHT - BOTTOM - self.height(sum(self.sizes[name] for name in below)) - GAP * len(below)


def _tensor(
    tensor: Lifetime, graph: Graph, placed: tuple[Plan, _Bands], over: str | None, column: float
) -> Iterator[str]:
    """The rectangle of a tensor, all that is known of it, and its name where there is room."""
    plan, bands = placed
    stored, (pool, offset) = graph.tensors[tensor.name], plan.place(tensor.name)
    x, width = LEFT + tensor.first * column, (tensor.last - tensor.first + 1) * column
    height = bands.height(tensor.nbytes)
    y = bands.bottom(pool) - bands.height(offset) - height
    shape = "x".join(map(str, stored.shape)) or "1"
    facts = [
        f"{tensor.name}: {shape} {stored.dtype}, {tensor.nbytes} bytes at {offset}{f' of {pool}' if pool else ''}",
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
    at_call = ([t for t in alive if t.first <= number <= t.last] for number in range(len(graph.calls)))
    used = [sum(_used(tensors, plan, memory) for memory in ("", *plan.pools)) for tensors in at_call]
    if not any(used):
        return
    peak = used.index(max(used))
    x = LEFT + peak * column
    yield f'<rect class="peak" x="{x:.1f}" y="{TOP}" width="{column:.1f}" height="{HEIGHT - TOP - BOTTOM}"/>'
    pools = "".join(f", {pool} {nbytes} bytes" for pool, nbytes in plan.pools.items())
    text = f"arena {plan.arena_bytes} bytes{pools}; most are in use in call {peak}: {graph.calls[peak].kernel}"
    yield f'<text x="{LEFT}" y="40">{escape(text)}</text>'


def _used(alive: list[Lifetime], plan: Plan, memory: str) -> int:
    """Bytes of a memory that tensors take, those only once that lie over each other."""
    total = end = 0
    places = ((plan.place(t.name), t.nbytes) for t in alive)
    for start, stop in sorted((offset, offset + nbytes) for (pool, offset), nbytes in places if pool == memory):
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total


def _bytes_scale(bands: _Bands, memory: str, width: int) -> Iterator[str]:
    for quarter in range(5):
        nbytes = bands.sizes[memory] * quarter // 4
        y = bands.bottom(memory) - bands.height(nbytes)
        if memory and quarter not in (0, 4):
            continue
        yield f'<line x1="{LEFT}" y1="{y:.1f}" x2="{width - RIGHT}" y2="{y:.1f}"/>'
        yield f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{render(nbytes, "bytes", 3)}</text>'
    if memory:
        yield f'<text x="{LEFT}" y="{bands.bottom(memory) - bands.height(bands.sizes[memory]) - 4:.1f}">{memory}</text>'


def _calls_scale(graph: Graph, column: float) -> Iterator[str]:
    every = max(1, round(40 / column))
    for number in range(0, len(graph.calls), every):
        yield f'<text x="{LEFT + number * column:.1f}" y="{HEIGHT - BOTTOM + 16}">{number}</text>'
    yield f'<text x="{LEFT}" y="{HEIGHT - 6}">call</text>'
