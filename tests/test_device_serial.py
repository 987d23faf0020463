"""Boards at the end of a serial line, with QEMU's UART standing in: slow lines, garbled bytes, resets, silence."""

import itertools
import os
import sys
import threading
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from built import new_folder
from firmware_support import ARM, BOARDS, OUTPUTS, expected, library, samples
from serial_support import FaultyLine, emulator, on_pty, serial_target

from deploy import pipeline
from deploy.boards import load_boards
from deploy.device.protocol import RunPlan
from deploy.device.qemu import QemuDevice
from deploy.device.serial import SerialDevice
from deploy.device.serial_frames import Decoder, Operation
from deploy.device.serial_image import build_image
from deploy.errors import DeviceError, InputError
from deploy.target_memory import Memory
from deploy.target_parts import PowerSpec
from deploy.targets import load_target

QUICK = RunPlan(warmup_s=0.0, seconds=0.05, min_samples=3, timeout_s=20)
M4 = "cortex-m4-mps2"


@cache
def built(board, **defines):
    """The hand-written model as a library, and the image that the device builds of it, for the stand-in board."""
    folder = new_folder()
    file = library(folder / "a", board, **defines)
    return file, build_image(serial_target(board, "none"), file, "tiny", folder).elf


def run(target, file, inputs=None, plan=QUICK):
    with SerialDevice(target) as device:
        return device.run(file, "tiny", samples(2) if inputs is None else inputs, OUTPUTS, plan)


def assert_right(found, count=2):
    for sample, outputs in zip(samples(count), found.outputs, strict=True):
        for want, got in zip(expected(sample), outputs, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.fixture
def line(tmp_path):
    """A board on a line whose faults a test sets; `line(**faults)` starts it with the hand-written model."""
    with FaultyLine(tmp_path, M4) as faulty:

        def start(defines=None, **faults):
            file, image = built(M4, **(defines or {}))
            for name, value in faults.items():
                setattr(faulty, name, value)
            faulty.start(image)
            return faulty, file

        yield start


@pytest.mark.parametrize("board", BOARDS)
def test_what_comes_over_the_line_is_what_semihosting_gives(board):
    file, image = built(board)
    with QemuDevice(load_target(board)) as device:
        wanted = device.run(file, "tiny", samples(2), OUTPUTS, QUICK)
    with on_pty(board, image) as port:
        found = run(serial_target(board, port), file)
    assert_right(found)
    for ours, theirs in zip(found.outputs, wanted.outputs, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    # The call of the model is compiled into another function, which may keep one register more.
    assert np.abs(np.subtract(found.instructions, wanted.instructions)).max() <= 4
    assert np.abs(np.subtract(found.layers, wanted.layers)).max() <= 4
    assert (found.how, found.stack_bytes, found.conditions["resets"]) == ("estimated", wanted.stack_bytes, 0)
    assert (found.arena_bytes, found.weight_bytes) == (48, 24)


@ARM
def test_cycles_are_measured_and_the_clock_is_checked(tmp_path):
    """Without -icount, QEMU's SysTick goes at 25 MHz of real time: a board with a clock of that speed and no DWT."""
    file = library(tmp_path / "a", M4, LOOPS=50_000)

    def target(port, clock, **options):
        return replace(serial_target(M4, port, tick=None, **options), clock=clock)

    elf = build_image(target("none", 25e6, emulated=None), file, "tiny", tmp_path).elf
    with on_pty(M4, elf, counting=False) as port:
        found = run(target(port, 25e6, emulated=None), file)
        assert_right(found)
        assert (found.how, found.instructions, len(found.layers)) == ("measured", (), 2)
        assert found.conditions["clock_seen_hz"] == pytest.approx(25e6, rel=0.1)
        assert 3 <= len(found.samples_s) <= QUICK.max_samples
        assert all(1e-6 < seconds < 1.0 for seconds in found.samples_s)
        assert run(target(port, 25e6), file, inputs=[]).how == "emulated"
        with pytest.raises(DeviceError, match=r"the board's clock is about .* MHz, the target says 40 MHz: set it in"):
            run(target(port, 40e6, emulated=None), file)


@ARM
def test_a_slow_line(line):
    """Fifty times slower than its speed says, so that requests are sent again before their answers are here."""
    faulty, file = line(bytes_a_second=250)
    found = run(serial_target(M4, faulty.port), file, samples(1))
    assert_right(found, 1)
    assert found.conditions["requests_sent_again"] > 0


@ARM
def test_garbled_lost_and_added_bytes(line):
    """A byte in so many arrives damaged, each time in another way."""

    def damaging(every):
        count, ways = itertools.count(1), itertools.cycle(["flip", "lose", "add"])

        def arrives_as(byte):
            if next(count) % every:
                return bytes([byte])
            return {"flip": bytes([byte ^ 0x10]), "lose": b"", "add": bytes([byte, 0, 0x55])}[next(ways)]

        return lambda data: b"".join(map(arrives_as, data))

    faulty, file = line(to_board=damaging(113), to_host=damaging(151))
    found = run(serial_target(M4, faulty.port), file)
    assert_right(found)
    assert found.conditions["requests_sent_again"] > 0
    assert len(set(found.instructions)) == 1


def resetting(faulty, times, operation=Operation.RUN, after_s=0.0):
    """What carries bytes to the board, and presses its button when it is first asked for this, so many times."""
    decoder, asked = Decoder(), set()

    def arrives(data):
        for frame in decoder.feed(data):
            if frame.operation == operation and frame not in asked and len(asked) < times:
                asked.add(frame)
                threading.Timer(after_s, faulty.reset).start() if after_s else faulty.reset()
        return data

    return arrives


@ARM
def test_a_board_that_resets_while_the_model_runs(line):
    faulty, file = line({"LOOPS": 5_000_000})
    faulty.to_board = resetting(faulty, 1, after_s=0.03)
    found = run(serial_target(M4, faulty.port), file, samples(1))
    assert_right(found, 1)
    assert found.conditions["resets"] == 1


@ARM
def test_a_board_that_resets_between_requests(line):
    """It has computed, and forgets its outputs before all of them are read, or the next inputs."""
    faulty, file = line()
    faulty.to_board = resetting(faulty, 1, Operation.READ)
    found = run(serial_target(M4, faulty.port), file, samples(8))
    assert_right(found, 8)
    assert found.conditions["resets"] == 1


@ARM
def test_a_board_that_resets_again_and_again(line):
    faulty, file = line()
    faulty.to_board = resetting(faulty, 100)
    with pytest.raises(DeviceError, match="the board was reset 4 times while the model ran"):
        run(serial_target(M4, faulty.port), file, samples(1))


@ARM
def test_a_board_that_never_answers(tmp_path):
    file, _ = built(M4)
    with FaultyLine(tmp_path, M4) as dead, pytest.raises(DeviceError, match=r"did not answer within 0.5 s, not a byte"):
        run(serial_target(M4, dead.port, timeout=0.5), file)


@ARM
def test_a_line_at_the_wrong_speed(line):
    faulty, file = line(to_host=lambda data: bytes(byte | 0x81 for byte in data))
    with pytest.raises(DeviceError, match=r"within 2 s; \d+ bytes came and .* damaged: check `baud`"):
        run(serial_target(M4, faulty.port, timeout=2.0), file)


@ARM
def test_a_line_that_breaks_while_the_model_runs(line):
    pieces = itertools.count(1)
    faulty, file = line(to_board=lambda data: data if next(pieces) < 3 else b"")
    with pytest.raises(DeviceError, match=r"the (model did not finish|board did not answer) within 0.5 s"):
        run(serial_target(M4, faulty.port, timeout=0.5), file)


FAILURES = {
    "FAULT": "the model's code faulted: exception 0x.*, at 0x",
    "OVERRUN_OUTPUT": "the model wrote past the end of an output",
    "HANG": "the model did not finish within 2 s on the board: it hangs",
}


@ARM
@pytest.mark.parametrize("define", FAILURES)
def test_failures_are_told_and_told_again(line, define):
    """A second time too: the board that faulted starts again, and that with a hang is silent."""
    faulty, file = line({define: 2})
    with pytest.raises(DeviceError, match=FAILURES[define]):
        run(serial_target(M4, faulty.port, timeout=2.0 if define == "HANG" else 10.0), file)
    again, seconds = ("did not answer within", 0.3) if define == "HANG" else (FAILURES[define], 10.0)
    with pytest.raises(DeviceError, match=again):
        run(serial_target(M4, faulty.port, timeout=seconds), file)


@ARM
def test_another_program_and_inputs_of_another_size_are_refused(line):
    faulty, file = line()
    other, _ = built(M4, LOOPS=1)
    with pytest.raises(DeviceError, match=r'another program, of "tiny" with the build id \w{16} instead of "tiny"'):
        run(serial_target(M4, faulty.port), other)
    with pytest.raises(DeviceError, match="the samples are not of the size of the model's inputs"):
        run(serial_target(M4, faulty.port), file, inputs=[[np.zeros(100, np.int32)]])


@ARM
def test_the_image_is_flashed_first(tmp_path):
    """The stand-in for a programmer is QEMU itself, which goes into the background with the image it was given."""
    file, _ = built(M4)
    uart, monitor, pid = (tmp_path / name for name in ("uart", "monitor", "pid"))
    sockets = ["-serial", f"unix:{uart},server=on,wait=off", "-monitor", f"unix:{monitor},server=on,wait=off"]
    flash = (*emulator(M4, "{elf}"), *sockets, "-daemonize", "-pidfile", str(pid))
    with FaultyLine(tmp_path, M4) as faulty:
        plugged = threading.Thread(target=faulty.connect, args=(uart, monitor))
        plugged.start()
        try:
            assert_right(run(serial_target(M4, faulty.port, flash=flash), file))
        finally:
            os.kill(int(pid.read_text()), 9)
            plugged.join()
    wrong = (sys.executable, "-c", "import sys; sys.exit('no probe found')")
    with pytest.raises(DeviceError, match=r"(?s)the board could not be flashed: .*no probe found"):
        run(serial_target(M4, "none", flash=wrong), file)


@ARM
def test_what_a_target_must_say(tmp_path, monkeypatch):
    file, _ = built(M4)
    for options, words in (
        ({"board": None, "flash": ("{elf}",)}, "has no `board`: name the C files with .* or one of uart_cmsdk.c, uart"),
        ({"board": ("no.c",), "flash": ("{bin}",)}, r"board: there is no file .*no.c; give its path, or one of uart"),
        ({"emulated": None}, "has a tick, which is for `emulated: true` only"),
        ({"flash": ("pyocd", "{hex}")}, r"flash: {hex} is not known; allowed: {elf}, {bin}, {port}"),
    ):
        with pytest.raises(InputError, match=words):
            SerialDevice(serial_target(M4, "none", **options))
    with pytest.raises(InputError, match="its device has no `port`: name your board's in a boards"):
        SerialDevice(load_target("nucleo-l4r5zi"))
    with pytest.raises(InputError, match="has no ram_at in memory"):
        SerialDevice(replace(serial_target(M4, "none", flash=("{elf}",)), memory=Memory(1 << 20, 1 << 20, 0)))
    with pytest.raises(DeviceError, match=r"the serial port /dev/ttyNone cannot be opened: .*check the name"):
        run(serial_target(M4, "/dev/ttyNone"), file)
    with pytest.raises(InputError, match="there is no library"):
        run(serial_target(M4, "/dev/ttyNone"), tmp_path / "libmodel.a")
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(InputError, match=r"need pyserial: pip install 'tvm-deploy\[serial\]'"):
        run(serial_target(M4, "none"), file)


@ARM
def test_files_of_the_user_s_own_drive_the_board(line, tmp_path):
    """A board that is silent has a program whose functions are the weak ones."""
    own = tmp_path / "own.c"
    own.write_text('#include "board.h"\nvoid board_init(void) { (void)BOARD_CLOCK_HZ; (void)BOARD_BAUD; }\n')
    file, _ = built(M4)
    target = serial_target(M4, "none", board=(str(own), "-DANY=1"))
    silent = build_image(target, file, "tiny", tmp_path).elf
    with on_pty(M4, silent) as port, pytest.raises(DeviceError, match="not a byte came: check its power"):
        run(replace(target, device=serial_target(M4, port, board=(str(own),), timeout=0.5).device), file)


def test_a_laboratory_s_boards_are_serial_devices(tmp_path):
    file = tmp_path / "boards.yaml"
    file.write_text(
        "nucleo:\n  target: nucleo-l4r5zi\n  device:\n    port: /dev/ttyACM0\n    baud: 921600\n"
        "    board: [uart_nrf.c, -DTX_PIN=6, -DRX_PIN=8]\n"
        "    flash: [openocd, -f, board/st_nucleo_l4.cfg, -c, 'program {elf} verify reset exit']\n    timeout: 30 s\n"
    )
    target = load_boards(file)["nucleo"].apply(load_target("nucleo-l4r5zi"))
    assert isinstance(pipeline.open_device(target), SerialDevice)
    assert target.device.get("timeout") == 30.0
    assert target.power == PowerSpec("estimate", (("active", 0.041),))
