"""The way to a Linux board: the system's `ssh`, logged in once, with scripts run over that one connection.

The user's own configuration of ssh holds (names, jump hosts, host keys); nothing is asked for, so keys have to be set
up.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from deploy import shell
from deploy.device import ssh_words
from deploy.errors import InputError, ToolError

_CONTROL = "ssh"
_LONGEST_CONTROL = 80  # of a path; ssh adds a suffix while it makes one, and about 107 characters are allowed
_LOCAL_S = 10.0  # for what only talks to the ssh that is already running
_SLACK_S = 5.0
_IDLE_S = 120  # after which a connection that nobody closed ends
_ALIVE_S, _ALIVE_COUNT = 5, 4  # a link that is silent for 20 s is cut


@dataclass(frozen=True)
class Address:
    """Where a board is. host: a name, an address, or an alias of ssh's configuration. Raises InputError."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("host", self.host), ("user", self.user)):
            if value is not None and not re.fullmatch(r"[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]-]*\$?", value, re.ASCII):
                raise InputError(f'{name} "{value[:80]}" of a device of kind ssh is not a name or an address')
        if self.port is not None and not 1 <= self.port <= 65535:
            raise InputError(f"port {self.port} of a device of kind ssh is not one from 1 to 65535")
        for name, value in (("identity", self.identity), ("config", self.config)):
            if value is not None and not Path(value).expanduser().is_file():
                raise InputError(f"there is no file {value}, the `{name}` of the board {self.host}")

    @property
    def shown(self) -> str:
        """The board's name in messages."""
        user, port = f"{self.user}@" if self.user else "", f" (port {self.port})" if self.port else ""
        return f"board {user}{self.host}{port}"


def ssh_options(address: Address, connect_s: float, control: Path | None) -> list[str]:
    """The command `ssh` up to the host, without what it is to do there."""
    given = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, math.ceil(connect_s))),
        "ServerAliveInterval": str(_ALIVE_S),
        "ServerAliveCountMax": str(_ALIVE_COUNT),
        "ClearAllForwardings": "yes",
        "ControlPath": "none" if control is None else str(control),
        "ControlPersist": str(_IDLE_S),
        **({"IdentitiesOnly": "yes"} if address.identity else {}),
    }
    config = ["-F", os.path.expanduser(address.config)] if address.config else []
    identity = ["-i", os.path.expanduser(address.identity)] if address.identity else []
    user = ["-l", address.user] if address.user else []
    port = ["-p", str(address.port)] if address.port else []
    options = [part for key, value in given.items() for part in ("-o", f"{key}={value}")]
    return ["ssh", "-T", "-a", "-x", *config, *options, *identity, *user, *port]


class Link:
    """One connection. folder: a local one for its socket. timeout_s: of logging in, and of a script's answer."""

    def __init__(self, address: Address, folder: Path, timeout_s: float) -> None:
        self._address, self._timeout_s = address, timeout_s
        control = folder / _CONTROL
        self._socket = control if len(str(control)) <= _LONGEST_CONTROL else None
        self._log = folder / "ssh.log"

    @property
    def name(self) -> str:
        """The board's name in messages."""
        return self._address.shown

    def open(self) -> None:
        """Log in. Raises DeviceError: that failed; ToolError: there is no ssh."""
        shell.require("ssh")
        if self._socket is None:
            self.run("exit 0", "logging in")
            return
        # Its output goes to a file: an ssh that goes on in the background would keep a pipe open, and be waited for.
        master = [*self._options(), "-o", "ControlMaster=yes", "-N", "-f", "--", self._address.host]
        detached = ["sh", "-c", 'exec "$@" </dev/null >/dev/null 2>"$0"', str(self._log), *master]
        done = self._within(detached, b"", self._timeout_s + _SLACK_S, "logging in")
        if done.returncode != 0:
            raise ssh_words.not_connected(self.name, self._log.read_text("utf-8", "backslashreplace"))

    def is_open(self) -> bool:
        """Whether the connection still stands, as far as this side knows."""
        if self._socket is None:
            return True  # each script has its own
        return self._socket.exists() and self._control("check") == 0

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None and self._socket.exists():
            self._control("exit")

    def run(
        self, script: str, doing: str, *, stdin: bytes = b"", limit_s: float = 0.0, place: str = "its folder"
    ) -> shell.Completed:
        """Run a script with the board's `sh`. doing, place: for messages. limit_s: what it may take beyond an answer.

        Raises DeviceError: the link broke, or the script's status is not 0.
        """
        command = [*self._options(), "-o", "ControlMaster=no", "--", self._address.host, f"exec sh -c {quote(script)}"]
        done = self._within(command, stdin, self._timeout_s + limit_s + _SLACK_S, doing)
        if done.returncode == ssh_words.SSH_FAILED or done.returncode < 0:
            raise ssh_words.broken(self.name, done.stderr, doing)
        if done.returncode != 0:
            raise ssh_words.failed(self.name, place, doing, done.returncode, done.stderr)
        return done

    def _options(self) -> list[str]:
        return ssh_options(self._address, self._timeout_s, self._socket)

    def _control(self, what: str) -> int:
        command = [*self._options(), "-O", what, "--", self._address.host]
        return shell.run(command, timeout_s=_LOCAL_S, check=False).returncode

    def _within(self, command: list[str], stdin: bytes, limit_s: float, doing: str) -> shell.Completed:
        started = time.monotonic()
        try:
            return shell.run(command, timeout_s=limit_s, stdin=stdin, check=False)
        except ToolError:
            if time.monotonic() - started < limit_s:
                raise
            raise ssh_words.silent(self.name, doing, limit_s) from None
