"""Meters with instruments at the other end of a pseudo-terminal or a socket, which know what power they were given."""

import contextlib
import fcntl
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from meter_support import (
    CsvWriter,
    FakeLpm01a,
    FakePpk2,
    FakeSupply,
    bursts,
    constant,
    energy,
    noise,
    ramp,
    step,
)

from deploy.errors import DeviceError, InputError
from deploy.power import MeterFacts, is_external, meter_for
from deploy.power.ppk2 import RANGES, Ppk2, calibration_of
from deploy.power.scpi import ScpiMeter
from deploy.power.stream import StreamMeter
from deploy.target_parts import PowerSpec


def spec(kind, **options):
    return PowerSpec(kind, tuple(options.items()))


@contextlib.contextmanager
def ppk2(waveform, *, options=(), **faults):
    with FakePpk2(waveform, **faults) as instrument:
        yield instrument, spec("ppk2", port=instrument.port, voltage=3.0, **dict(options))


@contextlib.contextmanager
def lpm01a(waveform, *, options=(), **faults):
    with FakeLpm01a(waveform, **faults) as instrument:
        yield instrument, spec("lpm01a", port=instrument.port, voltage=3.0, **dict(options))


@contextlib.contextmanager
def scpi(waveform, *, options=(), drift=0.0, **faults):
    with FakeSupply(waveform, **faults) as instrument:
        yield instrument, spec("scpi", address=instrument.address, **dict(options))


@contextlib.contextmanager
def csv(waveform, *, options=(), **faults):
    """On a pipe, with a clock of its own that began somewhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pipe")
        os.mkfifo(path)
        with CsvWriter(path, waveform, start=5000.0, **{"rate": 5000.0, **faults}) as instrument:
            yield instrument, spec("csv", file=path, **dict(options))


METERS = {"ppk2": ppk2, "lpm01a": lpm01a, "scpi": scpi, "csv": csv}


def window(power, seconds, before=0.03):
    """Measure for so long; the reading and what the window was."""
    with meter_for(power) as meter:
        meter.start()
        time.sleep(before)
        begin = time.monotonic()
        meter.mark("begin", begin)
        time.sleep(seconds)
        end = time.monotonic()
        meter.mark("end", end)
        return meter.stop(), begin, end


@pytest.mark.parametrize("kind", METERS)
def test_known_waveforms(kind):
    """Energy within 0.5 % of a constant and a ramp, 2 % of bursts of a millisecond; idle, and facts."""
    now = time.monotonic()
    most = {"constant": 0.005, "ramp": 0.005, "bursts": 0.02 if kind != "scpi" else 0.1}  # which sees 5 ms at once
    shapes = {"constant": constant(0.03), "ramp": ramp(0.01, 0.05, now, 3.0), "bursts": bursts(0.003, 0.06)}
    with ThreadPoolExecutor(3) as pool:

        def one(shape):
            with METERS[kind](shapes[shape]) as (_, power):
                return window(power, 0.35)

        found = dict(zip(shapes, pool.map(one, shapes), strict=True))
    for shape, (reading, begin, end) in found.items():
        assert reading.complete, (shape, reading.reason)
        assert reading.joules == pytest.approx(energy(shapes[shape], begin, end), rel=most[shape]), shape
        assert reading.how == "measured"
        assert reading.seconds == pytest.approx(end - begin)
        assert reading.low <= reading.joules <= reading.high
        assert reading.peak_w >= reading.watts * (1 - 1e-9)
        assert shape != "bursts" or kind == "scpi" or reading.peak_w == pytest.approx(0.06, rel=0.01)
        assert reading.meter.rate_hz > 50
        assert reading.samples


@pytest.mark.parametrize("kind", METERS)
def test_windows_are_where_they_are_said_to_be(kind):
    """A step in the middle: how much of either power is in the window tells where the meter has the window."""
    at = time.monotonic() + 0.5
    with METERS[kind](step(0.003, 0.06, at)) as (_, power), meter_for(power) as meter:
        meter.start()
        time.sleep(max(0.0, at + 0.06 - time.monotonic()))
        meter.mark("begin", at - 0.05)
        meter.mark("end", at + 0.05)
        reading = meter.stop()
    assert reading.complete, reading.reason
    off_s = abs(reading.joules - energy(step(0.003, 0.06, at), at - 0.05, at + 0.05)) / 0.057
    assert off_s <= max(reading.trace.interval_s + 0.005 * (kind == "scpi"), 1.5e-3)


def test_an_input_that_marks_the_inferences_is_exact():
    """To the sample: 10 microseconds; marks of the host only say where to look."""
    at = time.monotonic() + 0.5
    shape = step(0.003, 0.06, at)
    with ppk2(shape, options={"mark": "D3"}) as (instrument, power), meter_for(power) as meter:
        instrument.level = lambda t: 8 * ((t >= at - 0.02) & (t < at + 0.03))
        meter.start()
        time.sleep(max(0.0, at + 0.07 - time.monotonic()))
        meter.mark("begin", at - 0.05)
        meter.mark("end", at + 0.05)
        reading = meter.stop()
    assert reading.complete, reading.reason
    assert reading.seconds == pytest.approx(0.05, abs=1.1e-5)
    assert reading.joules == pytest.approx(0.003 * 0.02 + 0.06 * 0.03, abs=0.06 * 1.1e-5)


def test_an_input_that_does_not_mark_is_no_reading():
    with ppk2(constant(0.01), options={"mark": "D0"}) as (_, power):
        reading, _, _ = window(power, 0.05)
    assert not reading.complete
    assert "rose 0 times" in reading.reason
    assert "check its wire" in reading.reason


def test_a_reading_without_windows_and_idle():
    with lpm01a(constant(0.02), options={"rate": 1000.0}) as (_, power), meter_for(power) as meter:
        idle = meter.idle(0.1)
        meter.start()
        time.sleep(0.1)
        reading = meter.stop()
        with pytest.raises(RuntimeError, match="not started"):
            meter.stop()
        with pytest.raises(RuntimeError, match="not started"):
            meter.mark("begin")
    assert idle.watts == pytest.approx(0.02, rel=0.005)
    assert reading.watts == pytest.approx(0.02, rel=0.005)
    assert 0.09 <= reading.seconds < 0.4


def test_facts_say_what_a_figure_depends_on():
    stated = {"accuracy": 0.1, "wiring": "JP5 removed"}
    with ppk2(constant(0.01), options=stated) as (instrument, power):
        reading, _, _ = window(power, 0.1)
        assert instrument.millivolts == 3000
    assert reading.meter == MeterFacts(
        f"PPK2 at {instrument.port}", 1e5, 3.0, ("VOUT",), "it is the supply; JP5 removed", 0.1
    )
    assert reading.high == pytest.approx(1.1 * reading.joules, rel=1e-3)
    with scpi(constant(0.01), options={"queries": ("MEAS:POW?",), "setup": ("SENS:CURR:NPLC 0.1",)}) as (_, power):
        reading, _, _ = window(power, 0.15)
    assert reading.watts == pytest.approx(0.01, rel=0.005)
    assert reading.meter.meter.startswith("ACME,PSU-3 at TCPIP")


def test_only_meters_of_their_own_are_external():
    assert is_external(spec("ppk2"))
    assert not is_external(spec("hwmon"))


# --- faults ---


def outcome(context, check=lambda: None):
    """("error", words), ("incomplete", words), or ("complete", how far off)."""
    with contextlib.ExitStack() as stack:
        instrument, power = stack.enter_context(context)
        try:
            reading, begin, end = window(power, 0.15)
        except DeviceError as error:
            return "error", str(error)
        if not reading.complete:
            return "incomplete", reading.reason
        wanted = energy(instrument.waveform, begin, end)
        said = isinstance(instrument, FakeSupply) and reading.low <= wanted <= reading.high  # it sees few of the bursts
        return "complete", 0.0 if said else abs(reading.joules / wanted - 1)


WAVE = bursts(0.003, 0.06)
NOISE = [noise(seed, 7 + 41 * seed) for seed in range(8)]
BAD_TEXTS = (
    lambda text: text.replace("R2: 10.0000", "R2: 0.0000"),
    lambda text: text.replace("GI1: 1.0000", "GI1: 138.3582"),
    lambda text: text.replace("UG4: 1.0000\n", ""),
    lambda text: text.replace("O0: 0.0000", "O0: -nan"),
    lambda text: "Error!\nEND",
)
FAULTS = {
    # silent, unplugged, lost: during the window, which begins 30 ms after the first sample
    "ppk2": [
        *({"unplugged": at} for at in (0.0, 0.05, 0.1, 0.15)),
        *({"silent": at} for at in (0.0, 0.05, 0.1, 0.15)),
        *({"lost": (0.05 + count / 1e6, count)} for count in (1, 2, 63, 65, 100, 1000, 2000, 6400)),
        *({"garbage": (0.08, data, True)} for data in NOISE),
        *({"garbage": (0.08, data, False)} for data in (b"\0", b"xx", b"\xff\xff\xff", *NOISE[3:])),
        *({"calibration": change} for change in BAD_TEXTS),
        {"mute": True},
        *({"drift": drift} for drift in (2e-4, -2e-4)),
        *({"pace": pace} for pace in (0.01, 0.03)),
    ],
    "lpm01a": [
        *({"unplugged": at} for at in (0.0, 0.05, 0.1, 0.15)),
        *({"silent": at} for at in (0.0, 0.05, 0.1, 0.15)),
        *({"lost": (0.05, count)} for count in (40, 150, 300, 1500)),
        *({"garbage": (0.08, data, True)} for data in NOISE),
        *({"garbage": (0.08, data, False)} for data in (b"\0\0x", b"12", b"-07", *NOISE[3:])),
        *({"refuses": command} for command in ("htc", "volt", "freq", "start")),
        *({"says": (0.08, line)} for line in ("PowerShield > error: overcurrent", "Overcurrent", "hello", "64-07")),
        {"full": 100},
        {"mute": True},
        *({"drift": drift} for drift in (2e-4, -2e-4)),
    ],
    "scpi": [
        *({"gone": count} for count in (0, 1, 15, 40)),
        *({"answer": (20, text)} for text in ("", "ERR", "9.91E37", "-9.9E+37", "NAN", "\xff\xfe", "1.0.0")),
        {"slow": (20, 0.12)},
        {"slow": (30, 2.2)},
        *({"error": text} for text in ('-113,"Undefined header"', "+123,x")),
    ],
    "csv": [
        *({"gone": at} for at in (0.0, 0.08, 0.12)),
        *({"silent": at} for at in (0.0, 0.08, 0.12)),
        *({"lost": (0.08, count)} for count in (1, 2, 10, 200)),
        *({"line": (0.08, text)} for text in ("", "1", "a,b", "nan,1", "5000.0,1e400", "4999.0,0.1", "x" * 70000)),
        {"header": "time_s,current_a"},
        *({"drift": drift} for drift in (2e-4, -2e-4)),
    ],
}
CASES = [(kind, fault) for kind, faults in FAULTS.items() for fault in faults]
HARMLESS = ({"drift"}, {"pace"})


def test_100_faults_and_none_gives_a_wrong_number():
    """Each is an error that names the meter and says what to do, an incomplete reading that says why, or no harm."""
    assert len(CASES) >= 100

    def one(case):
        kind, fault = case
        return outcome(METERS[kind](WAVE, **fault))

    with ThreadPoolExecutor(10) as pool:
        found = list(zip(CASES, pool.map(one, CASES), strict=True))
    for (kind, fault), (end, words) in found:
        case = f"{kind} {str(fault)[:90]}: {end} {words}"
        if end == "complete":
            assert words < (0.1 if kind == "scpi" else 0.02), case
            harmless = set(fault) in HARMLESS or fault.get("line") == (0.08, "") or kind == "scpi"
            assert harmless or "garbage" in fault or "lost" in fault, case
        else:
            assert set(fault) not in HARMLESS, case
            named = {
                "ppk2": "PPK2 at /dev/",
                "lpm01a": "LPM01A at /dev/",
                "scpi": "TCPIP::127",
                "csv": "the meter ",
            }
            assert named[kind] in words or "samples" in words, case
            if end == "error":
                assert any(
                    way in words for way in ("check", "again", "choose", "see ", "lower", "press", "repair", "line ")
                ), case
    ends = [end for _, (end, _) in found]
    assert ends.count("error") + ends.count("incomplete") >= 90


def test_a_meter_that_another_program_has():
    with ppk2(constant(0.01)) as (instrument, power):
        other = os.open(instrument.port, os.O_RDWR | os.O_NOCTTY)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with pytest.raises(DeviceError, match=r"PPK2 at /dev/\S+ cannot be opened.*no other program"):
                meter_for(power)
        finally:
            os.close(other)


def test_meters_that_are_not_there(tmp_path):
    for power, words in (
        (spec("ppk2", port="/dev/nowhere", voltage=3.0), "PPK2 at /dev/nowhere cannot be opened"),
        (spec("lpm01a", port="/dev/nowhere", voltage=3.0), "LPM01A at /dev/nowhere cannot be opened"),
        (spec("scpi", address="TCPIP::127.0.0.1::1::SOCKET"), "TCPIP::127.0.0.1::1::SOCKET did not answer"),
        (spec("csv", file=str(tmp_path / "none")), "no such file"),
        (spec("csv", command=(sys.executable, "-c", "print('hello')")), "it needs time_s"),
        (spec("csv", command=("false",)), "false ended with exit status 1"),
    ):
        with pytest.raises(DeviceError, match=words), meter_for(power) as meter:
            meter.start()


@pytest.mark.parametrize(
    ("power", "words"),
    [
        (spec("ppk2", voltage=3.0), 'has no "port".*boards.yaml'),
        (spec("ppk2", port="/dev/x"), 'has no "voltage"'),
        (spec("ppk2", port="/dev/x", voltage=9.0), "gives 0.8 V to 5 V, not 9 V"),
        (spec("ppk2", port="/dev/x", voltage=3.0, mode="both"), '"source" or "ampere", not "both"'),
        (spec("ppk2", port="/dev/x", voltage=3.0, mark="D8"), "D0 to D7"),
        (spec("lpm01a", port="/dev/x", voltage=5.0), "gives 1.8 V to 3.3 V"),
        (spec("lpm01a", port="/dev/x", voltage=3.0, rate=100000.0), "10000 Hz, 5000 Hz"),
        (spec("scpi"), 'has no "address"'),
        (spec("scpi", address="x", queries=("MEAS:CURR?",)), "add `voltage`"),
        (spec("scpi", address="x", queries=("a", "b", "c")), "one query, of watts, or two"),
        (spec("csv"), '"command" or "file"'),
        (spec("csv", file="x", command=("y",)), "not both"),
        (spec("csv", file="x", clock="sundial"), "arrival, monotonic, unix"),
    ],
)
def test_options_that_make_no_sense(power, words):
    with pytest.raises(InputError, match=words):
        meter_for(power)


# --- the calibration of a PPK2, and other ways to a table ---


def test_the_calibration_is_what_the_text_says():
    keys = {"R": (1008.2, 102.4, 10.41, 0.978, 0.057), "GI": (1.0, 0.9614, 0.9534, 0.9415, 0.9521)}
    keys |= {"GS": (0.0, 138.4, 21.6, 3.01, 0.088), "S": (-9e-9, -6.4e-8, -5.1e-7, -4.9e-6, 2.4e-3)}
    keys |= {"I": (4.4e-8, 3.6e-7, 6.1e-5, -2.5e-4, -7.7e-3), "O": (3.0, 4.0, 5.0, 6.0, 7.0), "UG": (1, 1.1, 1, 1, 1)}
    text = "".join(f"{key}{index}: {value}\n" for key, values in keys.items() for index, value in enumerate(values))
    found = calibration_of(f"Calibrated: 1\n{text}VDD: 3300\nEND", "m")
    for index in range(RANGES):
        x = (4 * 5000 - keys["O"][index]) * 1.8 / 163840 / keys["R"][index]
        gain = x * (keys["GS"][index] * x + keys["GI"][index])
        wanted = keys["UG"][index] * (gain + keys["S"][index] * 3.3 + keys["I"][index])
        assert found.amperes(np.array([5000.0]), np.array([index]), 3.3)[0] == pytest.approx(wanted)


def test_a_ppk2_in_the_line_of_a_supply():
    with ppk2(constant(0.01), options={"mode": "ampere"}) as (instrument, power):
        reading, _, _ = window(power, 0.05)
    assert not hasattr(instrument, "millivolts")
    assert (reading.meter.rails, reading.meter.wiring) == (("VIN",), "in the supply's line")


WRITER = """
import time
print("time_s,power_mw", flush=True)
began, sent = time.monotonic(), 0
while True:
    due = int((time.monotonic() - began) * 1000)
    for number in range(sent, due):
        print(f"{began + number / 1000:.6f},12.5")
    print(end="", flush=True)
    sent = due
    time.sleep(0.002)
"""


def test_a_program_that_writes_a_table():
    power = spec("csv", command=(sys.executable, "-c", WRITER), clock="monotonic", voltage=3.3)
    with meter_for(power) as meter:
        for _ in range(2):  # which starts it twice
            assert meter.idle(0.1).watts == pytest.approx(0.0125, rel=0.005)
    assert meter.source == f"the meter {sys.executable}"


@pytest.mark.parametrize("clock", ["arrival", "monotonic", "unix"])
def test_a_file_that_grows(tmp_path, clock):
    start = {"arrival": 7.0, "monotonic": None, "unix": time.time()}[clock]
    file = tmp_path / "power.csv"
    file.touch()
    with CsvWriter(file, constant(0.02), start=start):
        reading, begin, end = window(spec("csv", file=str(file), clock=clock), 0.1)
    assert reading.complete, reading.reason
    assert reading.joules == pytest.approx(0.02 * (end - begin), rel=0.005)


def test_a_file_of_yesterday_is_not_of_this_run(tmp_path):
    file = tmp_path / "power.csv"
    file.write_text("time_s,power_w\n" + "".join(f"{k / 1000},0.5\n" for k in range(1000)))
    reading, _, _ = window(spec("csv", file=str(file)), 0.05)
    assert not reading.complete
    assert "do not cover the run" in reading.reason


def test_an_instrument_that_is_let_go_can_be_used_again():
    with scpi(constant(0.01)) as (instrument, power):
        for _ in range(2):
            assert window(power, 0.15)[0].complete
        source = ScpiMeter(instrument.address, facts=MeterFacts("x"))
        with StreamMeter(source) as meter:
            assert meter.idle(0.15).complete
    with ppk2(constant(0.01)) as (_, power):
        assert window(power, 0.05)[0].complete
        assert window(replace(power), 0.05)[0].complete
    with pytest.raises(DeviceError):
        Ppk2("/dev/nowhere", 3.0)
