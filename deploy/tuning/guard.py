"""What a tuning run needs so that it can be stopped at any moment: Ctrl-C held off from TVM, and folders that go.

An exception in a Python function that TVM's C++ calls, such as the cost model, comes back as something else or ends
the process. So Ctrl-C is only noted while TVM searches, and acted upon where candidates are built and timed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

PREFIX = "tvm-deploy-tune-"


class Interrupts:
    """Ctrl-C during a tuning run: noted, and handed on within `allowed()`."""

    def __init__(self) -> None:
        self.pending = False
        self._allowed = False
        self._previous: Callable[[int, FrameType | None], object] | None = None

    def __enter__(self) -> Interrupts:
        previous = signal.getsignal(signal.SIGINT)
        if callable(previous) and threading.current_thread() is threading.main_thread():
            self._previous = previous
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is None:
            return
        previous, self._previous = self._previous, None
        signal.signal(signal.SIGINT, previous)
        if self.pending:
            self.pending = False
            previous(signal.SIGINT, None)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.pending = True
        if self._allowed:
            self._hand_on(frame)

    def _hand_on(self, frame: FrameType | None) -> None:
        self.pending = False
        if self._previous is not None:
            self._previous(signal.SIGINT, frame)  # Python's own handler raises KeyboardInterrupt

    @contextlib.contextmanager
    def allowed(self) -> Iterator[None]:
        """Within this block Ctrl-C does what it did before; one that came earlier does it now."""
        self._allowed = True
        try:
            if self.pending:
                self._hand_on(None)
            yield
        finally:
            self._allowed = False


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed afterwards, as are those of earlier runs that were killed.

    A run holds a lock (flock) on its folder; a folder without a lock belongs to nobody any more.
    """
    _remove_leftovers()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another run took it for a left-over before it was locked
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # not ours, or gone already
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
