"""What a board does for a session of the RPC: keeps files in the session's folder, runs programs, tells its state.

A program is a process of its own with a time limit: what crashes or hangs is that process, and neither the session nor
the server. A request and its answer are sheets (see `rpc_wire`) of one of these kinds:

    {"do": "hello"}                                    the board's facts
    {"do": "put", "name": "program"}                   its data are kept as a file that may be run
    {"do": "run", "command": ["./program", "7"], "limit_s": 10.0, "outputs": "outputs"}
                                                       how it ended, and as data the file that it is to leave, if any
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import shell
from deploy.device import rpc_wire as wire
from deploy.device.local import read_conditions
from deploy.device.protocol import Condition
from deploy.errors import DeployError, InputError, ToolError

FORMAT = 1  # of sheets; both sides must have the same
MOST_TEXT = 1 << 20  # characters of what a program prints
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Hosting:
    """How a board runs programs.

    run_with: what to put in front of each, such as an emulator. emulated: readings are not of real hardware.
    sysfs: where the state of CPUs and thermal zones is found.
    """

    run_with: tuple[str, ...] = ()
    emulated: bool = False
    sysfs: Path = Path("/sys")

    @property
    def how(self) -> str:
        """What readings are: measured or emulated."""
        emulator = any(Path(word).name.startswith("qemu-") for word in self.run_with)
        return "emulated" if self.emulated or emulator else "measured"


def state(hosting: Hosting) -> dict[str, Condition]:
    """Governor, frequency and temperature of the fastest CPU, as far as the board tells."""
    found = read_conditions(fastest_first(hosting.sysfs)[:1], hosting.sysfs)
    return {name: value for name, value in found.items() if name != "pinned_cpus"}


def fastest_first(sysfs: Path) -> list[int]:
    """CPUs that may be used, the fastest and of these the highest first: where cores differ, the large ones."""

    def speed(cpu: int) -> int:
        with contextlib.suppress(OSError, ValueError):
            return int((sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq").read_text())
        return 0

    return sorted(os.sched_getaffinity(0), key=lambda cpu: (speed(cpu), cpu), reverse=True)


class Desk:
    """Where a session's requests are answered. folder: the session's own."""

    def __init__(self, folder: Path, hosting: Hosting) -> None:
        self._folder, self._hosting = folder, hosting

    def answer(self, request: bytes) -> bytes:
        """The answer to a sheet; what goes wrong is told in it."""
        try:
            facts, data = wire.unfolded(request)
            match facts.get("do"):
                case "hello":
                    return wire.sheet(self._hello())
                case "put":
                    return wire.sheet(self._put(str(facts.get("name")), data))
                case "run":
                    return wire.sheet(*self._run(facts))
            return wire.sheet({"error": f"this board does not know how to {str(facts.get('do'))[:80]}: update it"})
        except (DeployError, wire.Nonsense) as error:
            return wire.sheet({"error": str(error)})
        except OSError as error:
            return wire.sheet({"error": f"its disk failed ({(error.strerror or str(error)).lower()})"})

    def _hello(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "machine": platform.machine(),
            "node": platform.node(),
            "how": self._hosting.how,
            "cpus": fastest_first(self._hosting.sysfs),
            "conditions": state(self._hosting),
        }

    def _put(self, name: str, data: bytes) -> dict[str, Any]:
        file = self._file(name)
        partial = file.with_suffix(".partial")
        partial.write_bytes(data)
        partial.chmod(0o755)
        partial.replace(file)
        return {}

    def _run(self, facts: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        command, limit_s = [str(word) for word in facts["command"]], float(facts["limit_s"])
        outputs = self._file(str(facts["outputs"])) if facts.get("outputs") else None
        if outputs is not None:
            outputs.unlink(missing_ok=True)
        before = {f"{name}_before": value for name, value in state(self._hosting).items() if name in _CHANGING}
        load = os.getloadavg()[0]
        told = self._ended([*self._hosting.run_with, *command], limit_s)
        told["conditions"] = {"load_average": load, **before, **state(self._hosting)}
        data = outputs.read_bytes() if outputs is not None and outputs.is_file() and told.get("status") == 0 else b""
        return told, data

    def _ended(self, command: Sequence[str], limit_s: float) -> dict[str, Any]:
        """How a program ended: its status (negative: a signal), or that it was stopped, or why it did not start."""
        started = time.monotonic()
        try:
            done = shell.run(command, timeout_s=limit_s, cwd=self._folder, check=False)
        except ToolError as error:
            if time.monotonic() - started >= limit_s:
                return {"late": True}
            return {"unstarted": str(error)}
        return {"status": done.returncode, "stdout": done.stdout[:MOST_TEXT], "stderr": done.stderr[-4000:]}

    def _file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputError(f'"{name[:80]}" is not the name of a file of a session')
        return self._folder / name


_CHANGING = ("governor", "frequency_hz", "temperature_c")


def end_what_runs_in(folder: Path) -> None:
    """Kill every process that works in a folder: what a session that ended left."""
    for pid in _working_in(folder):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _working_in(folder: Path) -> Iterator[int]:
    place = str(folder)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            where = os.readlink(entry / "cwd").removesuffix(" (deleted)")
            if where == place or where.startswith(f"{place}/"):
                yield int(entry.name)
