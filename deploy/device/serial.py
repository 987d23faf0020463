"""A board at the end of a serial line: firmware is built, flashed, run on samples and timed by its own counter."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from numpy.typing import NDArray

from deploy import shell
from deploy.device import bench
from deploy.device.folder import InFolder
from deploy.device.protocol import Condition, DeviceRun, RunPlan
from deploy.device.serial_board import COUNTER, Board
from deploy.device.serial_energy import meter_beside, meter_inferences
from deploy.device.serial_image import (
    DEFAULT_BAUD,
    Image,
    board_files,
    build_image,
    builds,
    flash_command,
    stopwatch,
)
from deploy.device.serial_link import Link
from deploy.errors import DeviceError, InputError, ToolError
from deploy.firmware import harness
from deploy.firmware.serial_program import build_id
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading, Meter
from deploy.power.estimate import estimate
from deploy.target import Target
from deploy.units import render

PATIENCE_S = 10.0
_FLASH_S = 180.0
_POLL_S = 0.02
_WRITE_S = 30.0
UNBUILT = Image(Path("image.elf"), Path("image.bin"))


class SerialDevice(InFolder):
    """Runs firmware libraries of one target on a board. Raises InputError: the target lacks something.

    Times are `measured` in cycles of the board. Where the target says that the board is `emulated`, they are that, or
    `estimated` from its clock where instructions are counted instead.
    """

    def __init__(self, target: Target) -> None:
        flash = cast("tuple[str, ...]", target.device.get("flash") or ())
        if target.device.get("port") is None:
            raise InputError(
                f"target {target.name} runs on a board with a serial line, and its device has no `port`: name your "
                "board's in a boards.yaml (--boards, --device); `tvm-deploy build` needs none"
            )
        given: dict[str, object] = {"clock": target.clock}
        self._builds = builds(target)
        if self._builds:
            given |= {f"{name} in memory": value for name, value in target.memory.places.items()}
        if missing := [name for name, value in given.items() if value is None]:
            raise InputError(f"target {target.name} has no {missing[0]}, which running it on a board needs")
        if target.device.get("tick") is not None and not target.device.get("emulated"):
            raise InputError(f"target {target.name} has a tick, which is for `emulated: true` only: leave it out")
        self._target, self._flash = target, flash
        self._port = str(target.device.get("port"))
        self._baud = cast(int, target.device.get("baud") or DEFAULT_BAUD)
        if self._builds:
            stopwatch(target)
            board_files(target)
        flash_command(flash, UNBUILT, self._port)
        flash_command(cast("tuple[str, ...]", target.device.get("reset") or ()), UNBUILT, self._port, "reset")

    def __enter__(self) -> Self:
        """Get ready. Raises InputError: what drives serial ports is not installed."""
        require_pyserial()
        self._open()
        return self

    def run(
        self,
        library: Path,
        prefix: str,
        inputs: Sequence[Sequence[NDArray[Any]]],
        outputs: Sequence[TensorSpec],
        plan: RunPlan,
    ) -> DeviceRun:
        """Flash the model's program and run it once on each sample, then time it on the first; see `Device.run`.

        The program is built where the `flash` command names `{elf}` or `{bin}`; otherwise that command, or the user
        beforehand, puts one on the board that was built elsewhere. The calls of kernels are counted by a second copy of
        src/model.c beside the library. `timeout` of the device is the longest that the board may be silent and that an
        inference may take. A meter beside the board is opened first, for it may be the supply; DeviceError where it
        cannot be.
        """
        if not library.is_file():
            raise InputError(f"there is no library {library}: give the libmodel.a of an artifact")
        with meter_beside(self._target, plan.energy_seconds is not None) as meter:
            return self._run(library, prefix, inputs, outputs, (plan, meter))

    def _run(
        self,
        library: Path,
        prefix: str,
        inputs: Sequence[Sequence[NDArray[Any]]],
        outputs: Sequence[TensorSpec],
        how: tuple[RunPlan, Meter | None],
    ) -> DeviceRun:
        plan, meter = how
        if self._flash:
            self._put(library.absolute(), prefix, self._work)
        given = cast("float | None", self._target.device.get("timeout"))
        with open_port(self._port, self._baud) as line:
            link = Link(line, self._baud, given or PATIENCE_S)
            board = Board(link, prefix, build_id(library.read_bytes()), given or plan.timeout_s)
            header = (library.parent / "model.h").read_text(encoding="utf-8")
            samples = [b"".join(bench.encode([sample])) for sample in inputs]
            found = self._measured(board, samples, outputs, plan)
            if meter is not None:
                found = self._metered(found, board, samples, meter, plan.energy_seconds or 0.0)
            return replace(
                found,
                arena_bytes=harness.macro_value(header, prefix, "ARENA_BYTES"),
                weight_bytes=harness.macro_value(header, prefix, "WEIGHT_BYTES"),
                conditions={**found.conditions, "requests_sent_again": link.retries},
            )

    def _measured(
        self,
        board: Board,
        samples: Sequence[bytes],
        outputs: Sequence[TensorSpec],
        plan: RunPlan,
    ) -> DeviceRun:
        clock, exact = cast(float, self._target.clock), board.greet().counts_instructions
        conditions: dict[str, Condition] = {"clock_hz": clock, "port": self._port}
        if reading_kind(self._target, exact) == "measured":
            conditions["clock_seen_hz"] = board.check_clock(clock)
        first = samples[0] if samples else None
        stack = board.stack_bytes(first)
        answers = [board.run(sample) for sample in samples] or [board.run(None)]
        _check_range(board, clock, exact)
        data = b"".join(data for _, data in answers) if samples else b""
        counts = [count for count, _ in answers]
        values = bench.decode_outputs(data, outputs, len(samples))
        layers = board.layers(first)
        times = counts if exact else _timed(board, first, plan)
        conditions["resets"] = board.resets
        return DeviceRun(
            outputs=values,
            samples_s=tuple(count / clock for count in times),
            how=reading_kind(self._target, exact),
            batch=1,
            inferences=len(counts) + (0 if exact else len(times)),
            arena_bytes=0,  # those who read model.h fill this in
            weight_bytes=0,
            threads=1,
            energy=self._energy(times[0] / clock) if plan.energy_seconds is not None else None,
            energy_inferences=1,
            energy_busy_s=times[0] / clock,
            conditions=conditions,
            instructions=tuple(counts) if exact else (),
            layers=layers,
            stack_bytes=stack,
        )

    def _metered(
        self, found: DeviceRun, board: Board, samples: Sequence[bytes], meter: Meter, seconds: float
    ) -> DeviceRun:
        if found.how != "measured":
            reason = "an emulator draws no power that a meter could see: leave `emulated` out for a board"
            lost = EnergyReading(None, seconds, "measured", meter.source, reason=reason)
            return replace(found, energy=lost, energy_inferences=0, energy_busy_s=0.0)
        clock = cast(float, self._target.clock)
        metering = meter_inferences(board, samples[0] if samples else None, meter, seconds, clock)
        return replace(
            found,
            energy=metering.reading,
            idle=metering.idle,
            energy_inferences=metering.inferences,
            energy_busy_s=metering.reading.seconds,
        )

    def _put(self, library: Path, prefix: str, folder: Path) -> None:
        image = build_image(self._target, library, prefix, folder) if self._builds else UNBUILT
        drive_board(flash_command(self._flash, image, self._port), "flashed")

    def _energy(self, seconds: float) -> EnergyReading:
        power = self._target.power
        if power.active is None:
            reason = "a board's meter is not read over its serial line"
            return EnergyReading(None, seconds, "estimated", "no meter", reason=reason)
        source = f"declared active power {render(power.active, 'power')}"
        return estimate(power.active, seconds, source, "for the latency")


def reading_kind(target: Target, exact: bool) -> str:
    """How times from a board are obtained; exact: instructions are counted there, not cycles."""
    if exact:
        return "estimated"
    return "emulated" if target.device.get("emulated") else "measured"


def drive_board(command: Sequence[str], done: str) -> None:
    """Run a command after which the board is `done`, such as "flashed". Raises DeviceError: it fails."""
    try:
        shell.run(command, timeout_s=_FLASH_S)
    except ToolError as error:
        raise DeviceError(f"the board could not be {done}: {error}") from error


def _timed(board: Board, sample: bytes | None, plan: RunPlan) -> list[int]:
    """Cycles of a sample's inference, as often as the plan says."""
    counts: list[int] = []
    started = time.monotonic()
    while len(counts) < plan.min_samples or (
        time.monotonic() - started < plan.seconds and len(counts) < plan.max_samples
    ):
        counts.append(board.time(sample))
    return counts


def _check_range(board: Board, clock: float, exact: bool) -> None:
    if not exact and board.longest_s * clock >= COUNTER:
        raise DeviceError(
            f"an inference took {board.longest_s:.3g} s, and the board's counter of cycles begins again after "
            f"{COUNTER / clock:.3g} s: it cannot time this model"
        )


class Port:
    """A serial port as pyserial has it; what fails is a DeviceError."""

    def __init__(self, port: Any, name: str) -> None:
        self._port, self._name = port, name

    def send(self, data: bytes) -> None:
        with _told(self._name):
            self._port.write(data)

    def receive(self) -> bytes:
        with _told(self._name):
            return bytes(self._port.read(max(1, self._port.in_waiting)))


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # pyserial's own errors are of this kind too
        raise DeviceError(f"the serial port {name} failed: {error}; is the board still plugged in?") from error


@contextlib.contextmanager
def open_port(name: str, baud: int) -> Iterator[Port]:
    """The port, locked against other programs that lock it."""
    serial = require_pyserial()
    try:
        port = serial.Serial(name, baud, timeout=_POLL_S, write_timeout=_WRITE_S, exclusive=True)
    except OSError as error:
        raise DeviceError(
            f"the serial port {name} cannot be opened: {error}; check the name, that you may use it (on Linux the "
            "group dialout), and that no other program has it"
        ) from error
    except ValueError as error:
        raise InputError(f"the serial port {name} cannot be opened: {error}; check `baud`") from error
    with contextlib.closing(port):
        yield Port(port, name)


def require_pyserial() -> Any:
    """What drives serial ports. Raises InputError: it is not installed."""
    try:
        import serial
    except ImportError:
        raise InputError("boards with a serial line need pyserial: pip install 'tvm-deploy[serial]'") from None
    return serial
