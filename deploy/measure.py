"""A library on a device → what it costs: latency, memory, size, power and energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from deploy.device.protocol import Condition, Device, DeviceRun, RunPlan
from deploy.errors import InputError
from deploy.model_spec import TensorSpec
from deploy.power import EnergyReading, per_inference
from deploy.statistics import Summary, summarize

_BUSY_SHARE = 0.95  # of the metered time; the rest goes into starting the program and is charged to the model


class Specs(Protocol):
    """Whatever knows a model's inputs and outputs, such as a SourceModel."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a model costs on a device.

    how: the samples were measured, emulated or estimated. rounds_s: the raw samples of every round, seconds of one
    inference each, in the order taken; `used` are the rounds that `summary` is of (see `choose_rounds`). batch:
    inferences that one sample averages, by round. outputs: for each sample given, the model's outputs on the device.
    power: the reading of the whole metered run, with its raw samples; energy: of one inference, everything the device
    drew; energy_above_idle: only what it drew more than when idle. None when energy was not asked for; not complete,
    saying why, when it could not be read. instructions, layers, stack_bytes: of an emulated microcontroller.
    """

    how: str
    rounds_s: tuple[tuple[float, ...], ...]
    used: tuple[int, ...]
    summary: Summary
    batch: tuple[int, ...]
    outputs: list[list[NDArray[Any]]]
    threads: int
    arena_bytes: int
    weights_bytes: int
    library_bytes: int
    peak_rss_bytes: int | None
    baseline_rss_bytes: int | None
    power: EnergyReading | None
    energy: EnergyReading | None
    energy_above_idle: EnergyReading | None
    conditions: tuple[Mapping[str, Condition], ...]
    instructions: tuple[int, ...] = ()
    layers: tuple[int, ...] = ()
    stack_bytes: int | None = None

    @property
    def samples_s(self) -> tuple[float, ...]:
        """The raw samples that `summary` is of."""
        return tuple(sample for index in self.used for sample in self.rounds_s[index])

    @property
    def note(self) -> str:
        """How the rounds were used, in a sentence; empty when one was enough."""
        count = len(self.rounds_s)
        if count == 1:
            return ""
        if len(self.used) == 1:
            return f"measured {count} times because the samples were noisy; the last time they were not, and it counts"
        return f"measured {count} times because the samples were noisy every time; all of them count together"


def measure(
    device: Device,
    library: Path,
    prefix: str,
    specs: Specs,
    inputs: Sequence[Sequence[NDArray[Any]]],
    plan: RunPlan,
) -> Measurement:
    """Return what the model `prefix` in `library` costs on `device`, which is open.

    inputs: for each sample one array for each input; all are run for their outputs, the first one is timed. As long as
    the samples are noisy they are taken again, up to `plan.max_rounds` times in all. library_bytes is the file's size.

    Raises InputError: no samples, a sample that does not fit the model, or no such file; DeviceError as `Device.run`.
    """
    check_inputs(specs.inputs, inputs)
    try:
        library_bytes = library.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the library {library}: {(error.strerror or str(error)).lower()}") from error
    runs = [device.run(library, prefix, inputs, specs.outputs, plan)]
    again = replace(plan, energy_seconds=None)
    while runs[0].how == "measured" and summarize(runs[-1].samples_s).noisy and len(runs) < plan.max_rounds:
        runs.append(device.run(library, prefix, inputs[:1], specs.outputs, again))
    return combine(runs, library_bytes)


def combine(runs: Sequence[DeviceRun], library_bytes: int) -> Measurement:
    """Return the measurement of one or more runs of the same library; outputs and energy are those of the first."""
    first = runs[0]
    rounds = tuple(run.samples_s for run in runs)
    used = choose_rounds(rounds)
    power, energy, above_idle = energy_of(first)
    peaks = [run.peak_rss_bytes for run in runs if run.peak_rss_bytes is not None]
    return Measurement(
        how=first.how,
        rounds_s=rounds,
        used=used,
        summary=summarize([sample for index in used for sample in rounds[index]]),
        batch=tuple(run.batch for run in runs),
        outputs=first.outputs,
        threads=first.threads,
        arena_bytes=first.arena_bytes,
        weights_bytes=first.weight_bytes,
        library_bytes=library_bytes,
        peak_rss_bytes=max(peaks, default=None),
        baseline_rss_bytes=first.baseline_rss_bytes,
        power=power,
        energy=energy,
        energy_above_idle=above_idle,
        conditions=tuple(run.conditions for run in runs),
        instructions=first.instructions,
        layers=first.layers,
        stack_bytes=first.stack_bytes,
    )


def choose_rounds(rounds: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Return the rounds to draw conclusions from: the last one if it is not noisy, else all of them.

    Measuring stops at the first round that is not noisy. To pick the best of several noisy ones would report luck.
    """
    last = len(rounds) - 1
    return tuple(range(len(rounds))) if summarize(rounds[last]).noisy else (last,)


def energy_of(run: DeviceRun) -> tuple[EnergyReading | None, EnergyReading | None, EnergyReading | None]:
    """Return the whole reading, and that of one inference: all of it and what is above idle; None if not asked for.

    All three are not complete when the model ran for too little of the metered time: the power would be too low.
    """
    whole = run.energy
    if whole is None:
        return None, None, None
    share = run.energy_busy_s / whole.seconds if whole.seconds > 0 else 0.0
    if whole.complete and (run.energy_inferences < 1 or share < _BUSY_SHARE):
        reason = f"the model ran for only {share:.0%} of the metered time; raise power's `duration`"
        whole = replace(whole, joules=None, reason=reason)
    if not whole.complete:
        return whole, whole, whole
    above = None if run.idle is None else per_inference(whole, run.energy_inferences, run.idle)
    return whole, per_inference(whole, run.energy_inferences), above


def check_inputs(specs: Sequence[TensorSpec], inputs: Sequence[Sequence[NDArray[Any]]]) -> None:
    """Raise InputError, naming the sample and the input, when `inputs` are not samples of `specs`, or none."""
    if not inputs:
        raise InputError("there are no samples to run the model on: give at least one")
    for number, sample in enumerate(inputs):
        if len(sample) != len(specs):
            raise InputError(f"sample {number} has {len(sample)} inputs; the model has {len(specs)}")
        for spec, array in zip(specs, sample, strict=True):
            if array.shape != spec.shape or array.dtype.name != spec.dtype:
                raise InputError(
                    f"input '{spec.name}' of sample {number} is {array.dtype.name} of shape {_times(array.shape)}; "
                    f"the model takes {spec.dtype} of shape {_times(spec.shape)}"
                )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"
