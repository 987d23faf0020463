"""hwmon: power sensors of boards and servers in /sys/class/hwmon, one folder per chip.

    hwmon3/name             ina3221
    hwmon3/energy1_input    µJ, counts up
    hwmon3/power1_input     µW
    hwmon3/curr1_input      mA ┐ their product is µW
    hwmon3/in1_input        mV ┘
    hwmon3/in1_label        VDD_IN      what the board's makers call it; also power1_label, …
    hwmon3/update_interval  ms between conversions, if the chip says so

A rail is an index of a chip: its energy counter if it has one, else its power, else current times voltage. Its name
is chip/label, or chip/rail1. Rails overlap (a board's input feeds its CPU's supply), so they are never added up
unasked: with more than one, the target names those that count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

from deploy.errors import DeviceError, InputError
from deploy.power.evaluate import reading_of
from deploy.power.integrate import counter_steps, largest_gap
from deploy.power.reading import EnergyReading
from deploy.power.sampler import Channel, Recording, SampledMeter
from deploy.power.sysfs import read_int, read_name
from deploy.power.trace import MeterFacts
from deploy.units import did_you_mean

INTERVAL_S = 0.01
FEWEST_UPDATES = 10  # of the sensor during a run: the ends are known to about one update each
_LONGEST_GAP = 20  # intervals between two samples before the line between them is a guess


@dataclass(frozen=True)
class Rail:
    """One supply rail: the files to read (two for current and voltage) and how often the chip has a new value."""

    name: str
    unit: Literal["uJ", "uW"]
    files: tuple[Path, ...]
    update_s: float

    def read(self) -> int:
        """Return the raw value: µJ of a counter, µW of a power (mA times mV is µW). Raises DeviceError."""
        product = 1
        for file in self.files:
            product *= read_int(file)
        return product


def find_rails(sysfs_root: Path) -> tuple[Rail, ...]:
    """Return all rails of all chips, in the order of their names."""
    chips = [(read_name(chip / "name") or chip.name, chip) for chip in sorted(sysfs_root.glob("class/hwmon/hwmon*"))]
    same_name = Counter(name for name, _ in chips)
    rails: list[Rail] = []
    for name, chip in chips:
        if same_name[name] > 1:  # the device it sits on ("1-0040": bus and address) keeps its name over reboots
            name = f"{name}@{(chip / 'device').resolve().name if (chip / 'device').exists() else chip.name}"
        rails += _rails_of(chip, name)
    return tuple(sorted(rails, key=lambda rail: rail.name))


def open_hwmon(
    sysfs_root: Path,
    rails: Sequence[str] = (),
    interval_s: float = INTERVAL_S,
    accuracy: float | None = None,
    wiring: str = "",
) -> SampledMeter:
    """Return a meter that adds up the named rails, or watches the only one.

    Raises DeviceError: no sensor, several and none named, or one that cannot be read; InputError: a name not there.
    """
    chosen = select_rails(find_rails(sysfs_root), rails, sysfs_root)
    for rail in chosen:
        rail.read()
    channels = [Channel(rail.name, rail.unit, rail.read) for rail in chosen]
    names = tuple(rail.name for rail in chosen)
    source = "hwmon " + " + ".join(names)
    rate = 1 / max(interval_s, *(rail.update_s for rail in chosen))
    facts = MeterFacts("hwmon", rate, None, names, wiring, accuracy)
    judge = partial(evaluate, rails=chosen, source=source, interval_s=interval_s, facts=facts)
    return SampledMeter("hwmon", source, channels, judge, interval_s)


def select_rails(found: Sequence[Rail], names: Sequence[str], sysfs_root: Path) -> tuple[Rail, ...]:
    """Return the rails called `names`, or the only one there is; errors as of `open_hwmon`."""
    if not found:
        raise DeviceError(f"no power sensor in {sysfs_root}/class/hwmon: there is none, or its driver is not loaded")
    by_name = {rail.name: rail for rail in found}
    listed = ", ".join(by_name)
    for name in names:
        if name not in by_name:
            raise InputError(f'no power sensor is called "{name}"; there are: {listed}{did_you_mean(name, by_name)}')
    if len(set(names)) < len(names):
        raise InputError(f"a power sensor is named twice in {', '.join(names)}: it would be counted twice")
    if not names and len(found) > 1:
        raise DeviceError(f"several power sensors, of which some may include others: name those that count ({listed})")
    return tuple(by_name[name] for name in names) if names else tuple(found)


def evaluate(
    recording: Recording, *, rails: Sequence[Rail], source: str, interval_s: float, facts: MeterFacts | None = None
) -> EnergyReading:
    """Return the energy of `rails` over the recording; not complete, saying why, if any of it is in doubt."""
    energies = []
    problem = recording.problem
    for rail in rails:
        if problem:
            break
        shortest = FEWEST_UPDATES * max(interval_s, rail.update_s)
        if recording.seconds < shortest:
            problem = (
                f"{rail.name}: the run took {recording.seconds:.3g} s; this sensor needs at least {shortest:.3g} s: "
                "repeat the model more often"
            )
            break
        energy, problem = _energies_j(recording, rail, interval_s)
        energies.append(energy)
    if problem:
        return EnergyReading(None, recording.seconds, "measured", source, recording.samples, problem, meter=facts)
    trace = recording.trace(energies, rails[0].name, facts or MeterFacts("hwmon"))
    return reading_of(trace, source, recording.samples)


def _energies_j(recording: Recording, rail: Rail, interval_s: float) -> tuple[list[float], str]:
    """Return the energy of one rail since its first sample and "" or, with none, what is wrong with it."""
    samples = recording.of(rail.name)
    values = [sample.value for sample in samples]
    times = [sample.time_s for sample in samples]
    if rail.unit == "uJ":
        try:
            steps = counter_steps(values, None)
        except ValueError as error:
            return [], f"{rail.name}: {error}"
        if sum(steps) == 0:
            return [], f"{rail.name}: the energy counter did not move in {recording.seconds:.3g} s (frozen)"
        return [0.0, *accumulate(step / 1e6 for step in steps)], ""
    if min(values) < 0:
        return [], f"{rail.name}: negative, {min(values) / 1e6:g} W: the sensor may be wired the wrong way round"
    if max(values) == 0:
        return [], f"{rail.name}: 0 W throughout: the sensor is not connected, or its rail is off"
    gap = largest_gap(times)
    if gap > _LONGEST_GAP * max(interval_s, rail.update_s):
        return [], f"{rail.name}: no sample for {gap:.3g} s; the machine was too busy to watch the sensor"
    pairs = pairwise(zip(times, values, strict=True))
    return [0.0, *accumulate((end - begin) * (one + two) / 2e6 for (begin, one), (end, two) in pairs)], ""


def _rails_of(chip: Path, chip_name: str) -> list[Rail]:
    inputs: dict[str, dict[int, Path]] = {kind: {} for kind in ("energy", "power", "curr", "in")}
    for file in chip.glob("*_input"):
        if match := re.fullmatch(r"(energy|power|curr|in)(\d{1,4})_input", file.name):
            inputs[match[1]][int(match[2])] = file
    indexes = {*inputs["energy"], *inputs["power"], *(inputs["curr"].keys() & inputs["in"].keys())}
    interval = read_name(chip / "update_interval")
    update_s = int(interval) / 1000 if re.fullmatch(r"\d{1,9}", interval, re.ASCII) else 0.0
    labels = {index: _label(chip, index) for index in sorted(indexes)}
    same_label = Counter(labels.values())
    rails = []
    for index, label in labels.items():
        name = f"{chip_name}/{label}" if same_label[label] == 1 else f"{chip_name}/{label}-{index}"
        if index in inputs["energy"]:
            rails.append(Rail(name, "uJ", (inputs["energy"][index],), update_s))
        elif index in inputs["power"]:
            rails.append(Rail(name, "uW", (inputs["power"][index],), update_s))
        else:
            rails.append(Rail(name, "uW", (inputs["curr"][index], inputs["in"][index]), update_s))
    return rails


def _label(chip: Path, index: int) -> str:
    labels = (read_name(chip / f"{kind}{index}_label") for kind in ("energy", "power", "curr", "in"))
    return next(filter(None, labels), f"rail{index}")
