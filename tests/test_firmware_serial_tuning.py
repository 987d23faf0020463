"""Tuning on a board at the end of a serial line, with QEMU standing in: flashed, asked, reset, and told apart."""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace

import pytest
from firmware_kernels import beyond, crashing, endless, resetting, small, twice, undefined, wrong
from firmware_support import ARM
from serial_support import FlashedBoard, serial_target
from tuning_support import task
from tvm.s_tir import Schedule

from deploy.cli import main
from deploy.compile import lower_for
from deploy.device import serial_board
from deploy.device.serial_frames import Decoder, Operation
from deploy.errors import DeviceError, InputError
from deploy.kernels.for_target import machine_for
from deploy.progress import Silent
from deploy.targets import load_target
from deploy.tuning.firmware_runner import FirmwareBench
from deploy.tuning.log import TuningLog, time_s
from deploy.tuning.search import tune
from deploy.tuning.space import listed_schedules
from deploy.tuning.task import tasks

pytestmark = [pytest.mark.tvm, ARM]
M4 = "cortex-m4-mps2"
ONE = task(twice)


@pytest.fixture
def board(tmp_path):
    """A board that is flashed and reset by commands."""
    (tmp_path / "board").mkdir()
    with FlashedBoard(tmp_path / "board", M4) as one:
        yield one


def target_of(board, **options):
    return serial_target(M4, board.port, **{"flash": board.flash, "reset": board.reset, "timeout": 0.6, **options})


def opened(target, folder):
    """A bench in a folder of its own."""
    place = folder / "bench"
    place.mkdir()
    return FirmwareBench.open(target, place)


def measured(bench, funcs):
    return list(bench.measure(funcs, [ONE] * len(funcs)))


def test_a_run_on_a_board_ranks_as_the_emulator_does(board, tmp_path):
    """A byte in 1511 to the board, and one in 1733 from it, arrives damaged."""

    def damaging(every):
        count = itertools.count(1)
        return lambda data: bytes(byte if next(count) % every else byte ^ 0x10 for byte in data)

    board.to_board, board.to_host = damaging(1511), damaging(1733)
    emulated, serial = load_target(M4), target_of(board)
    found = tasks(lower_for(small(tmp_path, convolution=True), emulated))
    logs, told = [], []
    for name, target in (("qemu", emulated), ("serial", serial)):
        log = TuningLog.open(target, tmp_path / name)
        told.append(tune(found, target, log, 6, Silent(), 7).words)
        logs.append(log)
    assert told == ["6 candidates measured", "6 candidates measured, board flashed 2 times, times estimated"]
    assert len(board.flashed) == 2, "the default schedules, then all that was proposed"
    for one in found:
        wanted, ours = ([(r.trace, time_s(r)) for r in log.records(one.mod)] for log in logs)
        assert [time for _, time in ours] == pytest.approx([time for _, time in wanted], rel=1e-4)
        assert [str(trace) for trace, _ in ours] == [str(trace) for trace, _ in wanted]


def test_a_bad_candidate_costs_itself_and_nobody_a_flash(board, tmp_path):
    bench = opened(target_of(board), tmp_path)
    first, *bad, last = measured(bench, [twice, endless, wrong, crashing, beyond, undefined, twice])
    assert first == last
    assert first.seconds
    assert [one.reason for one in bad] == [
        "did not come back within 0.6 s",
        "gave other outputs than the default schedule",
        "crashed: the processor faulted",
        "wrote past the end of a buffer",
        "undefined reference to `no_such_function'",
    ]
    assert (len(board.flashed), bench.note) == (1, "board flashed once, times estimated")


def test_a_candidate_that_resets_the_board_is_put_on_record(board, tmp_path, monkeypatch):
    monkeypatch.setattr(serial_board, "_RESETS", 0)
    found = measured(opened(target_of(board, timeout=2.0), tmp_path), [twice, resetting])
    assert (bool(found[0].seconds), found[1].reason) == (True, "the board was reset each time that it ran")


def test_without_a_reset_command_the_image_is_flashed_again(board, tmp_path):
    bench = opened(target_of(board, reset=None), tmp_path)
    assert [bool(one.seconds) for one in measured(bench, [endless, twice, endless])] == [False, True, False]
    assert len(board.flashed) == 2, "nobody is left to call after the last"


def test_a_board_that_is_reset_in_the_middle_repeats_that_candidate(board, tmp_path):
    decoder, pressed = Decoder(), []

    def arrives(data):
        runs = [frame for frame in decoder.feed(data) if frame.operation == Operation.RUN]
        if runs and not pressed:
            pressed.extend(runs)
            board.press()
        return data

    board.to_board = arrives
    found = measured(opened(target_of(board), tmp_path), [twice, wrong, twice])
    assert [bool(one.seconds) for one in found] == [True, False, True]
    assert len(pressed) == 1
    assert len(board.flashed) == 1


def test_cycles_are_counted_several_times_and_the_clock_is_checked(tmp_path):
    """Without -icount QEMU's SysTick goes at 25 MHz of real time: a board with a clock of that speed and no DWT."""
    (tmp_path / "board").mkdir()
    with FlashedBoard(tmp_path / "board", M4, counting=False) as board:
        target = replace(target_of(board, emulated=None, tick=None, timeout=5.0), clock=25e6)
        bench = opened(target, tmp_path)
        (found,) = measured(bench, [twice])
        assert len(found.seconds) == 5
        assert all(0 <= seconds < 0.1 for seconds in found.seconds)
        assert bench.note == "board flashed once, times measured"


def test_images_are_as_few_as_the_memories_allow(board, tmp_path):
    """Three quarters of what the flash should hold."""
    target = target_of(board)
    found = tasks(lower_for(small(tmp_path), target))
    pairs = [(one, s) for one in found for s in listed_schedules(Schedule(one.mod), machine_for(target))[::6]]
    arguments = [s.mod["main"] for _, s in pairs], [t for t, _ in pairs]
    whole = list(opened(target, tmp_path).measure(*arguments))
    (size,) = board.flashed
    little = replace(target.memory, flash=board_bytes(tmp_path / "bench" / "image.elf") * 3 // 4)
    (tmp_path / "less").mkdir()
    halves = list(opened(replace(target, memory=little), tmp_path / "less").measure(*arguments))
    assert halves == whole
    assert len(board.flashed) == 3, "once, and twice"
    assert all(other < size for other in board.flashed[1:])


def board_bytes(elf):
    """Bytes of the internal flash that an image takes."""
    return elf.with_suffix(".bin").stat().st_size


def test_what_never_fits_is_put_on_record_and_external_flash_is_used(board, tmp_path):
    target = target_of(board)
    cases = {
        "ram": replace(target.memory, ram=1200),
        "flash": replace(target.memory, flash=1024),
        "outside": replace(target.memory, weights="external", external_flash=1 << 20, external_flash_at=0x21000000),
    }
    found = {}
    for name, memory in cases.items():
        (tmp_path / name).mkdir()
        (found[name],) = measured(opened(replace(target, memory=memory), tmp_path / name), [twice])
    assert found["ram"].reason.startswith("does not fit into RAM by ")
    assert found["flash"].reason.startswith("region `FLASH' overflowed by ")
    assert found["outside"].seconds
    assert len(board.flashed) == 1


def test_a_board_with_another_program_ends_the_run(board, tmp_path):
    measured(opened(target_of(board), tmp_path), [twice])
    (tmp_path / "other").mkdir()
    nothing = (sys.executable, "-c", "pass", "{elf}")
    with pytest.raises(DeviceError, match="the board runs another program"):
        measured(opened(target_of(board, flash=nothing), tmp_path / "other"), [twice, wrong])


def test_what_a_target_must_say(tmp_path):
    for options, words in (
        ({}, "its device has no `flash` command with {elf} or {bin}: name one in a boards.yaml"),
        ({"flash": ("{elf}",), "reset": ("{hex}",)}, "reset: {hex} is not known; allowed: {elf}, {bin}, {port}"),
        ({"flash": ("{elf}",), "board": None}, "has no `board`: name the C files"),
    ):
        with pytest.raises(InputError, match=words):
            FirmwareBench.open(serial_target(M4, "none", **options), tmp_path)
    with pytest.raises(InputError, match="its device has no `port`: name your board's in a boards"):
        FirmwareBench.open(load_target("rp2040"), tmp_path)


BOARDS = """
mine:
  target: nucleo-h743zi
  device:
    port: /dev/ttyNone
    board: [uart_cmsdk.c, -DUART_AT=0x40004000]
{flash}
"""


def test_the_command_line_gets_to_the_flash_step(tmp_path, capsys):
    source = small(tmp_path, convolution=True).path
    boards = tmp_path / "boards.yaml"
    given = ["tune", str(source), "--target", "nucleo-h743zi", "--trials", "2", "--logs", str(tmp_path / "logs")]
    assert main(given) == 2
    assert "its device has no `port`" in capsys.readouterr().err
    probe = sys.executable, "-c", "import sys; sys.exit('no probe found')", "{elf}"
    for flash, code, words in (
        ("", 2, "its device has no `flash` command"),
        (f"    flash: {list(probe)}", 3, "the board could not be flashed: "),
    ):
        boards.write_text(BOARDS.format(flash=flash))
        assert main([*given, "--boards", str(boards), "--device", "mine"]) == code
        assert words in capsys.readouterr().err
