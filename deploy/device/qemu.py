"""A microcontroller emulated by QEMU, which counts its instructions; the firmware talks to it by semihosting."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

from numpy.typing import NDArray

from deploy import shell
from deploy.device import bench
from deploy.device.folder import InFolder
from deploy.device.protocol import DeviceRun, RunPlan
from deploy.errors import DeviceError, InputError, ToolError
from deploy.firmware import harness
from deploy.firmware.link import MEMORIES, compile_command, link_command, memories_script, source_path
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading
from deploy.power.estimate import estimate
from deploy.target import Target
from deploy.units import render

PROGRAM = "qemu-system-arm"
_COMPILE_S = 120.0
_STRICT = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")
_SHOWN = 200  # characters of what QEMU said


class QemuDevice(InFolder):
    """Runs firmware libraries of one target; the part of the harness that fits all models is compiled on entering.

    Raises InputError for a target that lacks what an image needs: clock, memory with its addresses, machine.
    """

    def __init__(self, target: Target) -> None:
        machine = target.device.get("machine")
        given = {
            "clock": target.clock,
            "machine in device": machine,
            **{f"{name} in memory": value for name, value in target.memory.places.items()},
        }
        self._own = harness.sources(target.architecture)
        if "stopwatch_cortex_m.c" in self._own:
            given["tick in device"] = target.device.get("tick")
        if missing := [name for name, value in given.items() if value is None]:
            raise InputError(f"target {target.name} has no {missing[0]}, which running it in QEMU needs")
        self._target = target
        self._tick = harness.tick_flags(cast("float | None", target.device.get("tick")))

    def __enter__(self) -> Self:
        """Compile the harness. Raises DeviceError: QEMU is missing; ToolError: the compiler is, or it fails."""
        if shell.which(self._program) is None:
            raise DeviceError(f"{self._program} was not found: install it ({shell.package_of(self._program)})")
        self._open()
        try:
            for name in self._own:
                self._compile(source_path(name), f"{name}.o", self._tick)
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
        """Run a model once on each sample and count its instructions; see `Device.run`.

        `samples_s` is an estimate: an instruction a cycle at the target's clock. The calls of kernels are counted in an
        image of its own, made from src/model.c beside the library, on the first sample.
        """
        if not library.is_file():
            raise InputError(f"there is no library {library}: give the libmodel.a of an artifact")
        header = (library.parent / "model.h").read_text(encoding="utf-8")
        answer, data = self._answer(library.absolute(), prefix, inputs, plan, layers=False)
        values = bench.decode_outputs(data, outputs, len(inputs))
        sequence = library.parent / "src" / "model.c"
        layers: tuple[int, ...] = ()
        if sequence.is_file():
            layers = self._answer(library.absolute(), prefix, inputs[:1], plan, layers=True)[0].layers
        return self._device_run(answer, layers, values, header, prefix, metered=plan.energy_seconds is not None)

    def _device_run(
        self,
        answer: harness.Answer,
        layers: tuple[int, ...],
        outputs: list[list[NDArray[Any]]],
        header: str,
        prefix: str,
        *,
        metered: bool,
    ) -> DeviceRun:
        clock = cast(float, self._target.clock)
        times = tuple(count / clock for count in answer.instructions)
        return DeviceRun(
            outputs=outputs,
            samples_s=times,
            how="estimated",
            batch=1,
            inferences=len(times),
            arena_bytes=harness.macro_value(header, prefix, "ARENA_BYTES"),
            weight_bytes=harness.macro_value(header, prefix, "WEIGHT_BYTES"),
            threads=1,
            energy=self._energy(times[0]) if metered else None,
            energy_inferences=1,
            energy_busy_s=times[0],
            conditions={"clock_hz": clock, "emulator": self._program, "machine": self._machine},
            instructions=answer.instructions,
            layers=layers,
            stack_bytes=answer.stack_bytes,
        )

    @property
    def _machine(self) -> str:
        return str(self._target.device.get("machine"))

    @property
    def _program(self) -> str:
        return str(self._target.device.get("program") or PROGRAM)

    def _compile(self, source: Path, result: str, flags: Sequence[str]) -> None:
        command = compile_command(self._target.toolchain, [*_STRICT, *flags], str(source), result)
        shell.run(command, timeout_s=_COMPILE_S, cwd=self._work)

    def _answer(
        self, library: Path, prefix: str, inputs: Sequence[Sequence[NDArray[Any]]], plan: RunPlan, *, layers: bool
    ) -> tuple[harness.Answer, bytes]:
        """Build an image, run it on the samples, and return what it found and the bytes of all outputs."""
        image = self._image(library, prefix, layers=layers)
        with open(self._work / "inputs", "wb") as stream:
            stream.writelines(bench.encode(inputs))
        for name in ("answer", "outputs"):
            (self._work / name).write_bytes(b"")
        ran = self._emulate(image, plan.timeout_s)
        text = (self._work / "answer").read_text(encoding="utf-8", errors="replace")
        said = next(iter((ran.stderr or ran.stdout).strip().splitlines()), "nothing")[:_SHOWN]
        ended = f"{shell.exit_words(ran.returncode)}, saying: {said}"
        if not text:
            raise DeviceError(f"{self._program} did not start the model's program: it ended with {ended}")
        return harness.decode(text, ended), (self._work / "outputs").read_bytes()

    def _image(self, library: Path, prefix: str, *, layers: bool) -> str:
        flags = [f"-I{library.parent}", f"-I{source_path('harness.c').parent}"]
        header = (library.parent / "model.h").read_text(encoding="utf-8")
        named = harness.model_flags(prefix, header, self._target.memory, layers=layers)
        self._compile(source_path("harness.c"), "harness.o", [*flags, *named])
        objects = ["harness.o", *(f"{name}.o" for name in self._own)]
        if layers:
            hook = ["-include", str(source_path("hook.h"))]
            self._compile(library.parent / "src" / "model.c", "model.o", [*flags, *hook])
            objects.append("model.o")
        toolchain, memory = self._target.toolchain, self._target.memory
        script = memories_script(memory, harness.external_weights(prefix, header, memory))
        (self._work / MEMORIES).write_text(script, encoding="utf-8")
        more = MEMORIES if script else ""
        link = link_command(toolchain, [*objects, str(library)], "image", memory=memory, memories=more)
        try:
            shell.run(link, timeout_s=_COMPILE_S, cwd=self._work)
        except ToolError as error:
            raise DeviceError(f"the library does not link to an image for {self._target.name}: {error}") from error
        return "image"

    def _emulate(self, image: str, timeout_s: float) -> shell.Completed:
        spec = self._target.device
        limit = cast("float | None", spec.get("timeout")) or timeout_s
        started = time.monotonic()
        try:
            return shell.run(emulator_command(self._target, image), timeout_s=limit, cwd=self._work, check=False)
        except ToolError as error:
            if time.monotonic() - started < limit:
                raise DeviceError(f"{self._program} could not be run: {error}") from error
            raise DeviceError(
                f"the model did not finish within {limit:g} s in {self._program} and was stopped: it hangs, "
                "or needs a longer `timeout` in the target's device"
            ) from None

    def _energy(self, seconds: float) -> EnergyReading:
        power = self._target.power
        if power.active is None:
            return EnergyReading(None, seconds, "estimated", "no meter", reason="an emulator draws no power of its own")
        source = f"declared active power {render(power.active, 'power')}"
        return estimate(power.active, seconds, source, "for the estimated latency")


def emulator_command(target: Target, image: str) -> list[str]:
    """Return the command that runs `image`, an instruction a nanosecond, with files in the working directory."""
    spec = target.device
    cpu = ["-cpu", str(spec.get("cpu"))] if spec.get("cpu") else []
    return [
        str(spec.get("program") or PROGRAM), "-M", str(spec.get("machine")), *cpu,
        "-display", "none", "-monitor", "none", "-serial", "none",
        "-icount", "shift=0", "-semihosting-config", "enable=on,target=native",
        *cast("tuple[str, ...]", spec.get("arguments", ())), "-kernel", image,
    ]  # fmt: skip
