"""The temporary folder that a device works in while it is open."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType


class InFolder:
    """Base of devices that build and keep files: entering one opens the folder, leaving it takes the folder away."""

    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tvm-deploy-", ignore_cleanup_errors=True)

    def _close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def _work(self) -> Path:
        if self._folder is None:
            raise RuntimeError("the device is not open: use it in a with statement")
        return Path(self._folder.name)
