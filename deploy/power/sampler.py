"""A meter that watches sensor files from a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np

from deploy.errors import DeviceError
from deploy.power.reading import EnergyReading, Sample
from deploy.power.trace import Edge, Marks, MeterFacts, Trace, Window


@dataclass(frozen=True)
class Channel:
    """One thing to read: `read` returns a raw value in `unit` or raises DeviceError."""

    name: str
    unit: Literal["uJ", "uW"]
    read: Callable[[], int]


@dataclass(frozen=True)
class Recording:
    """Raw samples in the order taken, from before the run to after it; `problem` says what went wrong, if anything.

    windows: those that were marked; seconds: of them together, or of everything where there are none.
    """

    samples: tuple[Sample, ...]
    seconds: float
    problem: str
    windows: tuple[Window, ...] = ()

    def of(self, channel: str) -> tuple[Sample, ...]:
        """Return the samples of one channel."""
        return tuple(sample for sample in self.samples if sample.channel == channel)

    def trace(self, energies_j: Sequence[Sequence[float]], channel: str, facts: MeterFacts) -> Trace:
        """Return the sum of channels, of each the energy since its first sample, at the times of one of them.

        All are read together, in microseconds.
        """
        times = [sample.time_s for sample in self.of(channel)]
        return Trace.of_counter(times, np.sum(np.asarray(energies_j, np.float64), axis=0), facts, windows=self.windows)


class SampledMeter:
    """Reads all channels at `start`, every `interval_s`, and at `stop`; `evaluate` makes the reading of them."""

    def __init__(
        self,
        kind: str,
        source: str,
        channels: Sequence[Channel],
        evaluate: Callable[[Recording], EnergyReading],
        interval_s: float,
    ) -> None:
        self.kind = kind
        self.source = source
        self.channels = tuple(channels)
        self.interval_s = interval_s
        self._evaluate = evaluate
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._samples: list[Sample] = []
        self._problem = ""
        self._started_s = 0.0
        self._marks = Marks()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()

    def start(self) -> None:
        """Begin a reading; see `Meter.start`."""
        if self._thread is not None:
            raise RuntimeError("the meter is already running")
        self._samples, self._problem, self._marks = [], "", Marks()
        self._end.clear()
        self._thread = threading.Thread(target=self._watch, name=f"meter {self.kind}", daemon=True)
        self._started_s = self._take()
        self._thread.start()

    def mark(self, edge: Edge, at_s: float | None = None, slack_s: float = 0.0) -> None:
        """Begin or end a window; see `Meter.mark`."""
        if self._thread is None:
            raise RuntimeError("the meter was not started")
        self._marks.mark(edge, time.monotonic() if at_s is None else at_s, slack_s)

    def stop(self) -> EnergyReading:
        """End the reading; see `Meter.stop`."""
        if self._thread is None:
            raise RuntimeError("the meter was not started")
        self._join()
        seconds, windows = self._take() - self._started_s, tuple(self._marks.windows)
        seconds = math.fsum(window.seconds for window in windows) if windows else seconds
        return self._evaluate(Recording(tuple(self._samples), seconds, self._problem, windows))

    def idle(self, seconds: float) -> EnergyReading:
        """Watch the sensor for `seconds` while this thread sleeps."""
        self.start()
        try:
            time.sleep(seconds)
        finally:
            reading = self.stop()
        return reading

    def _watch(self) -> None:
        while not self._problem and not self._end.wait(self.interval_s):
            self._take()

    def _take(self) -> float:
        """Read every channel once and return the time half-way; after a failure only the time, the reading is lost."""
        begun = time.monotonic()
        for channel in self.channels if not self._problem else ():
            before = time.monotonic()
            try:
                value = channel.read()
            except DeviceError as error:
                self._problem = str(error)
                break
            self._samples.append(Sample(channel.name, (before + time.monotonic()) / 2, value, channel.unit))
        return (begun + time.monotonic()) / 2

    def _join(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._end.set()
            if thread.ident is not None:  # an interrupted start may not have come so far
                thread.join()
