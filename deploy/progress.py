"""Showing how far a long step has come: events from the steps, drawn on a stream that the command line passes in."""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO, cast

import rich.progress
from rich.console import Console
from rich.markup import escape

PLAIN_INTERVAL_S = 5.0


@dataclass(frozen=True)
class ProgressEvent:
    """How far a stage has come.

    stage: "import", "tune", "compile", "verify", "measure"…; task: what it is busy with (a kernel, a file) or "".
    done, total: units of work of the whole stage (trials, samples); total 0 when there is nothing to count.
    best_s: lowest latency found so far for the task, in seconds. failures: units that gave no result.
    left_s: time left in seconds if it can be told. finished: the stage is over; message: what came of it.
    share: of the model's time that goes to the task. rate: units a minute. reason: why most of the failures failed.
    """

    stage: str
    task: str = ""
    done: int = 0
    total: int = 0
    best_s: float | None = None
    failures: int = 0
    left_s: float | None = None
    finished: bool = False
    message: str = ""
    share: float | None = None
    rate: float | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.stage:
            raise ValueError("an event needs a stage")
        if min(self.done, self.total, self.failures) < 0:
            raise ValueError(f"{self.done} of {self.total} done, {self.failures} failed: counts are 0 or more")
        for name, value in (("best_s", self.best_s), ("left_s", self.left_s)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; a time is finite and 0 s or more")


class Progress(Protocol):
    """Where steps send their events; may be called from several threads. Leaving the context restores the stream."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, event: ProgressEvent) -> None:
        """Show `event`. Never fails because nobody is there to look."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def update(self, event: ProgressEvent) -> None:
        """Ignore `event`."""


class _Lossy(io.TextIOBase):
    """A stream whose reader may go away: what cannot be written is dropped, as no display may end hours of work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class Plain(Silent):
    """One line an event, for logs: the first and last of a stage, and between them at most one every `interval_s`."""

    def __init__(self, stream: TextIO, interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._stream = _Lossy(stream)
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._stage = ""
        self._last_s = -math.inf

    def update(self, event: ProgressEvent) -> None:
        """Write a line for `event` if it is due."""
        with self._lock:
            now = time.monotonic()
            due = event.finished or event.stage != self._stage or now - self._last_s >= self._interval_s
            self._stage = "" if event.finished else event.stage
            if due:
                self._last_s = now
                self._stream.write(line(event) + "\n")
                self._stream.flush()


class Live:
    """A bar that is redrawn in place; a finished stage leaves one line."""

    def __init__(self, stream: TextIO) -> None:
        console = Console(file=cast(TextIO, _Lossy(stream)), force_terminal=True, highlight=False)
        self._bars = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[facts]}"),
            console=console,
            transient=True,
        )
        self._lock = threading.Lock()
        self._stages: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, event: ProgressEvent) -> None:
        """Redraw the bar of the event's stage."""
        with self._lock:
            if event.finished:
                known = self._stages.pop(event.stage, None)
                if known is not None:
                    self._bars.remove_task(known)
                self._bars.print(escape(line(event)), soft_wrap=True)
                return
            if event.stage not in self._stages:
                self._stages[event.stage] = self._bars.add_task("", total=None, facts="")
            name = f"[bold]{escape(event.stage)}[/] {escape(_clipped(event.task))}"
            facts = escape(", ".join(_facts(event)))
            self._bars.update(
                self._stages[event.stage],
                description=name.rstrip(),
                completed=event.done,
                total=event.total or None,
                facts=facts,
            )


def open_progress(stream: TextIO, env: Mapping[str, str] | None = None, *, quiet: bool = False) -> Progress:
    """Return the display that suits `stream`: live on a capable terminal, plain lines elsewhere, nothing if `quiet`.

    NO_COLOR, CI and TERM=dumb (in `env`, by default the process's) ask for plain lines.
    """
    if quiet:
        return Silent()
    variables = os.environ if env is None else env
    plain = bool(variables.get("NO_COLOR")) or bool(variables.get("CI")) or variables.get("TERM") in ("dumb", "unknown")
    return Plain(stream) if plain or not stream.isatty() else Live(stream)


def line(event: ProgressEvent) -> str:
    """Return `event` on one line: "tune conv2d_3: 128/512 trials, best 41.2 us, 3 failed, 2 min 10 s left"."""
    name = " ".join(f"{event.stage} {event.task}".split())
    facts = [*_facts(event), *([event.message] if event.message else [])]
    if event.finished and not event.message:
        facts.append("done")
    return f"{name}: {', '.join(facts)}" if facts else name


def left(done: int, total: int, elapsed_s: float) -> float | None:
    """Return the time left in seconds at the pace so far, or None before anything is done."""
    return elapsed_s / done * max(total - done, 0) if done > 0 and total > 0 else None


def duration(seconds: float) -> str:
    """Return a time as people say it: "8 s", "2 min 10 s", "1 h 5 min"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _facts(event: ProgressEvent) -> list[str]:
    facts = []
    if event.total:
        facts.append(f"{event.done}/{event.total}" + (" trials" if event.stage == "tune" else ""))
    if event.best_s is not None:
        facts.append(f"best {event.best_s * 1e6:.4g} us")
    if event.share is not None:
        facts.append(f"{event.share:.0%} of the time")
    if event.rate is not None:
        facts.append(f"{event.rate:.3g} a minute")
    if event.failures:
        facts.append(f"{event.failures} failed" + (f" ({_clipped(event.reason)})" if event.reason else ""))
    if event.left_s is not None and not event.finished:
        facts.append(f"{duration(event.left_s)} left")
    return facts


def _clipped(text: str, longest: int = 40) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
