"""Candidates on several boards at once, over a real tracker and real servers, whatever happens to these."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rpc_farm import KEY, Link, server, tracker, wait_for_boards
from rpc_support import board

from deploy.device.rpc_source import source_of
from deploy.errors import DeviceError
from deploy.tuning.board_health import Ledger, Rules, throttled
from deploy.tuning.board_pool import Pool
from deploy.tuning.board_work import Answer, Proof, Work

QUICK = Rules(failures=2, cooling_s=0.5, aside_s=0.5, longest_aside_s=1.0, wait_s=4.0, session_s=30.0)
LIMIT_S = 1.0


def greet(session):
    return session.ask({"do": "hello"})[0]


def measure(session, facts, script):
    """Run a script; what it prints is the result, and no time counts but that of the script."""
    session.ask({"do": "put", "name": "program"}, script.encode())
    request = {"do": "run", "command": ["sh", "program"], "limit_s": LIMIT_S}
    told, _ = session.ask(request, takes_s=LIMIT_S)
    if told.get("late"):
        return Answer("late", told["conditions"])
    if told["status"] or not told["stdout"]:
        raise DeviceError(f"{session.name}: nonsense")
    return Answer(told["stdout"].strip(), told["conditions"])


WORK = Work(greet, measure, lambda why: f"lost: {why}", LIMIT_S + 2)


@pytest.fixture(scope="module")
def tracking():
    with tracker() as program:
        yield program


class Lab:
    """Two boards of a key of their own, each behind a link."""

    def __init__(self, tracking, servers, links, key):
        self.place, self.servers, self.links = tracking.place, servers, links
        self.source = source_of(board(tracker=str(tracking.place), key=key, timeout=1.0))


@pytest.fixture(scope="module")
def shared(tracking):
    links = [Link(), Link()]
    more = [("--tracker", str(tracking.place), "--key", KEY, "--advertise", str(link.place)) for link in links]
    with server(*more[0]) as first, server(*more[1]) as second:
        for link, one in zip(links, (first, second), strict=True):
            link.to = one.place
        wait_for_boards(tracking.place, 2)
        yield Lab(tracking, [first, second], links, KEY)
    for link in links:
        link.close()


@pytest.fixture
def lab(shared, tracking):
    """Both boards free and their links whole, before and after."""
    yield shared
    for link in shared.links:
        link.end("cut")
        link.mode, link.delay_s = "pass", 0.0
    wait_for_boards(tracking.place, 2)


def all_of(source, scripts, rules=QUICK, work=WORK, ledger=None):
    """The results of scripts, in order."""
    with Pool(source, work, ledger or Ledger(rules)) as pool:
        for number, script in enumerate(scripts):
            pool.submit(number, script)
        return [pool.result(number) for number in range(len(scripts))]


def test_two_boards_work_at_once(lab):
    started = time.monotonic()
    assert all_of(lab.source, [f"sleep 0.5; echo {n}" for n in range(6)]) == [str(n) for n in range(6)]
    assert time.monotonic() - started < 2.5


def test_the_limit_does_not_count_the_queue(lab):
    """A candidate that waits much longer than one may take is not late."""
    assert all_of(lab.source, [f"sleep 0.6; echo {n}" for n in range(6)]) == [str(n) for n in range(6)]


def test_a_candidate_that_hangs_is_late_and_nothing_else(lab):
    started = time.monotonic()
    assert all_of(lab.source, ["sleep 99", "echo a", "echo b"]) == ["late", "a", "b"]
    assert time.monotonic() - started < LIMIT_S + 3


def slow(count):
    return [f"sleep 0.3; echo {n}" for n in range(count)]


@pytest.mark.parametrize("how", ["reset", "kill", "garble"])
def test_what_befalls_a_board_costs_no_candidate(lab, how):
    def happen():
        if how == "kill":
            lab.servers[0].kill_server()
        elif how == "garble":
            lab.links[0].mode = how
        else:
            lab.links[0].end(how)

    threading.Timer(0.4, happen).start()
    assert all_of(lab.source, slow(8)) == [str(n) for n in range(8)]


def test_a_board_that_hangs_is_put_aside_and_taken_back(lab):
    ledger = Ledger(QUICK)
    timers = [threading.Timer(0.3, lambda: setattr(lab.links[0], "mode", "hang"))]

    def back():
        lab.links[0].end("cut")
        lab.links[0].mode = "pass"

    timers.append(threading.Timer(4.0, back))
    for timer in timers:
        timer.start()
    seen = []

    def note(session, facts, script):
        seen.append((time.monotonic(), session.name))
        return measure(session, facts, script)

    started = time.monotonic()
    scripts = [f"sleep 0.5; echo {n}" for n in range(14)]
    found = all_of(lab.source, scripts, work=replace(WORK, measure=note), ledger=ledger)
    assert found == [str(n) for n in range(14)]
    first = str(lab.links[0].place)
    assert any(when - started > 4 and first in name for when, name in seen), "the board is in use again"
    assert ledger.suspects() == 0


def test_nobody_waits_for_a_board_that_hangs(lab):
    """Another one measures its candidate too, long before the limits of the first are over."""
    patient = replace(lab.source, timeout_s=20.0)
    threading.Timer(0.3, lambda: setattr(lab.links[0], "mode", "hang")).start()
    started = time.monotonic()
    assert all_of(patient, slow(8)) == [str(n) for n in range(8)]
    assert time.monotonic() - started < 8


def test_a_candidate_that_takes_boards_down_is_recorded(lab):
    """Two boards are lost to it, and none to anything else."""
    ledger = Ledger(replace(QUICK, failures=3))
    reboot = "kill -9 $PPID; sleep 9"  # the session
    found = all_of(lab.source, [reboot, "echo a", "echo b", "echo c"], ledger=ledger)
    assert found[0].startswith("lost: the link to the board was cut")
    assert found[1:] == ["a", "b", "c"]
    assert ledger.losses == 2


def test_nonsense_is_the_board_s(lab):
    """What answers nonsense on one board is asked of the other one."""
    here = Path(f"/tmp/tvm-deploy-test-{os.getpid()}")
    script = f"if mkdir {here} 2>/dev/null; then exit 3; fi; echo fine"
    try:
        assert all_of(lab.source, [script]) == ["fine"]
    finally:
        here.rmdir()


def test_no_board_is_an_error_after_a_while(tracking):
    source = source_of(board(tracker=str(tracking.place), key="nothing", timeout=1.0))
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"^no board of the key nothing at the tracker .* has answered for 1 s \("):
        all_of(source, ["echo"], replace(QUICK, wait_s=1.0))
    assert time.monotonic() - started < 4
    gone = source_of(board(host="127.0.0.1", port=1, timeout=1.0))
    with pytest.raises(DeviceError, match=r"^no board 127\.0\.0\.1:1 has answered for 1 s \(.* refuses connections"):
        all_of(gone, ["echo"], replace(QUICK, wait_s=1.0))


def test_boards_that_come_back_in_time_are_waited_for(lab):
    for link in lab.links:
        link.mode = "refuse"

    def back():
        for link in lab.links:
            link.mode = "pass"

    threading.Timer(2.0, back).start()
    assert all_of(lab.source, ["echo a"], replace(QUICK, wait_s=30.0)) == ["a"]


def test_a_throttled_board_pauses(tmp_path):
    zone = tmp_path / "class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("85000\n")
    times = []

    def note(session, facts, script):
        times.append(time.monotonic())
        return measure(session, facts, script)

    with server("--sysfs", tmp_path) as program:
        source = source_of(board(host=program.place.host, port=program.place.port))
        threading.Timer(1.5, lambda: zone.write_text("55000\n")).start()
        started = time.monotonic()
        assert all_of(source, ["echo a"], work=replace(WORK, measure=note)) == ["a"]
    assert len(times) == 2
    assert times[1] - started > 1.4


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({}, ""),
        ({"temperature_c": 79.0}, ""),
        ({"temperature_c": 81.0}, "it is 81 °C warm"),
        ({"governor": "performance", "frequency_hz": 6e8, "max_frequency_hz": 1.5e9}, "its clock is slowed to 600 MHz"),
        ({"governor": "ondemand", "frequency_hz": 6e8, "max_frequency_hz": 1.5e9}, ""),
        ({"governor": "performance", "frequency_hz": "?", "max_frequency_hz": None}, ""),
    ],
)
def test_throttling(conditions, words):
    assert throttled(conditions, 80.0) == words


def test_who_is_to_blame():
    """Where boards hardly fail, two losses are the candidate's; where they often do, it takes more."""
    calm, wild = Ledger(), Ledger()
    for number in range(100):
        calm.ran(lost=False)
        wild.ran(lost=number % 3 == 0)
    for ledger in (calm, wild):
        for _ in range(2):
            ledger.ran(lost=True)
    assert [calm.enough(n) for n in (1, 2)] == [False, True]
    assert [wild.enough(n) for n in (2, 3, 5)] == [False, False, True]


def test_boards_are_put_aside_for_longer_each_time():
    ledger = Ledger(Rules(failures=2, aside_s=10, longest_aside_s=35))
    ledger.failed("a", "x")
    assert ledger.aside_s("a") == 0
    lengths = []
    for _ in range(4):
        ledger.failed("a", "why")
        lengths.append(round(ledger.aside_s("a")))
    assert lengths == [10, 20, 35, 35]
    assert ledger.words() == "1 board, 1 put aside"
    assert (ledger.doubtful("a"), ledger.suspects(), ledger.last()) == (True, 1, "why")
    ledger.well("a")
    assert (ledger.doubtful("a"), ledger.suspects(), ledger.aside_s("a")) == (False, 0, 0)


def test_a_proof_is_asked_of_a_board_that_was_put_aside(lab):
    ledger, proof, seen = Ledger(QUICK), Proof("echo proof"), []
    for link in lab.links:
        ledger.put_aside(str(link.place), "x")

    def note(session, facts, script):
        seen.append(script)
        return measure(session, facts, script)

    with Pool(lab.source, replace(WORK, measure=note), ledger, proof) as pool:
        pool.submit(0, "echo a")
        assert pool.result(0) == "a"
    assert seen[0] == "echo proof"
