"""This machine as a device: the measuring program in a process of its own, on CPUs of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from numpy.typing import NDArray

from deploy import shell
from deploy.device import bench
from deploy.device.folder import InFolder
from deploy.device.protocol import Condition, DeviceRun, RunPlan
from deploy.errors import DeviceError, InputError, ToolError
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading, Meter, joined, meter_for
from deploy.target import Target

BENCH = Path(__file__).resolve().parent.parent / "aot" / "c" / "bench.c"
_COMPILE_S = 120.0
_START_S = 10.0  # to start the program and load the library once more, for the meter


class LocalDevice(InFolder):
    """Runs libraries on this machine. The measuring program is built when the device is entered.

    cc: the C compiler. pin: whether to keep the program on `threads` CPUs, the fastest and highest-numbered ones that
    this process may use (CPU 0 serves most interrupts). open_meter: gives the power meter for an energy reading, by
    default none; one that cannot be opened (DeviceError) makes the reading incomplete. sysfs_root: where sysfs is.
    """

    def __init__(
        self,
        cc: str = "cc",
        *,
        pin: bool = True,
        threads: int = 1,
        open_meter: Callable[[], Meter] | None = None,
        sysfs_root: Path = Path("/sys"),
    ) -> None:
        if threads < 1:
            raise InputError(f"{threads} threads were asked for: give 1 or more")
        self._cc = cc
        self._pin = pin
        self._threads = threads
        self._open_meter = open_meter
        self._sysfs = sysfs_root

    def __enter__(self) -> Self:
        """Build the measuring program. Raises ToolError: the compiler is missing or fails, or the disk is full."""
        with disk_errors("the measuring program"):
            self._open()
        try:
            shell.run(bench.compile_command(self._cc, str(BENCH), self._program), timeout_s=_COMPILE_S)
        except BaseException:
            self._close()
            raise
        return self

    def run(
        self,
        library: Path,
        prefix: str,
        inputs: Sequence[Sequence[NDArray[Any]]],
        outputs: Sequence[TensorSpec],
        plan: RunPlan,
    ) -> DeviceRun:
        """Run and time a model; see `Device.run`."""
        cpus = choose_cpus(self._threads, os.sched_getaffinity(0), self._sysfs) if self._pin else ()
        base = bench.command(self._program, str(_existing(library)), prefix, cpus)
        load = os.getloadavg()[0]
        with (
            disk_errors("the model's inputs and outputs"),
            tempfile.TemporaryDirectory(dir=self._work, ignore_cleanup_errors=True) as folder,
        ):
            answer, arrays = _run_samples(base, inputs, outputs, plan, Path(folder))
            conditions = {
                "load_average": load,
                "clock_ns": answer.clock_s * 1e9,
                **read_conditions(cpus, self._sysfs),
            }
            energy = None
            if plan.energy_seconds is not None:  # on the first sample: how much power is drawn depends on the data
                run = [*base, *_stored(inputs[:1], Path(folder) / "first")]
                energy = self._energy(run, plan.energy_seconds, plan.timeout_s, answer.batch)
        return _with_energy(device_run(answer, arrays, conditions), energy)

    @property
    def _program(self) -> str:
        return os.path.join(self._work, "bench")

    def _energy(self, base: list[str], seconds: float, timeout_s: float, batch: int) -> _Energy:
        """Return the energy of running for `seconds`; a meter that fails is a value, a model that fails is not."""
        if self._open_meter is None:
            return _no_energy("no power meter is configured")
        try:
            meter = self._open_meter()
        except DeviceError as error:
            return _no_energy(str(error))
        with meter:
            if meter.kind == "none":  # it says why there is none; no need to run for it
                return _Energy(meter.idle(0.0))
            try:
                idle = meter.idle(seconds)
                meter.start()
            except (DeviceError, OSError) as error:
                return _no_energy(f"the power meter failed: {error}", meter.source)
            limit = seconds + timeout_s + _START_S
            loop = _run_bench([*base, *bench.energy_arguments(seconds, batch)], limit).loop
            try:
                if loop is not None:  # without the time that it took to start the program
                    meter.mark("begin", loop.start_s)
                    meter.mark("end", loop.stop_s)
                reading = meter.stop()
                return _Energy(reading, joined(idle, meter.idle(seconds)), loop)
            except (DeviceError, OSError) as error:
                return _no_energy(f"the power meter failed: {error}", meter.source)


def local_device(target: Target) -> LocalDevice:
    """Return this machine as the device of a target, with the meter that it names."""
    power = target.power
    root = Path(str(power.get("root") or "/sys"))
    return LocalDevice(
        target.toolchain.cc,
        threads=target.threads,
        open_meter=lambda: meter_for(power),
        sysfs_root=root,
    )


@dataclass(frozen=True)
class _Energy:
    """What the meter said; `loop` is None when nothing was run for it."""

    reading: EnergyReading
    idle: EnergyReading | None = None
    loop: bench.Loop | None = None

    @property
    def inferences(self) -> int:
        return self.loop.inferences if self.loop else 0

    @property
    def busy_s(self) -> float:
        return self.loop.stop_s - self.loop.start_s if self.loop else 0.0


def _no_energy(reason: str, source: str = "no meter") -> _Energy:
    return _Energy(EnergyReading(None, 0.0, "measured", source, reason=reason))


def choose_cpus(threads: int, allowed: set[int], sysfs_root: Path) -> tuple[int, ...]:
    """Return the `threads` fastest of the `allowed` CPUs, higher numbers first among equals; () if there are fewer.

    Where cores differ in speed (big.LITTLE, hybrid x86) a model is measured on those it would be run on.
    """
    speed = {cpu: _number(sysfs_root / _CPUFREQ.format(cpu) / "cpuinfo_max_freq") or 0 for cpu in allowed}
    return fastest(threads, speed)


def fastest(threads: int, speed: Mapping[int, int]) -> tuple[int, ...]:
    """Return the `threads` fastest CPUs by their highest frequencies, see `choose_cpus`; () if there are fewer."""
    if len(speed) < threads:
        return ()
    return tuple(sorted(sorted(speed, key=lambda cpu: (speed[cpu], cpu))[-threads:]))


def read_conditions(cpus: Sequence[int], sysfs_root: Path) -> dict[str, Condition]:
    """Return what sysfs tells about the CPUs (CPU 0 if not pinned) and the temperature; what it lacks is left out."""
    cpufreq = sysfs_root / _CPUFREQ.format(cpus[0] if cpus else 0)
    current, highest = (_number(cpufreq / name) for name in ("scaling_cur_freq", "cpuinfo_max_freq"))  # kHz
    zones = [_number(file) for file in sysfs_root.glob("class/thermal/thermal_zone*/temp")]  # 1/1000 °C
    warmest = max((value for value in zones if value is not None), default=None)
    found: Mapping[str, Condition | None] = {
        "pinned_cpus": ",".join(map(str, cpus)) or None,
        "governor": _text(cpufreq / "scaling_governor"),
        "frequency_hz": None if current is None else current * 1000,
        "max_frequency_hz": None if highest is None else highest * 1000,
        "temperature_c": None if warmest is None else warmest / 1000,
    }
    return {name: value for name, value in found.items() if value is not None}


_CPUFREQ = "devices/system/cpu/cpu{}/cpufreq"


def _run_samples(
    base: list[str],
    inputs: Sequence[Sequence[NDArray[Any]]],
    outputs: Sequence[TensorSpec],
    plan: RunPlan,
    folder: Path,
) -> tuple[bench.Answer, list[list[NDArray[Any]]]]:
    source = folder / "inputs"
    answer = _run_bench([*base, *_stored(inputs, source), *bench.timing_arguments(plan)], plan.timeout_s)
    bench.check_outputs(answer, outputs)
    data = _outputs_of(source).read_bytes() if inputs else b""
    return answer, bench.decode_outputs(data, outputs, len(inputs))


def _stored(inputs: Sequence[Sequence[NDArray[Any]]], file: Path) -> list[str]:
    """Write the samples to `file` and return the arguments that run them."""
    with open(file, "wb") as stream:
        stream.writelines(bench.encode(inputs))
    return bench.sample_arguments(str(file), str(_outputs_of(file)), len(inputs))


def _outputs_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.outputs")


def device_run(
    answer: bench.Answer,
    outputs: list[list[NDArray[Any]]],
    conditions: Mapping[str, Condition],
    how: str = "measured",
) -> DeviceRun:
    """Return what the measuring program found out, on whichever Linux it ran; without energy."""
    return DeviceRun(
        outputs=outputs,
        samples_s=answer.samples_s,
        how=how,
        batch=answer.batch,
        inferences=answer.inferences,
        arena_bytes=answer.arena_bytes,
        weight_bytes=answer.weight_bytes,
        threads=answer.threads,
        peak_rss_bytes=answer.peak_rss_bytes,
        baseline_rss_bytes=answer.baseline_rss_bytes,
        conditions=conditions,
    )


def _with_energy(run: DeviceRun, energy: _Energy | None) -> DeviceRun:
    if energy is None:
        return run
    return replace(
        run,
        energy=energy.reading,
        idle=energy.idle,
        energy_inferences=energy.inferences,
        energy_busy_s=energy.busy_s,
    )


def _run_bench(command: list[str], timeout_s: float) -> bench.Answer:
    started = time.monotonic()
    try:
        done = shell.run(command, timeout_s=timeout_s, check=False)
    except ToolError as error:
        if time.monotonic() - started < timeout_s:
            raise DeviceError(f"the measuring program could not be run: {error}") from error
        raise DeviceError(
            f"the model did not finish within {timeout_s:g} s and was stopped: it hangs, or needs a longer time limit"
        ) from None
    return bench.decode(done.stdout, done.returncode)


def _existing(library: Path) -> Path:
    path = library.absolute()  # with a slash in it: dlopen would look for a bare name elsewhere
    if not path.is_file():
        raise InputError(f"there is no library {path}: give the libmodel.so of an artifact")
    return path


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Say what could not be kept where the disk fails, as a ToolError."""
    try:
        yield
    except OSError as error:
        place = tempfile.gettempdir()
        raise ToolError(
            f"cannot keep {what} in {place}: {(error.strerror or str(error)).lower()}; "
            "free some space or set TMPDIR to another folder"
        ) from error


def _text(file: Path) -> str | None:
    try:
        return file.read_text("utf-8", "replace").strip()[:200] or None
    except OSError:  # no such sensor, or one that cannot be read now: it is left out
        return None


def _number(file: Path) -> int | None:
    try:
        return int(_text(file) or "")
    except ValueError:
        return None
