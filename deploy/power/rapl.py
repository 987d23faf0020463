"""RAPL: the energy counters of x86 processors, one per package, in /sys/class/powercap (Intel and AMD).

intel-rapl:0/name                 package-0
intel-rapl:0/energy_uj            123456789     counts up, about every millisecond
intel-rapl:0/max_energy_range_uj  262143328850  then starts again at 0
intel-rapl:0:0/…                  core          a part of its package: not added
intel-rapl:1/name                 psys          the whole platform, packages included: not added
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from deploy.errors import DeviceError
from deploy.power.evaluate import reading_of
from deploy.power.integrate import counter_steps
from deploy.power.reading import EnergyReading
from deploy.power.sampler import Channel, Recording, SampledMeter
from deploy.power.sysfs import read_int, read_name
from deploy.power.trace import MeterFacts

INTERVAL_S = 0.02  # some twenty of the counter's steps, so that a window's ends are known; a read takes microseconds
SHORTEST_S = 0.05  # the counter moves once a millisecond: 2 % of this
_IMPLAUSIBLE_W = 10_000.0
_REMEDY = (
    "reading energy counters is kept to root since CVE-2020-8694; run as root, or once after each boot: "
    "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
)


@dataclass(frozen=True)
class Package:
    """One processor package: the file that counts its energy and the value after which it starts again at 0."""

    name: str
    counter: Path
    maximum_uj: int


def find_packages(sysfs_root: Path) -> tuple[Package, ...]:
    """Return the package domains, by name. Raises DeviceError when there are none, or a range cannot be read."""
    packages = []
    for domain in sorted(sysfs_root.glob("class/powercap/intel-rapl:*")):
        name = read_name(domain / "name")
        if name.startswith("package"):
            maximum = read_int(domain / "max_energy_range_uj", remedy=_REMEDY)
            if maximum <= 0:
                raise DeviceError(f"{domain}/max_energy_range_uj is {maximum}; the range of a counter is above 0")
            packages.append(Package(name, domain / "energy_uj", maximum))
    if not packages:
        raise DeviceError(
            f"no RAPL energy counters in {sysfs_root}/class/powercap: the processor has none, the machine is virtual, "
            "or the module intel_rapl_msr is not loaded (sudo modprobe intel_rapl_msr)"
        )
    return tuple(packages)


def open_rapl(sysfs_root: Path, interval_s: float = INTERVAL_S, accuracy: float | None = None) -> SampledMeter:
    """Return a meter that adds up all packages. Raises DeviceError: no counter, or not permitted (saying how to)."""
    packages = find_packages(sysfs_root)
    channels = [Channel(package.name, "uJ", partial(read_int, package.counter, remedy=_REMEDY)) for package in packages]
    for channel in channels:
        channel.read()
    names = tuple(package.name for package in packages)
    source = "RAPL " + " + ".join(names)
    facts = MeterFacts("RAPL", 1 / interval_s, None, names, "inside the processor, its packages only", accuracy)
    judge = partial(evaluate, packages=packages, source=source, facts=facts)
    return SampledMeter("rapl", source, channels, judge, interval_s)


def evaluate(
    recording: Recording, *, packages: Sequence[Package], source: str, facts: MeterFacts | None = None
) -> EnergyReading:
    """Return the energy of all packages over the recording; not complete, saying why, if any of it is in doubt."""
    problem = recording.problem
    if not problem and recording.seconds < SHORTEST_S:
        took = f"the run took {recording.seconds:.3g} s"
        problem = f"{took}; RAPL needs at least {SHORTEST_S:g} s: repeat the model more often"
    energies = []
    for package in packages:
        if problem:
            break
        steps, problem = _steps(recording, package)
        energies.append([0.0, *accumulate(step / 1e6 for step in steps)])
    if problem:
        return EnergyReading(None, recording.seconds, "measured", source, recording.samples, problem, meter=facts)
    trace = recording.trace(energies, packages[0].name, facts or MeterFacts("RAPL"))
    return reading_of(trace, source, recording.samples)


def _steps(recording: Recording, package: Package) -> tuple[list[int], str]:
    """Return the steps of one package's counter and "" or, with none, what is wrong with it."""
    samples = recording.of(package.name)
    try:
        steps = counter_steps([sample.value for sample in samples], package.maximum_uj)
    except ValueError as error:
        return [], f"{package.name}: {error}"
    if sum(steps) == 0:
        return [], f"{package.name}: the energy counter did not move in {recording.seconds:.3g} s (frozen)"
    for before, after, step in zip(samples, samples[1:], steps, strict=False):
        watts = step / 1e6 / max(after.time_s - before.time_s, 1e-3)
        if watts > _IMPLAUSIBLE_W:
            return [], f"{package.name}: {watts:.0f} W for a moment; the counter was reset (sleep, driver reload)"
    return steps, ""
