"""Meters read real files, laid out as the kernel lays out /sys, that a thread changes as hardware would."""

import contextlib
import math
import os
import shutil
import tempfile
import threading
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import DeviceError, InputError
from deploy.power import EnergyReading, open_meter, per_inference
from deploy.power.estimate import EstimateMeter, estimate
from deploy.power.hwmon import Rail, evaluate, find_rails, open_hwmon
from deploy.power.integrate import counter_steps, largest_gap
from deploy.power.rapl import find_packages, open_rapl
from deploy.power.reading import Sample
from deploy.power.sampler import Recording

RANGE_UJ = 262_143_328_850


def put(file, value):
    """Change a file in one step, as sysfs does: a reader never sees half a number."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(file.name + "~")
    scratch.write_text(f"{value}\n")
    os.replace(scratch, file)


def rapl(root, number, name, energy_uj, maximum_uj=RANGE_UJ):
    folder = root / "class" / "powercap" / f"intel-rapl:{number}"
    put(folder / "name", name)
    put(folder / "energy_uj", energy_uj)
    put(folder / "max_energy_range_uj", maximum_uj)
    return folder / "energy_uj"


def hwmon(root, number, name, device="0-0040", **files):
    """A chip as a link into its device's folder, which is where the kernel keeps it."""
    real = root / "devices" / f"i2c-{number}" / device / "hwmon" / f"hwmon{number}"
    for file, value in {"name": name, **files}.items():
        put(real / file, value)
    (real / "device").symlink_to(real.parent.parent)
    link = root / "class" / "hwmon" / f"hwmon{number}"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(real)
    return real


def measure(meter, seconds, during=lambda: None):
    meter.start()
    time.sleep(seconds / 2)
    during()
    time.sleep(seconds / 2)
    return meter.stop()


@contextlib.contextmanager
def hardware(step, interval_s=0.005):
    """Call `step` (seconds since the start) again and again, as a sensor's firmware does."""
    end, begun = threading.Event(), time.monotonic()

    def work():
        while not end.wait(interval_s):
            step(time.monotonic() - begun)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


# --- arithmetic ---


@given(
    st.integers(1, 10**12).flatmap(
        lambda top: st.tuples(st.just(top), st.integers(0, top - 1), st.lists(st.integers(0, top - 1), max_size=20))
    )
)
def test_wrapping_counter_adds_up_to_what_was_used(case):
    maximum, start, used = case
    values = [start]
    for energy in used:
        values.append((values[-1] + energy) % maximum)
    assert counter_steps(values, maximum) == used


@pytest.mark.parametrize(("values", "maximum"), [([-1, 0], 9), ([0, 10], 9), ([5, 4], None), ([-1], None)])
def test_impossible_counters_are_refused(values, maximum):
    with pytest.raises(ValueError, match="counter"):
        counter_steps(values, maximum)


@given(st.lists(st.floats(0, 10), max_size=20))
def test_the_largest_gap_is_one_of_them(steps):
    times = [math.fsum(steps[:i]) for i in range(len(steps))]
    assert largest_gap(times) == pytest.approx(max((b - a for a, b in pairwise(times)), default=0.0))


# --- RAPL ---


def test_packages_are_added_and_parts_and_platform_are_not(tmp_path):
    first = rapl(tmp_path, "0", "package-0", 1_000_000)
    second = rapl(tmp_path, "1", "package-1", 5_000_000)
    rapl(tmp_path, "0:0", "core", 7)
    rapl(tmp_path, "2", "psys", 7)
    meter = open_rapl(tmp_path, interval_s=1.0)

    def use():
        put(first, 1_500_000)
        put(second, 5_250_000)

    reading = measure(meter, 0.1, use)
    assert reading.joules == pytest.approx(0.75)
    assert (reading.how, reading.complete, reading.reason) == ("measured", True, "")
    assert reading.source == "RAPL package-0 + package-1"
    assert 0.1 <= reading.seconds < 1
    assert reading.watts == pytest.approx(0.75 / reading.seconds)
    assert [(s.channel, s.value, s.unit) for s in reading.samples] == [
        ("package-0", 1_000_000, "uJ"),
        ("package-1", 5_000_000, "uJ"),
        ("package-0", 1_500_000, "uJ"),
        ("package-1", 5_250_000, "uJ"),
    ]


def test_counter_that_wraps_several_times(tmp_path):
    maximum, state = 1_000_000, {"used": 900_000}
    counter = rapl(tmp_path, "0", "package-0", 900_000, maximum)

    def step(_):
        state["used"] += 60_000
        put(counter, state["used"] % maximum)

    with open_rapl(tmp_path, interval_s=0.005) as meter:
        meter.start()
        before = state["used"]
        with hardware(step):
            time.sleep(0.5)
        reading = meter.stop()
    assert before == 900_000
    assert state["used"] > 2 * maximum
    assert reading.joules == pytest.approx((state["used"] - 900_000) / 1e6)


def test_frozen_counter_is_not_a_measurement(tmp_path):
    rapl(tmp_path, "0", "package-0", 42)
    reading = measure(open_rapl(tmp_path, interval_s=1.0), 0.1)
    assert reading.joules is None
    assert not reading.complete
    assert reading.watts is None
    assert "did not move" in reading.reason
    assert len(reading.samples) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "does not exist"),
        ("", "not a whole number"),
        ("12 34", "not a whole number"),
        ("1e9", "not a whole number"),
        ("\x00\xff", "not a whole number"),
        ("9" * 50, "not a whole number"),
        ("-5", "outside 0.."),
        (str(RANGE_UJ + 1), "outside 0.."),
        ("10", "was reset"),
    ],
)
def test_counter_that_breaks_during_the_run(tmp_path, content, reason):
    counter = rapl(tmp_path, "0", "package-0", 5_000_000)
    reading = measure(open_rapl(tmp_path), 0.1, counter.unlink if content is None else partial(put, counter, content))
    assert reading.joules is None
    assert reason in reading.reason


def test_short_run_is_not_a_measurement(tmp_path):
    counter = rapl(tmp_path, "0", "package-0", 0)
    reading = measure(open_rapl(tmp_path), 0.002, partial(put, counter, 10))
    assert reading.joules is None
    assert "repeat the model more often" in reading.reason


def test_no_rapl_or_a_broken_one(tmp_path):
    with pytest.raises(DeviceError, match=r"no RAPL energy counters.*modprobe"):
        open_rapl(tmp_path)
    counter = rapl(tmp_path, "0", "package-0", "oops")
    with pytest.raises(DeviceError, match="not a whole number"):
        open_rapl(tmp_path)
    counter.unlink()
    with pytest.raises(DeviceError, match="does not exist"):
        open_rapl(tmp_path)
    rapl(tmp_path, "0", "package-0", 0, 0)
    with pytest.raises(DeviceError, match="above 0"):
        find_packages(tmp_path)


@pytest.fixture
def other_user():
    """A folder that another user may look into, and that user."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)

    @contextlib.contextmanager
    def become():
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)

    yield folder, become
    shutil.rmtree(folder)


def test_root_only_counter_says_how_to_allow_it(other_user):
    root, become = other_user
    rapl(root, "0", "package-0", 5).chmod(0o400)
    with become(), pytest.raises(DeviceError, match=r"no permission.*CVE-2020-8694.*chmod a\+r"):
        open_rapl(root)
    with become(), open_meter("auto", root) as meter:
        assert meter.kind == "none"
        assert "CVE-2020-8694" in measure(meter, 0).reason


# --- a meter's life ---


def test_meter_can_be_used_again_and_misuse_is_a_bug(tmp_path):
    counter = rapl(tmp_path, "0", "package-0", 0)
    with open_rapl(tmp_path) as meter:
        with pytest.raises(RuntimeError, match="not started"):
            meter.stop()
        first = measure(meter, 0.06, partial(put, counter, 1_000_000))
        second = measure(meter, 0.06, partial(put, counter, 3_000_000))
        meter.start()
        with pytest.raises(RuntimeError, match="already running"):
            meter.start()
    assert (first.joules, second.joules) == (1.0, 2.0)


def test_leaving_the_context_ends_the_thread(tmp_path):
    rapl(tmp_path, "0", "package-0", 0)
    before = threading.active_count()
    with contextlib.suppress(KeyboardInterrupt), open_rapl(tmp_path) as meter:
        meter.start()
        assert threading.active_count() == before + 1
        raise KeyboardInterrupt
    assert threading.active_count() == before


def test_idle_watches_the_sensor(tmp_path):
    hwmon(tmp_path, 0, "ina226", power1_input=500_000)
    with open_hwmon(tmp_path) as meter:
        idle = meter.idle(0.2)
    assert idle.watts == pytest.approx(0.5, rel=0.01)
    assert idle.seconds >= 0.2


# --- hwmon ---


def test_constant_power_is_integrated_with_its_samples(tmp_path):
    hwmon(tmp_path, 3, "ina226", power1_input=2_000_000)
    reading = measure(open_hwmon(tmp_path), 0.2)
    assert reading.joules == pytest.approx(2 * reading.seconds, rel=0.01)
    assert reading.source == "hwmon ina226/rail1"
    assert len(reading.samples) > 10
    times = [sample.time_s for sample in reading.samples]
    assert times == sorted(times)
    assert {(sample.value, sample.unit) for sample in reading.samples} == {(2_000_000, "uW")}


def test_changing_power_follows_the_samples(tmp_path):
    chip = hwmon(tmp_path, 0, "ina226", power1_input=1_000_000)
    with hardware(lambda s: put(chip / "power1_input", 1_000_000 if s < 0.15 else 3_000_000)):
        reading = measure(open_hwmon(tmp_path), 0.3)
    assert reading.watts == pytest.approx(2.0, rel=0.2)


def test_energy_counter_is_preferred_to_power(tmp_path):
    chip = hwmon(tmp_path, 0, "ltc2947", energy1_input=10, power1_input=9, power1_label="VIN")
    reading = measure(open_hwmon(tmp_path), 0.2, partial(put, chip / "energy1_input", 4_000_010))
    assert reading.joules == pytest.approx(4.0)
    assert reading.source == "hwmon ltc2947/VIN"


@pytest.mark.parametrize(("after", "reason"), [(100, "did not move"), (50, "went backwards"), (-1, "outside 0..")])
def test_energy_counter_without_progress(tmp_path, after, reason):
    chip = hwmon(tmp_path, 0, "ltc2947", energy1_input=100)
    reading = measure(open_hwmon(tmp_path), 0.2, partial(put, chip / "energy1_input", after))
    assert reading.joules is None
    assert reason in reading.reason


def test_current_times_voltage(tmp_path):
    hwmon(tmp_path, 0, "ina3221", curr1_input=400, in1_input=5000, in1_label="VDD_IN", in4_input=40, in5_input=1)
    reading = measure(open_hwmon(tmp_path), 0.2)
    assert reading.watts == pytest.approx(2.0, rel=0.01)
    assert reading.source == "hwmon ina3221/VDD_IN"


def jetson(root):
    hwmon(
        root, 0, "ina3221",
        curr1_input=1000, in1_input=5000, in1_label="VDD_IN",
        curr2_input=400, in2_input=5000, in2_label="VDD_CPU_GPU_CV",
        curr3_input=200, in3_input=5000, in3_label="VDD_SOC",
    )  # fmt: skip


def test_several_rails_must_be_named(tmp_path):
    jetson(tmp_path)
    with pytest.raises(DeviceError, match=r"name those that count \(ina3221/VDD_CPU_GPU_CV, ina3221/VDD_IN, "):
        open_hwmon(tmp_path)
    with pytest.raises(InputError, match=r'did you mean "ina3221/VDD_IN"'):
        open_hwmon(tmp_path, ["ina3221/VDD_N"])
    with pytest.raises(InputError, match="twice"):
        open_hwmon(tmp_path, ["ina3221/VDD_IN", "ina3221/VDD_IN"])
    reading = measure(open_meter("hwmon", tmp_path, rails=["ina3221/VDD_CPU_GPU_CV", "ina3221/VDD_SOC"]), 0.2)
    assert reading.watts == pytest.approx(3.0, rel=0.01)


def test_names_are_unique(tmp_path):
    hwmon(tmp_path, 0, "ina226", "1-0040", power1_input=1)
    hwmon(tmp_path, 1, "ina226", "1-0041", power1_input=1)
    hwmon(tmp_path, 2, "pmbus", power1_input=1, power2_input=1, power1_label="out", power2_label="out")
    hwmon(tmp_path, 3, "coretemp", temp1_input=40_000, in0_input=900)
    assert [rail.name for rail in find_rails(tmp_path)] == [
        "ina226@1-0040/rail1",
        "ina226@1-0041/rail1",
        "pmbus/out-1",
        "pmbus/out-2",
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(-25_000, "negative, -0.025 W"), (None, "does not exist"), ("n/a", "not a whole"), ("", "not a whole")],
)
def test_power_that_breaks_during_the_run(tmp_path, value, reason):
    chip = hwmon(tmp_path, 0, "ina226", power1_input=1_000_000)
    file = chip / "power1_input"
    reading = measure(open_hwmon(tmp_path), 0.2, file.unlink if value is None else partial(put, file, value))
    assert reading.joules is None
    assert reason in reading.reason
    assert reading.samples


def test_sensor_that_reads_zero_is_not_connected(tmp_path):
    hwmon(tmp_path, 0, "ina226", power1_input=0)
    assert "0 W throughout" in measure(open_hwmon(tmp_path), 0.2).reason


def test_run_shorter_than_the_sensor_updates(tmp_path):
    hwmon(tmp_path, 0, "ina226", power1_input=1_000_000, update_interval=140)
    reading = measure(open_hwmon(tmp_path), 0.2)
    assert reading.joules is None
    assert "at least 1.4 s" in reading.reason


def test_gap_in_the_samples_is_not_bridged():
    rail = Rail("a/b", "uW", (), 0.0)
    samples = tuple(Sample("a/b", time_s, 1_000_000, "uW") for time_s in (0.0, 0.01, 0.02, 0.8, 0.81))
    judge = partial(evaluate, rails=[rail], source="hwmon a/b", interval_s=0.01)
    assert "no sample for 0.78 s" in judge(Recording(samples, 0.81, "")).reason
    assert judge(Recording(samples[:3], 0.1, "")).joules == pytest.approx(0.02)


def test_no_sensor(tmp_path):
    with pytest.raises(DeviceError, match="no power sensor"):
        open_hwmon(tmp_path)
    with pytest.raises(DeviceError, match="no power sensor"):
        open_hwmon(tmp_path, ["ina226/rail1"])
    hwmon(tmp_path, 0, "ina226", power1_input="garbage")
    with pytest.raises(DeviceError, match="not a whole number"):
        open_hwmon(tmp_path)


# --- windows ---


def windowed(meter, before, inside, after):
    """Measure a window of `inside` seconds; the reading and when it began."""
    meter.start()
    time.sleep(before)
    begin = time.monotonic()
    time.sleep(inside)
    end = time.monotonic()
    time.sleep(after)
    meter.mark("begin", begin)  # told of afterwards, as by a program that kept the times
    meter.mark("end", end)
    return meter.stop(), begin, end


def test_a_window_of_a_counter_that_wraps_in_it(tmp_path):
    maximum, begun = 3_000_000, time.monotonic()
    counter = rapl(tmp_path, "0", "package-0", 0, maximum)
    with hardware(lambda _: put(counter, int(20e6 * (time.monotonic() - begun)) % maximum), 0.0005):
        reading, begin, end = windowed(open_rapl(tmp_path), 0.1, 0.6, 0.1)
    assert reading.seconds == pytest.approx(end - begin)
    assert reading.joules == pytest.approx(20 * (end - begin), rel=0.02)
    assert reading.low <= reading.joules <= reading.high
    assert reading.peak_w >= 20 * 0.9
    assert reading.meter.rails == ("package-0",)
    assert len(reading.trace.windows) == 1


def test_a_window_of_a_sensor_does_not_hold_what_was_before(tmp_path):
    chip = hwmon(tmp_path, 0, "ina226", power1_input=9_000_000)
    meter = open_hwmon(tmp_path, accuracy=0.02, wiring="shunt of 10 mohm")
    meter.start()
    time.sleep(0.1)
    put(chip / "power1_input", 1_000_000)
    begin = time.monotonic()
    time.sleep(0.3)
    meter.mark("begin", begin)
    meter.mark("end", begin + 0.3)
    reading = meter.stop()
    one_sample_j = 8 * reading.trace.interval_s
    assert reading.joules == pytest.approx(0.3, abs=one_sample_j)
    assert reading.high - reading.joules >= 0.02 * reading.joules
    assert (reading.meter.wiring, reading.meter.accuracy) == ("shunt of 10 mohm", 0.02)
    with pytest.raises(RuntimeError, match="not started"):
        meter.mark("begin")


def test_an_estimate_is_of_its_windows(tmp_path):
    reading, begin, end = windowed(open_meter("estimate", tmp_path, active_w=2.0), 0.02, 0.03, 0.02)
    assert reading.seconds == pytest.approx(end - begin)
    assert reading.joules == pytest.approx(2 * (end - begin))
    for meter in (open_meter("none", tmp_path), open_meter("estimate", tmp_path, active_w=1.0)):
        with pytest.raises(RuntimeError, match="not started"):
            meter.mark("begin")


# --- estimate, none, auto ---


def test_estimate_is_power_times_time_and_says_so(tmp_path):
    with open_meter("estimate", tmp_path, active_w=0.12, idle_w=0.02) as meter:
        reading = measure(meter, 0.05)
        idle = meter.idle(10.0)
    assert reading.joules == pytest.approx(0.12 * reading.seconds)
    assert (reading.how, reading.source) == ("estimated", "declared active power 120 mW")
    assert idle.joules == pytest.approx(0.2)
    assert idle.source == "declared idle power 20 mW"
    assert per_inference(reading, 10, idle).joules == pytest.approx(0.1 * reading.seconds / 10)
    assert not EstimateMeter(0.12).idle(1.0).complete


@pytest.mark.parametrize(
    ("active", "idle"), [(0.0, None), (-1.0, None), (math.nan, None), (math.inf, None), (1, 2), (1, -1)]
)
def test_powers_that_make_no_sense(active, idle):
    with pytest.raises(InputError, match="power"):
        EstimateMeter(active, idle)


def test_none_says_what_to_do(tmp_path):
    with open_meter("none", tmp_path) as meter:
        reading = measure(meter, 0)
        assert not meter.idle(1.0).complete
    assert reading.joules is None
    assert "set power in the target" in reading.reason


def test_unknown_kind_and_estimate_without_power(tmp_path):
    with pytest.raises(InputError, match=r'"hwmom"; allowed: auto, rapl, .*did you mean "hwmon"'):
        open_meter("hwmom", tmp_path)
    with pytest.raises(InputError, match="active: 120 mW"):
        open_meter("estimate", tmp_path)


def test_auto_takes_the_best_there_is_and_says_why(tmp_path):
    nothing = measure(open_meter("auto", tmp_path), 0)
    assert "no RAPL" in nothing.reason
    assert "no power sensor" in nothing.reason
    assert "no active power" in nothing.reason
    estimated = measure(open_meter("auto", tmp_path, active_w=1.0), 0.01)
    assert estimated.how == "estimated"
    assert "no RAPL" in estimated.reason
    hwmon(tmp_path, 0, "ina226", power1_input=1)
    assert open_meter("auto", tmp_path, active_w=1.0).kind == "hwmon"
    rapl(tmp_path, "0", "package-0", 1)
    assert open_meter("auto", tmp_path, active_w=1.0).kind == "rapl"


def test_stop_without_start(tmp_path):
    for meter in (open_meter("none", tmp_path), open_meter("estimate", tmp_path, active_w=1.0)):
        with pytest.raises(RuntimeError, match="not started"):
            meter.stop()
        meter.start()
        with pytest.raises(RuntimeError, match="already running"):
            meter.start()


# --- readings and inferences ---


def measured(joules, seconds, reason=""):
    return EnergyReading(joules, seconds, "measured", "sensor", reason=reason)


@given(st.floats(0, 1e6), st.floats(1e-3, 1e4), st.integers(1, 10**9))
def test_energy_of_one_times_their_number_is_all(joules, seconds, inferences):
    one = per_inference(measured(joules, seconds), inferences)
    assert one.joules * inferences == pytest.approx(joules, rel=1e-9, abs=1e-300)
    assert one.seconds * inferences == pytest.approx(seconds)
    assert one.how == "measured"


def test_idle_power_is_taken_off():
    one = per_inference(measured(10.0, 2.0), 100, measured(3.0, 1.0))
    assert one.joules == pytest.approx(0.04)
    assert one.watts == pytest.approx(2.0)
    assert one.source == "sensor, above idle (sensor)"


def test_doubt_is_passed_on():
    assert per_inference(measured(None, 1.0, "frozen"), 5).reason == "frozen"
    assert "idle power is not known: gone" in per_inference(measured(1.0, 1.0), 5, measured(None, 1.0, "gone")).reason
    assert "less than when idle" in per_inference(measured(1.0, 1.0), 5, measured(2.0, 1.0)).reason
    assert per_inference(measured(9.0, 1.0), 5, estimate(1.0, 1.0, "declared")).how == "estimated"
    with pytest.raises(ValueError, match="at least 1"):
        per_inference(measured(1.0, 1.0), 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"joules": -1.0},
        {"joules": math.nan},
        {"joules": None, "reason": ""},
        {"seconds": -1.0},
        {"seconds": math.inf},
        {"how": "guessed"},
    ],
)
def test_impossible_readings_cannot_be_made(fields):
    good = {"joules": 1.0, "seconds": 1.0, "how": "measured", "source": "x"}
    with pytest.raises(ValueError, match=r"reading|how"):
        EnergyReading(**{**good, **fields})
