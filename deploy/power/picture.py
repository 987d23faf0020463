"""A metered run as a picture, power over time with the inferences shaded; or as a table of every sample."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from deploy import files
from deploy.errors import InputError
from deploy.power.reading import EnergyReading
from deploy.power.trace import Array, Trace
from deploy.units import render

FORMATS = (".svg", ".png", ".csv")
MOST_POINTS = 2000  # of a picture; between two of them the lowest and the highest power are shown
_SCALES = ((1.0, "W"), (1e-3, "mW"), (1e-6, "uW"))


def check(out: Path) -> None:
    """Raise InputError where `draw` could not: another kind of file, or matplotlib is not installed."""
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"cannot write {out}: a trace of power is written to {', '.join(FORMATS)}")
    if out.suffix.lower() != ".csv":
        _matplotlib()


def draw(reading: EnergyReading | None, out: Path | None) -> Path | None:
    """Write the trace of a run, by the file's ending; where it was written. Raises InputError where there is none.

    Nothing where no file was asked for.
    """
    if out is None:
        return None
    check(out)
    trace = None if reading is None else reading.trace
    if reading is None or trace is None or len(trace.times_s) < 2:
        why = (
            "power was not asked for" if reading is None else reading.reason or f"it is {reading.how}: {reading.source}"
        )
        raise InputError(f"nothing to write to {out}: no meter gave samples ({why})")
    if out.suffix.lower() == ".csv":
        return files.write_text(out, table(trace))
    kind, stream = out.suffix.lower()[1:], io.BytesIO()
    matplotlib = _matplotlib()
    with matplotlib.rc_context({"svg.hashsalt": "tvm-deploy", "font.size": 8}):
        figure = matplotlib.figure.Figure(figsize=(9, 3.2), layout="constrained")
        _draw(figure.add_subplot(), trace, reading)
        figure.savefig(stream, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return files.write_bytes(out, stream.getvalue())


def table(trace: Trace) -> str:
    """Return every sample as a line, which a meter of kind csv reads; inference: whether it lies in a window."""
    begins = np.array([window.begin_s for window in trace.windows])
    ends = np.array([window.end_s for window in trace.windows])
    inside = np.searchsorted(begins, trace.times_s, side="right") > np.searchsorted(ends, trace.times_s, side="left")
    rows = zip((trace.times_s - trace.times_s[0]).tolist(), trace.watts.tolist(), inside.tolist(), strict=True)
    return "time_s,power_w,inference\n" + "".join(f"{at:.9f},{watts:.9g},{within:d}\n" for at, watts, within in rows)


def points(trace: Trace, most: int = MOST_POINTS) -> tuple[Array, Array, Array, Array]:
    """Return times, and the mean, lowest and highest power around each; every sample where there are at most `most`."""
    count = len(trace.times_s)
    if count <= most:
        return trace.times_s, trace.watts, trace.watts, trace.watts
    cuts = np.linspace(0, count, most + 1).round().astype(np.int64)[:-1]
    sizes = np.diff([*cuts, count])
    means = [np.add.reduceat(values, cuts) / sizes for values in (trace.times_s, trace.watts)]
    return means[0], means[1], np.minimum.reduceat(trace.watts, cuts), np.maximum.reduceat(trace.watts, cuts)


def _draw(axes: Any, trace: Trace, reading: EnergyReading) -> None:
    times, watts, lowest, highest = points(trace)
    scale, unit = next((one for one in _SCALES if float(np.max(highest)) >= one[0]), _SCALES[-1])
    start = trace.windows[0].begin_s if trace.windows else float(times[0])
    top = 1.05 * max(float(np.max(highest)) / scale, 1e-9)
    spans = [(window.begin_s - start, window.seconds) for window in trace.windows]
    axes.broken_barh(spans, (0, top), facecolors="tab:orange", alpha=0.25, label=_label(len(spans)))
    step = {"step": "pre"} if trace.counted else {}
    axes.fill_between(times - start, lowest / scale, highest / scale, alpha=0.35, linewidth=0, **step)
    axes.plot(times - start, watts / scale, linewidth=0.7, drawstyle="steps-pre" if trace.counted else "default")
    axes.set_ylim(bottom=min(0.0, float(np.min(lowest)) / scale), top=top)
    axes.set_xlim(float(times[0]) - start, float(times[-1]) - start)
    axes.set_xlabel("seconds since the first inference")
    axes.set_ylabel(unit)
    axes.set_title(_title(reading), fontsize=8)
    axes.legend(loc="upper right", fontsize=7)


def _label(windows: int) -> str:
    return "inferences" if windows == 1 else f"inferences ({windows})"


def _title(reading: EnergyReading) -> str:
    if reading.watts is None:
        return f"{reading.source}: incomplete"
    peak = "" if reading.peak_w is None else f", peak {render(reading.peak_w, 'power', 3)}"
    return f"{reading.source}: mean {render(reading.watts, 'power', 3)} within the inferences{peak}"


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install 'tvm-deploy[plot]'") from None
    return matplotlib
