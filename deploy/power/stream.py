"""A meter that sends samples by itself: what they have in common, whatever is at the other end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DeviceError
from deploy.power import clock
from deploy.power.evaluate import reading_of
from deploy.power.reading import EnergyReading
from deploy.power.trace import Array, Edge, Marks, MeterFacts, Trace, Window

_FIRST_S = 3.0  # until the first sample
_LAST_S, _SILENT_S = 3.0, 0.5  # until the samples of the end have come, or none does any more
_MARGIN_S, _ON_TIME_S = 0.02, 0.003
_GAP = 1.5  # of the usual time between two samples, where that is always the same
_LONG_GAP, _LONG_GAP_S = 3.0, 0.03  # where it is not
_EVEN, _MOST = 0.02, 0.9  # most of the steps are that alike where a clock in hardware makes them


@dataclass(frozen=True, eq=False)
class Block:
    """Samples that arrived together, at `at_s`. ticks: when each was taken, in ticks of the source; a lost one leaves
    its number out. levels: whether the digital input that marks the inferences was high, where there is one."""

    at_s: float
    ticks: Array
    watts: Array
    levels: NDArray[np.bool_] | None = None


class Source(Protocol):
    """What is at the other end. All methods raise DeviceError, which names the meter and says what to do.

    tick_s: seconds of a tick; None where ticks are seconds of this computer's monotonic clock. even: whether samples
    come at a fixed rate, so that one that is missing shows; None where that is to be seen.
    """

    @property
    def kind(self) -> str: ...

    @property
    def facts(self) -> MeterFacts: ...

    @property
    def tick_s(self) -> float | None: ...

    @property
    def even(self) -> bool | None: ...

    def begin(self) -> None:
        """Have the meter sample."""

    def read(self) -> Block | None:
        """The next samples; nothing where none came for a short while."""

    def checked(self) -> float:
        """The tick up to which the meter itself confirmed that no sample was lost; infinite where each sample does."""

    def end(self) -> None:
        """Have the meter stop sampling."""

    def close(self) -> None:
        """Let go of the meter."""


class StreamMeter:
    """A meter around a source; see `Meter`."""

    def __init__(self, source: Source) -> None:
        self._from = source
        self.kind, self.source = source.kind, source.facts.meter
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._blocks: list[Block] = []
        self._problem = ""
        self._marks = Marks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._finish()
        finally:
            self._from.close()

    def start(self) -> None:
        """Begin a reading; see `Meter.start`. Raises DeviceError: the meter sends nothing."""
        if self._thread is not None:
            raise RuntimeError("the meter is already running")
        self._blocks, self._problem, self._marks = [], "", Marks()
        self._end.clear()
        self._from.begin()
        self._thread = threading.Thread(target=self._collect, name=f"meter {self.kind}", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _FIRST_S
        while not self._blocks and not self._problem and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._blocks or self._problem:
            self._finish()
            raise DeviceError(
                self._problem
                or f"{self.source} gave no sample within {_FIRST_S:g} s: check its power, its cable and its options"
            )

    def mark(self, edge: Edge, at_s: float | None = None, slack_s: float = 0.0) -> None:
        """Begin or end a window; see `Meter.mark`."""
        if self._thread is None:
            raise RuntimeError("the meter was not started")
        self._marks.mark(edge, time.monotonic() if at_s is None else at_s, slack_s)

    def stop(self) -> EnergyReading:
        """End the reading; see `Meter.stop`."""
        if self._thread is None:
            raise RuntimeError("the meter was not started")
        asked = time.monotonic()
        while not self._problem and not self._has_all(asked) and time.monotonic() < asked + _LAST_S:
            time.sleep(0.005)
        self._finish()
        trace, off = trace_of(self._blocks, self._from, self._problem)
        windows = [replace(window, slack_s=window.slack_s + off) for window in self._marks.windows]
        if windows:
            return reading_of(on_edges(trace.with_windows(windows), self._blocks), self.source)
        if len(trace.times_s):  # everything until now, and not what came while waiting for it
            first = float(trace.times_s[0])
            trace = trace.with_windows([Window(first, max(asked, first))])
        return reading_of(trace, self.source)

    def idle(self, seconds: float) -> EnergyReading:
        """Watch the meter for `seconds` while this thread sleeps."""
        self.start()
        try:
            time.sleep(seconds)
        finally:
            reading = self.stop()
        return reading

    def _collect(self) -> None:
        try:
            while not self._end.is_set():
                block = self._from.read()
                if block is not None and len(block.ticks):
                    self._blocks.append(block)
        except DeviceError as error:
            self._problem = str(error)
        except Exception as error:  # in a thread nobody else would hear of it
            self._problem = f"{self.source} failed: {type(error).__name__}: {error}; please report it"

    def _has_all(self, until_s: float) -> bool:
        """Whether samples up to a time are here and no more are under way, or none come any more."""
        tick, blocks = self._from.tick_s, self._blocks
        if not blocks or time.monotonic() - blocks[-1].at_s > _SILENT_S:
            return True
        newest, last = blocks[-1], min(float(blocks[-1].ticks[-1]), self._from.checked())
        if tick is None:
            return last >= until_s + _MARGIN_S
        soonest = min(block.at_s - float(block.ticks[-1]) * tick for block in blocks)
        late = newest.at_s - float(newest.ticks[-1]) * tick - soonest
        drift = clock.MOST_DRIFT * (newest.at_s - blocks[0].at_s)
        return soonest + last * tick >= until_s + _MARGIN_S and late < _ON_TIME_S + drift

    def _finish(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._end.set()
        thread.join()
        try:
            self._from.end()
        except DeviceError as error:
            self._problem = self._problem or str(error)


def trace_of(blocks: Sequence[Block], source: Source, problem: str = "") -> tuple[Trace, float]:
    """Return the samples on this computer's clock, and how far off that may be; where some are missing is a gap."""
    if not blocks:
        problem = problem or f"{source.facts.meter} gave no samples"
        return Trace.of_power([], [], source.facts, problem=problem), 0.0
    ticks = np.concatenate([block.ticks for block in blocks])
    watts = np.concatenate([block.watts for block in blocks])
    problem = problem or _nonsense(ticks, watts, source.facts.meter)
    if problem:
        return Trace.of_power([], [], source.facts, problem=problem), 0.0
    sure = ticks <= source.checked()
    ticks, watts = ticks[sure], watts[sure]
    times, off = ticks, 0.0
    if source.tick_s is not None:
        newest = np.array([block.ticks[-1] for block in blocks])
        arrivals = np.array([block.at_s for block in blocks])
        lost = clock.missing_s(newest, arrivals, source.tick_s)
        if lost:
            problem = (
                f"{source.facts.meter} lost samples of {lost:.3g} s: connect it to a port of its own and try again"
            )
        began, slope, off = clock.fit(newest, arrivals, source.tick_s)
        times = began + ticks * slope
    trace = Trace.of_power(times, watts, source.facts, gaps=_gaps(times, source), problem=problem)
    if source.facts.rate_hz is None and trace.interval_s > 0:
        trace = replace(trace, facts=replace(trace.facts, rate_hz=1 / trace.interval_s))
    return trace, off


def on_edges(trace: Trace, blocks: Sequence[Block]) -> Trace:
    """Return the trace with each window replaced by the time within it that the marking input, if any, was high.

    The host's marks only say where to look: the input is sampled with the power, so that its edges are exact.
    """
    if not blocks or trace.problem or any(block.levels is None for block in blocks):
        return trace
    levels = np.concatenate([block.levels for block in blocks if block.levels is not None])
    edges = np.flatnonzero(np.diff(levels.astype(np.int8))) + 1
    edges = edges[1:] if len(edges) and not levels[edges[0]] else edges  # what began before is no whole pulse
    rises, falls = trace.times_s[edges[::2]][: len(edges) // 2], trace.times_s[edges[1::2]]
    taken: set[int] = set()
    windows = []
    for window in trace.windows:
        first, last = window.begin_s - window.slack_s, window.end_s + window.slack_s
        inside = np.flatnonzero((rises >= first) & (falls <= last))
        middle = (rises[inside] + falls[inside] - first - last) / 2
        nearest = int(inside[np.argmin(np.abs(middle))]) if len(inside) else -1
        if nearest < 0 or nearest in taken:
            words = f"rose {len(inside)} times during an inference, and {len(rises)} times in all"
            problem = f"the input that marks the inferences {words}: check its wire and the program that drives it"
            return replace(trace, problem=problem)
        taken.add(nearest)
        windows.append(Window(float(rises[nearest]), float(falls[nearest])))
    return trace.with_windows(windows)


def _nonsense(ticks: Array, watts: Array, name: str) -> str:
    if not (np.isfinite(ticks).all() and np.isfinite(watts).all()):
        return f"{name} gave values that are no numbers: its range is exceeded, or it is broken"
    if len(ticks) > 1 and float(np.min(np.diff(ticks))) < 0:
        return f"{name} gave samples whose times go backwards: its clock was set, or two meters write at once"
    return ""


def _gaps(times: Array, source: Source) -> tuple[tuple[float, float], ...]:
    if len(times) < 3:
        return ()
    steps: Any = np.diff(times)
    usual = float(np.median(steps))
    even = source.even
    if even is None:
        even = float(np.mean(np.abs(steps - usual) <= _EVEN * usual)) > _MOST
    longest = _GAP * usual if even else max(_LONG_GAP * usual, _LONG_GAP_S)
    found = np.flatnonzero(steps > max(longest, 1e-9))
    return tuple((float(times[k]), float(times[k + 1])) for k in found)
