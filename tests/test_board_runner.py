"""Tuning on boards: candidates built here, timed by real servers, and a whole tuning run while a board dies."""

import json
import threading
import time
from dataclasses import replace

import pytest
from conftest import run_cli
from rpc_farm import KEY, server, tracker, wait_for_boards
from tuning_support import calling, product, unbound

from deploy import shell
from deploy.device.rpc_client import Session
from deploy.device.rpc_link import Offer, Place
from deploy.errors import DeviceError
from deploy.target_parts import DeviceSpec
from deploy.targets import load_target
from deploy.tuning.board_runner import BoardBench, outcome
from deploy.tuning.runner import Measured

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def lab():
    """A tracker and two boards."""
    with tracker() as tracking:
        more = ("--tracker", str(tracking.place), "--key", KEY)
        with server(*more) as first, server(*more) as second:
            wait_for_boards(tracking.place, 2)
            yield tracking, [first, second]


def at_tracker(tracking, key=KEY):
    device = DeviceSpec("rpc", (("tracker", str(tracking.place)), ("key", key), ("timeout", 5.0)))
    return replace(load_target("host"), device=device)


def test_candidates_are_timed_in_order_and_failures_have_reasons(lab, tmp_path):
    bench = BoardBench.open(at_tracker(lab[0]), tmp_path)
    found = list(bench.measure([product(16), calling("abort"), unbound(), product(32)]))
    assert [bool(measured.seconds) for measured in found] == [True, False, False, True]
    assert found[0].seconds[0] < found[3].seconds[0]
    assert found[1].reason == "crashed: killed by SIGABRT"
    assert "free" in found[2].reason
    assert bench.note in ("1 board", "2 boards")
    assert bench.ledger.losses == 0


def test_with_threads(lab, tmp_path):
    bench = BoardBench.open(replace(at_tracker(lab[0]), threads=2), tmp_path)
    assert [bool(measured.seconds) for measured in bench.measure([product(32)])] == [True]


@pytest.mark.skipif(shell.which("aarch64-linux-gnu-gcc") is None, reason="aarch64-linux-gnu-gcc is not installed")
def test_programs_of_another_processor_are_static(lab, tmp_path):
    target = replace(load_target("cortex-a76"), device=at_tracker(lab[0]).device)
    bench = BoardBench.open(target, tmp_path)
    with bench._batch([product(16)]) as batch:
        built = batch.built(0)
        assert built.reason == ""
        program = (built.folder / "program").read_bytes()
    assert program[:5] == b"\x7fELF\x02"
    assert program[16:20] == b"\x02\x00\xb7\x00"  # not position-independent: no loader is asked for; AArch64


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"late": True}, "ran longer than 60 s"),
        ({"status": -24}, "ran longer than 10 s"),
        ({"status": -14}, "hung: did nothing for 3 s"),
        ({"status": -11}, "crashed: killed by SIGSEGV"),
        ({"status": 5, "stderr": "x\nthe kernel returned 7\n"}, "the kernel returned 7"),
        ({"status": 4, "stderr": None}, "exit status 4"),
    ],
)
def test_what_a_candidate_did_wrong(told, reason):
    assert outcome("board b", told) == Measured(reason=reason)


@pytest.mark.parametrize(
    "told", [{}, {"status": "0"}, {"status": True}, {"status": 0, "stdout": "x"}, {"unstarted": "no such file"}]
)
def test_what_a_board_did_wrong(told):
    with pytest.raises(DeviceError, match=r"^board b"):
        outcome("board b", told)


def kill_once_tuning(server, logs):
    """Kill a board's server when the first candidate is on record, and so others are being measured."""
    while not any('"trial":' in file.read_text() for file in logs.rglob("log.jsonl")):
        time.sleep(0.01)
    server.kill_server()


def test_a_tuning_run_goes_on_when_a_board_dies(lab, conv_onnx, tmp_path):
    tracking, servers = lab
    boards = tmp_path / "boards.yaml"
    boards.write_text(f"lab: {{device: {{kind: rpc, tracker: '{tracking.place}', key: {KEY}, timeout: 5 s}}}}\n")
    killer = threading.Thread(target=kill_once_tuning, args=(servers[0], tmp_path / "logs"), daemon=True)
    killer.start()
    arguments = ("--target", "host", "--boards", boards, "--device", "lab", "--logs", tmp_path / "logs")
    ran = run_cli("run", conv_onnx, *arguments, "--trials", "8", "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["verification"]["passed"]
    assert not killer.is_alive()
    wait_for_boards(tracking.place, 2)


def test_tvm_s_own_client_can_use_a_board(lab):
    """Any client of TVM's finds what it expects: the same library, loaded and called there."""
    from tvm import rpc

    place = lab[0].place
    session = rpc.connect_tracker(place.host, place.port).request(KEY, session_timeout=20)
    assert session.get_function("testing.echo")(5) == 5
    session.upload(bytearray(b"data"), "file")
    assert bytes(session.download("file")) == b"data"
    del session


def test_a_server_of_tvm_s_own_is_told_from_ours(lab):
    from tvm import rpc

    theirs = rpc.Server("127.0.0.1", 9700, 9800, key="theirs")
    try:
        with pytest.raises(DeviceError, match=r"runs another RPC server than `tvm-deploy board serve`"):
            Session(Offer(Place("127.0.0.1", theirs.port), "theirs", "theirs"), 20, 10)
    finally:
        theirs.terminate()
