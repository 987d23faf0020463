"""A Linux board that has no Python and no TVM: a static program is copied to it over SSH, run there, and taken away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, cast

from numpy.typing import NDArray

from deploy.device import bench, ssh_script, ssh_words
from deploy.device.folder import InFolder
from deploy.device.local import device_run, disk_errors, fastest
from deploy.device.protocol import Condition, DeviceRun, RunPlan
from deploy.device.ssh_link import Address, Link
from deploy.device.ssh_program import built_once
from deploy.errors import DeployError, DeviceError, InputError
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading
from deploy.power.estimate import estimate
from deploy.target import Target
from deploy.toolchain import compiler
from deploy.units import render

TIMEOUT_S = 10.0
_SLOWEST_LINK = 50_000  # bytes a second
_LINGER_S = 10.0  # to report what a stopped program left


class SshDevice(InFolder):
    """Runs libraries of one target on a board. Raises InputError: the target's device lacks something, or is wrong.

    Options of the device: host, user, port, identity, config: see `Address`; directory: where on the board its folder
    is made (default: /tmp); run_with: what to put in front of the program, such as [taskset, -c, "3"]; emulated:
    readings are of an emulator, which is known of qemu-* in run_with; timeout: of logging in and of answers (the
    model's is the plan's). Without run_with the program is kept on the fastest CPUs.
    """

    def __init__(self, target: Target, *, sysfs_root: Path = Path("/sys")) -> None:
        spec = target.device
        if spec.get("host") is None:
            raise InputError(
                f"target {target.name} runs on a board over SSH, and its device has no `host`: name your board with "
                "--device ssh://USER@HOST, or in a boards.yaml (--boards, --device); `tvm-deploy build` needs none"
            )
        self._address = Address(
            str(spec.get("host")),
            cast("str | None", spec.get("user")),
            cast("int | None", spec.get("port")),
            cast("str | None", spec.get("identity")),
            cast("str | None", spec.get("config")),
        )
        self._target, self._sysfs = target, str(sysfs_root)
        self._directory = cast("str | None", spec.get("directory"))
        self._run_with = cast("tuple[str, ...]", spec.get("run_with") or ())
        self._timeout_s = cast(float, spec.get("timeout") or TIMEOUT_S)
        self._link: Link | None = None
        self._board: ssh_script.Board | None = None
        self._ready, self._turn = False, 0
        self._there: dict[str, str] = {}  # file on the board → hash of what it is

    def __enter__(self) -> Self:
        """Log in and make a folder. Raises DeviceError: that failed; ToolError: ssh or the compiler is missing."""
        compiler(self._target, static=True)
        with disk_errors("the measuring program"):
            self._open()
        try:
            self._link = Link(self._address, self._work, self._timeout_s)
            self._connect()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder from the board, where it can be reached, and log out."""
        self._leave()

    def run(
        self,
        library: Path,
        prefix: str,
        inputs: Sequence[Sequence[NDArray[Any]]],
        outputs: Sequence[TensorSpec],
        plan: RunPlan,
    ) -> DeviceRun:
        """Run and time a model; see `Device.run`. `library` is in an artifact's folder, which has its parts in src."""
        with disk_errors("the measuring program"):
            program = built_once(self._target, library.absolute(), prefix, self._work)
        if not (self._ready and self._connected.is_open()):
            self._connect()
        self._ready = False  # where something fails on the way, the next run begins anew
        self._put(program.read_bytes())
        samples = bench.sample_arguments(ssh_script.INPUTS, ssh_script.OUTPUTS, len(inputs))
        data = b"".join(bench.encode(inputs)) if inputs else None
        limit = sum(spec.nbytes for spec in outputs) * len(inputs) / _SLOWEST_LINK
        ran, printed = self._ran([*samples, *bench.timing_arguments(plan)], data, plan.timeout_s, limit)
        self._ready = True
        with self._named():
            first, _, rest = printed.partition(b"\n")
            answer = bench.decode(first.decode("utf-8", "backslashreplace"), ran.status)
            bench.check_outputs(answer, outputs)
            arrays = bench.decode_outputs(rest, outputs, len(inputs))
            conditions = {**self._facts(), **ran.conditions, "clock_ns": answer.clock_s * 1e9}
            found = device_run(answer, arrays, conditions, self._how)
        if self._how == "emulated":  # it is the emulator's own
            found = replace(found, peak_rss_bytes=None, baseline_rss_bytes=None)
        return found if plan.energy_seconds is None else self._with_energy(found)

    @property
    def _how(self) -> str:
        qemu = any(Path(word).name.startswith("qemu-") for word in self._run_with)
        return "emulated" if qemu or self._target.device.get("emulated") else "measured"

    @property
    def _connected(self) -> Link:
        if self._link is None:
            raise RuntimeError("the device is not open: use it in a with statement")
        return self._link

    @property
    def _known(self) -> ssh_script.Board:
        if self._board is None:
            raise RuntimeError("the device is not open: use it in a with statement")
        return self._board

    @property
    def _session(self) -> ssh_script.Session:
        computer = hashlib.sha256(f"{platform.node()}:{os.getuid()}".encode()).hexdigest()[:8]
        token = self._work.name.removeprefix(ssh_script.PREFIX)
        return ssh_script.Session(computer, os.getpid(), token, self._turn)

    @property
    def _place(self) -> str:
        """The session's folder on the board."""
        return f"{self._known.base.rstrip('/')}/{self._session.name}"

    def _connect(self) -> None:
        """Log in, remove what earlier sessions left, and make this one's folder."""
        self._turn += 1
        link, mine = self._connected, self._session
        self._there = {}
        link.close()
        link.open()
        script = ssh_script.begin(self._directory, mine.name, self._sysfs)
        printed = link.run(script, "making a folder", place=self._directory or "/tmp").stdout
        with self._named():
            self._board = ssh_script.board_of(printed)
        if left := [name for name in self._board.folders if is_left(name, mine, self._work.parent)]:
            link.run(ssh_script.end(self._board.base, left), "removing what is left there", place=self._board.base)
        self._ready = True

    def _leave(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            if self._board is not None and (self._ready or link.is_open()):  # one that only ended is made anew
                with contextlib.suppress(DeployError):  # the next connection removes it
                    link.run(ssh_script.end(self._board.base, [self._session.name]), "removing its folder")
            link.close()
        self._board = None
        self._close()

    def _put(self, program: bytes) -> None:
        if not self._new(ssh_script.PROGRAM, program):
            return
        script = ssh_script.put(self._place, ssh_script.PROGRAM, len(program))
        doing = f"{render(len(program), 'bytes')} were copied to it"
        limit = len(program) / _SLOWEST_LINK
        self._connected.run(script, doing, stdin=program, limit_s=limit, place=self._place)
        self._there[ssh_script.PROGRAM] = _digest(program)

    def _new(self, name: str, data: bytes) -> bool:
        """Whether a file on the board is not yet these data."""
        return self._there.get(name) != _digest(data)

    def _ran(
        self, arguments: list[str], inputs: bytes | None, limit_s: float, copying_s: float
    ) -> tuple[ssh_script.Ran, bytes]:
        """Run the program on the board, at most for `limit_s`; how it ended and what it printed.

        inputs: what is to be there, None for nothing. copying_s: that outputs may take to come back.
        """
        sent = inputs if inputs is not None and self._new(ssh_script.INPUTS, inputs) else None
        size, place, link = None if sent is None else len(sent), self._place, self._connected
        command = [*self._run_with, f"./{ssh_script.PROGRAM}", *bench.pinned(self._cpus), *arguments]
        script = ssh_script.run(place, command, size, limit_s, (*self._cpus, 0)[0], self._sysfs)
        longest = limit_s + _LINGER_S + copying_s + (size or 0) / _SLOWEST_LINK
        self._there.pop(ssh_script.INPUTS, None)
        done = link.run(script, "the model ran", stdin=sent or b"", limit_s=longest, place=place)
        if inputs is not None:
            self._there[ssh_script.INPUTS] = _digest(inputs)
        ran = ssh_script.ran_of(done.stderr)
        if ran is None:
            raise ssh_words.lost(link.name, "the model ran")
        if ran.late:
            raise DeviceError(
                f"the model did not finish within {limit_s:g} s on {link.name} and was stopped: it hangs, "
                "or needs a longer time limit"
            )
        machine, architecture = self._known.machine, self._target.architecture
        silent = not done.stdout_bytes.strip() and ran.status > 0
        if silent and (why := ssh_words.not_started(link.name, place, machine, architecture, ran)):
            raise why
        return ran, done.stdout_bytes

    @property
    def _cpus(self) -> tuple[int, ...]:
        """Those that the program is kept on."""
        return () if self._run_with else fastest(self._target.threads, self._known.speeds)

    def _facts(self) -> dict[str, Condition]:
        """What was chosen for the run, for its conditions."""
        facts = {
            "board": self._connected.name.removeprefix("board "),
            "machine": self._known.machine,
            "run_with": " ".join(self._run_with),
            "pinned_cpus": ",".join(map(str, self._cpus)),
        }
        return {name: value for name, value in facts.items() if value}

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say which board an error of the measuring program is of."""
        try:
            yield
        except DeviceError as error:
            raise DeviceError(f"{self._connected.name}: {error}") from None

    def _with_energy(self, found: DeviceRun) -> DeviceRun:
        seconds, power = median(found.samples_s), self._target.power
        if power.active is None or found.how == "emulated":
            known = power.active is not None
            reason = "an emulator's times say nothing of energy" if known else "a board's meters are not read over SSH"
            reading = EnergyReading(None, seconds, "estimated", "no meter", reason=reason)
        else:
            source = f"declared active power {render(power.active, 'power')}"
            reading = estimate(power.active, seconds, source, "for the latency")
        return replace(found, energy=reading, energy_inferences=1, energy_busy_s=seconds)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_left(name: str, mine: ssh_script.Session, folder: Path) -> bool:
    """Whether a folder on the board is of a session on this computer that is over, an earlier turn of `mine` included.

    folder: where local folders of devices are; those of this very process are looked for there.
    """
    session = ssh_script.session_of(name)
    if session is None or session.computer != mine.computer:
        return False  # another computer's: after a day it is removed in any case
    if (session.process, session.token) == (mine.process, mine.token):
        return session.turn != mine.turn
    if session.process == mine.process:
        return not (folder / f"{ssh_script.PREFIX}{session.token}").is_dir()
    try:
        os.kill(session.process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False
