"""Connections to a tracker and its boards through SSH: a tunnel that is opened when it is used, and closed after.

Each place that is connected to has a socket in a folder that only this user may enter, so that nobody else on this
machine gets through.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path

from deploy import shell
from deploy.device import ssh_words
from deploy.device.rpc_link import Place
from deploy.device.ssh_link import Address, Link, ssh_options
from deploy.errors import DeviceError

_FORWARD_S = 10.0


class Tunnel:
    """The way through one machine with an SSH server; safe to use from several threads."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._link: Link | None = None
        self._sockets: dict[Place, Path] = {}

    def connect(self, place: Place, limit_s: float) -> socket.socket:
        """A connection to a place as that machine sees it. Raises DeviceError: SSH failed, and OSError."""
        with self._lock:
            file = self._opened(place)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(limit_s)
            connection.connect(str(file))
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Log out. The next connection opens it again."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._link, self._folder, self._sockets = None, None, {}

    def _opened(self, place: Place) -> Path:
        if self._link is None or not self._link.is_open():
            self._close()
            self._folder = tempfile.TemporaryDirectory(prefix="tvm-deploy-", ignore_cleanup_errors=True)
            self._link = Link(self._address, Path(self._folder.name), self._timeout_s)
            self._link.open()
        if place not in self._sockets:
            self._sockets[place] = self._forward(place)
        return self._sockets[place]

    def _forward(self, place: Place) -> Path:
        folder = Path(self._folder.name) if self._folder else Path()
        file = folder / str(len(self._sockets))
        options = ssh_options(self._address, self._timeout_s, folder / "ssh")
        line = [part.replace("ClearAllForwardings=yes", "ClearAllForwardings=no") for part in options]
        line += ["-O", "forward", "-L", f"{file}:{place}", "--", self._address.host]
        done = shell.run(line, timeout_s=_FORWARD_S, check=False)
        deadline = time.monotonic() + _FORWARD_S
        while done.returncode == 0 and not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        if done.returncode or not file.exists():
            raise DeviceError(f"no tunnel to {place} through {self._address.shown}: {ssh_words.last_line(done.stderr)}")
        return file
