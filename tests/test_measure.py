"""Measurements: of a real library on this machine, and what is made of given runs."""

import time

import numpy as np
import pytest
from device_contract import PREFIX, QUICK, Model, build_libraries, reference, samples
from hypothesis import given
from hypothesis import strategies as st

from deploy.device import DeviceRun, LocalDevice, RunPlan
from deploy.errors import DeviceError, InputError
from deploy.measure import choose_rounds, combine, energy_of, measure
from deploy.power import EnergyReading, open_meter

QUIET = tuple(1e-3 + 1e-7 * (index % 7) for index in range(100))
NOISY = tuple(1e-3 * (1 + index % 5) for index in range(100))


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    return build_libraries(tmp_path_factory.mktemp("libraries"))


@pytest.fixture(scope="module")
def device():
    with LocalDevice(open_meter=lambda: open_meter("estimate", active_w=10, idle_w=4)) as opened:
        yield opened


def a_run(samples_s=QUIET, **facts):
    known = {"outputs": [], "how": "measured", "batch": 1, "inferences": 1, "arena_bytes": 64, "weight_bytes": 128,
             "threads": 1, "peak_rss_bytes": 1000}  # fmt: skip
    return DeviceRun(samples_s=samples_s, **known | facts)


def test_measure_a_library(device, libraries):
    plan = RunPlan(0.0, 0.1, 8, 200, energy_seconds=0.3, timeout_s=20, max_rounds=2)
    inputs = samples(3)
    found = measure(device, libraries["good"], PREFIX, Model(), inputs, plan)
    assert 0 < found.summary.median < 1e-3
    assert 1 <= len(found.rounds_s) <= 2
    assert (found.arena_bytes, found.weights_bytes, found.threads) == (48, 24, 1)
    assert found.library_bytes == libraries["good"].stat().st_size
    assert len(found.outputs) == 3
    np.testing.assert_array_equal(found.outputs[2][0], reference(inputs[2])[0])
    assert found.power.watts == pytest.approx(10)
    assert found.energy.joules == pytest.approx(10 * found.energy.seconds)
    assert found.energy_above_idle.joules == pytest.approx(6 * found.energy.seconds)


def test_errors_of_the_device_pass_through(device, libraries, tmp_path):
    with pytest.raises(DeviceError, match="SIGSEGV"):
        measure(device, libraries["segfaults"], PREFIX, Model(), samples(1), QUICK)
    with pytest.raises(InputError, match=r"cannot read the library .*missing\.so"):
        measure(device, tmp_path / "missing.so", PREFIX, Model(), samples(1), QUICK)


X, N = np.zeros((2, 3), np.float32), np.zeros(4, np.int8)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "no samples"),
        ([[X]], "sample 0 has 1 inputs; the model has 2"),
        ([[X, N], [X, N, N]], "sample 1 has 3 inputs"),
        ([[X, N], [X.T, N]], "'x' of sample 1 is float32 of shape 3x2; the model takes float32 of shape 2x3"),
        ([[X.astype(np.float64), N]], "'x' of sample 0 is float64"),
        ([[X, N.astype(np.uint8)]], "'n' of sample 0 is uint8"),
        ([[X, np.int8(1)]], r"'n' of sample 0 is int8 of shape \(\)"),
    ],
)
def test_samples_that_do_not_fit(device, libraries, inputs, words):
    with pytest.raises(InputError, match=words):
        measure(device, libraries["good"], PREFIX, Model(), inputs, QUICK)


class Disturbed(LocalDevice):
    """A real device on which the first `disturbances` runs time another library, whose times vary widely."""

    def __init__(self, varying, disturbances):
        super().__init__()
        self.varying = varying
        self.left = disturbances
        self.plans = []

    def run(self, library, prefix, inputs, outputs, plan):
        self.plans.append((len(inputs), plan))
        self.left -= 1
        return super().run(self.varying if self.left >= 0 else library, prefix, inputs, outputs, plan)


@pytest.fixture(scope="module")
def varying(tmp_path_factory):
    """A model that takes 0.2 to 4 ms in turn."""
    folder = tmp_path_factory.mktemp("varying")
    turn = "-DSLEEP_US=({static unsigned n; 200 + n++ % 5 * 1000;})"
    return build_libraries(folder, flags=(turn,))["good"]


def test_noisy_samples_are_taken_again_and_all_kept(libraries, varying):
    plan = RunPlan(0.0, 0.02, 50, 50, energy_seconds=0.1, timeout_s=20, max_rounds=3)
    with Disturbed(varying, 3) as disturbed:
        found = measure(disturbed, libraries["good"], PREFIX, Model(), samples(4), plan)
    assert [len(samples_s) for samples_s in found.rounds_s] == [50, 50, 50]
    assert found.used == (0, 1, 2)
    assert found.samples_s == sum(found.rounds_s, ())
    assert found.summary.noisy
    assert found.summary.count == 150
    assert "3 times" in found.note
    assert len(found.outputs) == 4
    # Outputs and energy are taken once.
    assert [(count, asked.energy_seconds) for count, asked in disturbed.plans] == [(4, 0.1), (1, None), (1, None)]


def test_the_first_quiet_round_counts(libraries, varying):
    started = time.monotonic()
    plan = RunPlan(0.0, 0.02, 50, 50, timeout_s=20, max_rounds=20)
    with Disturbed(varying, 1) as disturbed:
        found = measure(disturbed, libraries["slow"], PREFIX, Model(), samples(1), plan)
    assert 2 <= len(found.rounds_s) <= 20
    count = len(found.rounds_s)
    assert found.used == (count - 1,) or (count == 20 and found.used == tuple(range(20)))  # on a very busy machine
    assert found.note
    assert time.monotonic() - started < 60


def test_choose_rounds():
    assert choose_rounds([QUIET]) == (0,)
    assert choose_rounds([NOISY]) == (0,)
    assert choose_rounds([NOISY, NOISY, QUIET]) == (2,)
    assert choose_rounds([NOISY, NOISY]) == (0, 1)


def test_one_round_needs_no_note():
    assert combine([a_run()], 10).note == ""
    assert "it counts" in combine([a_run(NOISY), a_run()], 10).note


def test_peak_memory_is_the_highest_of_all_rounds():
    runs = [a_run(NOISY, peak_rss_bytes=5), a_run(peak_rss_bytes=7), a_run(peak_rss_bytes=None)]
    assert combine(runs, 10).peak_rss_bytes == 7


def test_what_was_not_measured_is_none():
    found = combine([a_run(peak_rss_bytes=None)], 10)
    assert found.peak_rss_bytes is None
    assert (found.power, found.energy, found.energy_above_idle) == (None, None, None)
    broken = combine([a_run(energy=EnergyReading(None, 1.0, "measured", "m", reason="broken"))], 10)
    assert broken.energy.reason == "broken"


def metered(joules=10.0, seconds=2.0, busy_s=1.99, inferences=100, idle_j=4.0):
    idle = None if idle_j is None else EnergyReading(idle_j, 2.0, "measured", "meter")
    energy = EnergyReading(joules, seconds, "measured", "meter")
    return a_run(energy=energy, idle=idle, energy_inferences=inferences, energy_busy_s=busy_s)


def test_energy_is_all_that_the_device_drew():
    power, energy, above = energy_of(metered())
    assert (power.watts, energy.joules, above.joules) == (5, pytest.approx(0.1), pytest.approx(0.06))
    assert energy_of(metered(idle_j=None))[2] is None


def test_metering_mostly_something_else_is_no_reading():
    found = combine([metered(busy_s=1.0)], 10)
    assert (found.power.joules, found.energy.joules) == (None, None)
    assert "only 50% of the metered time" in found.energy.reason
    assert not energy_of(metered(inferences=0))[1].complete


@given(st.lists(st.lists(st.floats(1e-7, 10), min_size=1, max_size=60), min_size=1, max_size=4))
def test_statistics_stay_within_the_samples_and_none_is_lost(rounds):
    found = combine([a_run(tuple(one)) for one in rounds], 10)
    assert found.rounds_s == tuple(map(tuple, rounds))
    assert min(found.samples_s) <= found.summary.median <= found.summary.p99 <= max(found.samples_s)
    assert found.summary.count == len(found.samples_s)
