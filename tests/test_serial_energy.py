"""Energy of a board on a serial line: an emulated board, and an instrument that sees what the board does."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from built import new_folder
from firmware_support import ARM, OUTPUTS, library, samples
from hypothesis import given
from hypothesis import strategies as st
from meter_support import VOLTS, FakePpk2, constant
from serial_support import UARTS, FaultyLine, on_pty, serial_target

from deploy.device.protocol import RunPlan
from deploy.device.serial import SerialDevice
from deploy.device.serial_energy import FEWEST, windows_of
from deploy.device.serial_image import build_image
from deploy.errors import DeviceError
from deploy.measure import energy_of
from deploy.target_parts import PowerSpec

M4 = "cortex-m4-mps2"
PLAN = RunPlan(warmup_s=0.0, seconds=0.02, min_samples=3, timeout_s=20, energy_seconds=0.15)
MARKS = """
#include "board.h"
void board_mark(int on) { board_putc(0); board_putc(on ? 0xA1 : 0xA2); board_putc(0); }
"""
IDLE, BUSY = 0.006, 0.045


@given(st.lists(st.tuples(st.floats(0.001, 0.1), st.floats(0, 0.005), st.floats(0, 0.005)), min_size=1, max_size=30))
def test_an_inference_ran_where_the_window_says(parts):
    """Within its slack, wherever between question and answer it really was."""
    calls, true, at = [], [], 100.0
    for took, before, after in parts:
        calls.append((at, at + before + took + after, took))
        true.append((at + before, at + before + took))
        at += before + took + after + 0.001
    found = windows_of(calls)
    assert found
    for window in found:
        begin, end = min(true, key=lambda pair: abs(pair[0] - window.begin_s))
        assert abs(window.begin_s - begin) <= window.slack_s + 1e-9
        assert abs(window.end_s - end) <= window.slack_s + 1e-9


def test_a_request_that_was_sent_again_does_not_count():
    calls = [(k, k + 0.012, 0.01) for k in range(9)] + [(10, 10.5, 0.01)]
    assert len(windows_of(calls)) == 9
    assert windows_of([(0, 0.009, 0.01)])[0].slack_s == 0  # clocks differ a little


def board_target(port, instrument, **power):
    """A board with a clock of 25 MHz, which QEMU without -icount has."""
    target = serial_target(M4, port, tick=None, emulated=None)
    options = {"port": instrument.port, "voltage": VOLTS, **power}
    return replace(target, clock=25e6, power=PowerSpec("ppk2", tuple(options.items())))


@ARM
def test_a_meter_beside_a_board(tmp_path):
    file = library(tmp_path / "a", M4, LOOPS=50_000)
    image = build_image(serial_target(M4, "none", tick=None, emulated=None), file, "tiny", tmp_path).elf
    with on_pty(M4, image, counting=False) as port, FakePpk2(constant(0.02)) as instrument:
        target = board_target(port, instrument)
        with SerialDevice(target) as device:
            found = device.run(file, "tiny", samples(1), OUTPUTS, PLAN)
        emulated = replace(target, device=serial_target(M4, port, tick=None).device)
        with SerialDevice(emulated) as device:
            refused = device.run(file, "tiny", samples(1), OUTPUTS, PLAN)
    power, energy, above = energy_of(found)
    assert power.complete, power.reason
    assert found.energy_inferences >= FEWEST
    assert power.watts == pytest.approx(0.02, rel=0.005)
    assert energy.joules == pytest.approx(0.02 * energy.seconds, rel=0.005)
    assert found.idle.watts == pytest.approx(0.02, rel=0.005)
    assert above is not None
    assert not refused.energy.complete
    assert "an emulator draws no power" in refused.energy.reason


@ARM
def test_a_pin_marks_the_inferences(tmp_path):
    """The instrument sees more power, and its input high, from one mark of the board's program to the other."""
    own = tmp_path / "own.c"
    own.write_text(MARKS)
    file = library(new_folder() / "a", M4, LOOPS=2_000_000)
    shown = serial_target(M4, "none", tick=None, emulated=None, board=(*UARTS[M4], str(own)))
    image = build_image(shown, file, "tiny", tmp_path).elf
    changes, last = [0.0], bytearray(3)

    def is_on(times):
        return np.searchsorted(np.array(changes[1:]), times, side="right") % 2 == 1

    def seen(data):
        for byte in data:
            last[:] = last[1:] + bytes([byte])
            if bytes(last) == (b"\0\xa1\0", b"\0\xa2\0")[(len(changes) - 1) % 2]:
                changes.append(time.monotonic())
        return data

    with (
        FaultyLine(tmp_path, M4, to_host=seen, counting=False) as line,
        FakePpk2(lambda t: np.where(is_on(t), BUSY, IDLE)) as instrument,
    ):
        instrument.level = lambda t: is_on(t).astype(int)
        line.start(image)
        with SerialDevice(board_target(line.port, instrument, mark="D0")) as device:
            found = device.run(file, "tiny", samples(1), OUTPUTS, PLAN)
    assert found.energy.complete, found.energy.reason
    assert found.energy.watts == pytest.approx(BUSY, rel=0.02)
    assert found.idle.watts == pytest.approx(IDLE, rel=0.01)
    _, energy, above = energy_of(found)
    assert 0.2 < energy.seconds / np.mean(found.samples_s) < 5  # QEMU's time is not even
    assert above.joules == pytest.approx((BUSY - IDLE) * energy.seconds, rel=0.05)


def test_a_meter_that_cannot_be_opened_is_named():
    target = serial_target(M4, "/dev/nowhere", tick=None, emulated=None)
    power = PowerSpec("ppk2", (("port", "/dev/nowhere2"), ("voltage", 3.0)))
    opened = pytest.raises(DeviceError, match="PPK2 at /dev/nowhere2 cannot be opened")
    with SerialDevice(replace(target, clock=25e6, power=power)) as device, opened:
        device.run(Path(__file__), "tiny", [], OUTPUTS, PLAN)
