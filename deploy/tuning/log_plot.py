"""Tuning curves: for each kernel the best time so far against the number of candidates, as a picture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from pathlib import Path
from typing import Any

from deploy import files
from deploy.errors import InputError
from deploy.tuning import store
from deploy.tuning.listing import of_target

FORMATS = (".svg", ".png")
MOST_CURVES, COLUMNS = 24, 4
_LONGEST_TITLE, _LONGEST_LABEL = 34, 56


@dataclass(frozen=True)
class Curve:
    """One kernel: after how many candidates its best time was how many microseconds; failed ones count as candidates.

    best_us is not a number before the first that succeeded.
    """

    name: str
    arguments: str
    fingerprint: str
    trials: tuple[int, ...]
    best_us: tuple[float, ...]


def curves(root: Path, target: str) -> list[Curve]:
    """The curves of a target's kernels, the slowest kernel first. Raises InputError where it has no log."""
    found = []
    for folder in of_target(root, target):
        contents, owner = store.read(folder), store.identity(folder)
        assert owner is not None
        for kernel in dict.fromkeys(record.kernel for record in contents.records):
            records = sorted((r for r in contents.records if r.kernel == kernel), key=lambda record: record.trial)
            best = [value * 1e6 for value in accumulate((record.time_s for record in records), min)]
            described = contents.kernels.get(kernel)
            words = (described.name, described.arguments) if described else (kernel, "")
            trials = tuple(record.trial for record in records)
            found.append(Curve(*words, owner.fingerprint, trials, tuple(float("nan") if b == inf else b for b in best)))
    known = [curve for curve in found if curve.best_us[-1] == curve.best_us[-1]]
    return sorted(known, key=lambda curve: -curve.best_us[-1])


def plot(root: Path, target: str, out: Path) -> Path:
    """Draw the curves of a target's slowest kernels into an SVG or a PNG file; where it was written.

    Raises InputError where there are none, the file's name has another ending, or matplotlib is not installed.
    """
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"cannot draw {out}: a picture's name ends in {' or '.join(FORMATS)}")
    shown = curves(root, target)
    if not shown:
        raise InputError(f"nothing to draw: no candidate of target {target} in {root} has a time")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'tvm-deploy[plot]'") from None
    stream = io.BytesIO()
    kind = out.suffix.lower()[1:]
    with matplotlib.rc_context({"svg.hashsalt": "tvm-deploy", "font.size": 8}):
        figure = Figure(layout="constrained")
        _draw(figure, shown[:MOST_CURVES])
        figure.suptitle(f"{target}: best time so far (µs) against candidates{_left_out(len(shown))}")
        figure.savefig(stream, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return files.write_bytes(out, stream.getvalue())


def _left_out(count: int) -> str:
    return f"; the {MOST_CURVES} slowest of {count} kernels" if count > MOST_CURVES else ""


def _draw(figure: Any, shown: list[Curve]) -> None:
    columns = min(COLUMNS, len(shown))
    rows = ceil(len(shown) / columns)
    figure.set_size_inches(3 * columns + 0.5, 2 * rows + 0.6)
    several = len({curve.fingerprint for curve in shown}) > 1
    for place, curve in enumerate(shown, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.step(curve.trials, curve.best_us, where="post", marker=".", markersize=3, linewidth=1)
        title = f"{curve.fingerprint} {curve.name}" if several else curve.name
        axes.set_title(_short(title, _LONGEST_TITLE), fontsize=8)
        axes.set_xlabel(_short(curve.arguments, _LONGEST_LABEL), fontsize=6)
        axes.set_ylim(bottom=0, top=1.05 * max(us for us in curve.best_us if us == us))
        axes.set_xlim(0.5, max(curve.trials) + 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
