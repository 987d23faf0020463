"""A Linux board that runs `tvm-deploy board serve`: reached directly or through a tracker, over TVM's RPC.

What is sent is one static program, the measuring program with the model in it, as over SSH: the board's server runs it
in a process of its own with a time limit. A model that crashes or hangs ends that process and nothing else, and times
are the same as on the board by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self, cast

from numpy.typing import NDArray

from deploy.device import bench
from deploy.device.folder import InFolder
from deploy.device.local import device_run, disk_errors
from deploy.device.protocol import DeviceRun, RunPlan
from deploy.device.rpc_client import Session
from deploy.device.rpc_link import SLOWEST_LINK
from deploy.device.rpc_session import FORMAT
from deploy.device.rpc_source import source_of
from deploy.device.ssh_program import built_once
from deploy.device.ssh_words import runs
from deploy.errors import DeviceError
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading
from deploy.power.estimate import estimate
from deploy.target import Target
from deploy.toolchain import compiler
from deploy.units import render

QUEUE_S = 600.0  # to wait for a board that others use
SESSION_S = 1800.0
LINGER_S = 10.0  # to end a program whose time is up, and to tell of it
PROGRAM, INPUTS, OUTPUTS = "program", "inputs", "outputs"


class RpcDevice(InFolder):
    """Runs libraries of one target on a board that it keeps to itself. Raises InputError, see `source_of`.

    Options of the device: tracker and key, or host, port and key; config: of SSH, where the tracker is at
    ssh://USER@HOST:PORT; timeout: of connecting and of answers (the model's is the plan's).
    """

    def __init__(self, target: Target) -> None:
        self._source, self._target = source_of(target), target
        self._session: Session | None = None
        self._board: dict[str, Any] = {}
        self._there: dict[str, str] = {}  # file on the board → hash of what it is

    def __enter__(self) -> Self:
        """Take a board. Raises DeviceError: there is none, or it fails; ToolError: the compiler is missing."""
        compiler(self._target, static=True)
        with disk_errors("the measuring program"):
            self._open()
        try:
            self._connect()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the board back."""
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
            program = built_once(self._target, library.absolute(), prefix, self._work).read_bytes()
        data = b"".join(bench.encode(inputs))
        copying_s = (len(program) + len(data) + len(inputs) * sum(spec.nbytes for spec in outputs)) / SLOWEST_LINK
        if self._session is None or self._session.left_s < plan.timeout_s + LINGER_S + copying_s:
            self._connect()
        session = cast(Session, self._session)
        try:
            self._put(session, PROGRAM, program)
            if inputs:
                self._put(session, INPUTS, data)
            told, answered = self._ran(session, bench.sample_arguments(INPUTS, OUTPUTS, len(inputs)), plan)
        except DeviceError:
            self._disconnect()  # the next run begins anew
            raise
        try:
            answer = bench.decode(str(told.get("stdout")), int(told["status"]))
            bench.check_outputs(answer, outputs)
            arrays = bench.decode_outputs(answered, outputs, len(inputs))
        except DeviceError as error:
            raise DeviceError(f"{session.name}: {error}") from None
        conditions = {**self._facts(session), **told.get("conditions", {}), "clock_ns": answer.clock_s * 1e9}
        found = device_run(answer, arrays, conditions, self._board["how"])
        if found.how == "emulated":  # it is the emulator's own
            found = replace(found, peak_rss_bytes=None, baseline_rss_bytes=None)
        return found if plan.energy_seconds is None else self._with_energy(found)

    def _connect(self) -> None:
        self._disconnect()
        offer = self._source.offer(QUEUE_S)
        session = self._source.session(offer, SESSION_S, QUEUE_S)
        try:
            self._board = hello(session, self._target)
        except BaseException:
            session.close()
            raise
        self._session = session

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session, self._there = None, {}

    def _leave(self) -> None:
        self._disconnect()
        self._source.close()
        self._close()

    def _put(self, session: Session, name: str, data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if self._there.get(name) != digest:
            session.ask({"do": "put", "name": name}, data)
            self._there[name] = digest

    def _ran(self, session: Session, samples: list[str], plan: RunPlan) -> tuple[dict[str, Any], bytes]:
        """How the program ended, and the bytes of its outputs. Raises DeviceError: it did not start, or not end."""
        cpus = pinned(self._board, self._target.threads)
        command = [f"./{PROGRAM}", *bench.pinned(cpus), *samples, *bench.timing_arguments(plan)]
        request = {"do": "run", "command": command, "limit_s": plan.timeout_s, "outputs": OUTPUTS if samples else None}
        told, data = session.ask(request, takes_s=plan.timeout_s + LINGER_S)
        if told.get("late"):
            raise DeviceError(
                f"the model did not finish within {plan.timeout_s:g} s on {session.name} and was stopped: it hangs, or "
                "needs a longer time limit"
            )
        check_started(session.name, told)
        return told, data

    def _facts(self, session: Session) -> dict[str, Any]:
        cpus = ",".join(map(str, pinned(self._board, self._target.threads)))
        facts = {"board": session.name.removeprefix("board "), "machine": self._board["machine"], "pinned_cpus": cpus}
        return {name: value for name, value in facts.items() if value}

    def _with_energy(self, found: DeviceRun) -> DeviceRun:
        seconds, power = median(found.samples_s), self._target.power
        if power.active is None:
            why = "a board's meters are not read over RPC"
            reading = EnergyReading(None, seconds, "estimated", "no meter", reason=why)
        else:
            source = f"declared active power {render(power.active, 'power')}"
            reading = estimate(power.active, seconds, source, "for the latency")
        return replace(found, energy=reading, energy_inferences=1, energy_busy_s=seconds)


def hello(session: Session, target: Target) -> dict[str, Any]:
    """What a board says of itself. Raises DeviceError: it cannot run a target's code, or has another tvm-deploy."""
    told, _ = session.ask({"do": "hello"})
    if told.get("format") != FORMAT or not {"machine", "how", "cpus"} <= told.keys():
        raise DeviceError(f"{session.name} has another version of tvm-deploy: install the same as here")
    if not runs(str(told["machine"]), target.architecture):
        raise DeviceError(
            f"{session.name} cannot run code for {target.architecture}: its processor is called {told['machine']}; "
            "take a target for it, or another key"
        )
    return told


def pinned(board: dict[str, Any], threads: int) -> tuple[int, ...]:
    """CPUs of a board that a program is kept on: its fastest; none where there are fewer than `threads`."""
    cpus = [int(cpu) for cpu in board["cpus"]]
    return tuple(sorted(cpus[:threads])) if len(cpus) >= threads else ()


def check_started(name: str, told: dict[str, Any]) -> None:
    """Raise DeviceError where a program did not even start on a board, or the board does not tell how it ended."""
    if "unstarted" in told:
        raise DeviceError(
            f"{name} could not start a program ({str(told['unstarted'])[:300]}): check that programs may run where its "
            "temporary files are (TMPDIR), and `--run-with` of `tvm-deploy board serve` there"
        )
    if isinstance(told.get("status"), bool) or not isinstance(told.get("status"), int):
        raise DeviceError(f"{name} does not tell how a program ended: install the same tvm-deploy there as here")
