"""`tvm-deploy board` and `boards`: what is refused, and what the table of a tracker's boards shows."""

import socket

import pytest
from rpc_farm import KEY, Program, free_port, server, tracker, wait_for_boards, wait_until

from deploy.board_command import table
from deploy.device.rpc_client import Session
from deploy.device.rpc_link import Tracker
from deploy.errors import DeviceError


@pytest.fixture(scope="module")
def tracking():
    with tracker() as program:
        yield program


@pytest.mark.parametrize("action", ["serve", "tracker"])
@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.7", "::", "board.lab"])
def test_other_addresses_need_a_word(cli, action, address):
    ran = cli("board", action, "--bind", address)
    assert (ran.code, ran.out) == (2, "")
    assert f"whoever reaches {address} can run any program on this machine" in ran.err
    assert "--i-understand-this-is-remote-code-execution" in ran.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--tracker", "127.0.0.1"), "a board at a tracker needs a key, such as --key rpi4"),
        (("serve", "--tracker", "a b", "--key", "k"), '"a b" is no address of a tracker: write HOST or HOST:PORT'),
        (("serve", "--key", "a:b"), 'the key "a:b" has spaces or colons'),
        (("serve", "--session-limit", "0 s"), "--session-limit has to be above 0 s"),
        (("serve", "--port", "99999"), "cannot listen at 127.0.0.1, port 99999"),
    ],
)
def test_what_makes_no_sense(cli, arguments, words):
    ran = cli("board", *arguments)
    assert ran.code == 2
    assert words in ran.err


def test_a_port_that_is_taken(cli):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for action in ("serve", "tracker"):
            ran = cli("board", action, "--port", taken.getsockname()[1])
            assert ran.code == 2
            assert "address already in use; use another --port or --bind" in ran.err


def test_no_tracker(cli):
    ran = cli("boards", "--tracker", f"127.0.0.1:{free_port()}")
    assert (ran.code, ran.out) == (3, "")
    assert "refuses connections" in ran.err


def test_the_table(tracking, tmp_path):
    zone = tmp_path / "class/thermal/thermal_zone0/temp"
    zone.parent.mkdir(parents=True)
    zone.write_text("47800\n")
    assert table(str(tracking.place)) == f"the tracker {tracking.place} has no boards"
    with server("--tracker", str(tracking.place), "--key", KEY, "--sysfs", tmp_path) as program:
        wait_for_boards(tracking.place, 1)

        def row():
            head, *rows = table(str(tracking.place)).splitlines()
            assert head.split() == ["KEY", "ADDRESS", "STATE", "TEMPERATURE", "GOVERNOR", "LAST", "FAILURE"]
            return rows[0].split(maxsplit=6)

        assert row() == [KEY, str(program.place), "free", "48", "°C", "-", "-"]
        with Tracker(tracking.place, 5) as known:
            offer = known.request(KEY, 5)
        with Session(offer, 2.0, 5.0) as session:
            wait_until(lambda: row()[2] == "busy")
            with pytest.raises(DeviceError, match="its limit"):
                session.ask({"do": "run", "command": ["sleep", "9"], "limit_s": 9}, takes_s=9)
        wait_until(lambda: row()[2] == "free")
        assert row()[6].startswith("a session was ended after 2 s, its limit, ")


def test_a_server_waits_for_its_tracker():
    """A tracker that is away, or comes back, is no reason to end."""
    port = free_port()
    with server("--tracker", f"127.0.0.1:{port}", "--key", KEY) as program:
        program.wait_for("refuses connections .*; trying again")
        for _ in range(2):
            tracking = Program("tracker", "--port", port)
            try:
                wait_for_boards(tracking.place, 1)
            finally:
                tracking.stop()
        assert sum("trying again" in line for line in program.said) <= 3


def test_an_offer_that_nobody_takes_up_is_made_anew(tracking):
    with server("--tracker", str(tracking.place), "--key", "other"):
        wait_for_boards(tracking.place, 1, "other")
        with Tracker(tracking.place, 5) as known:
            offer = known.request("other", 5)
        wait_for_boards(tracking.place, 1, "other")
        with pytest.raises(DeviceError, match="was offered to somebody else meanwhile"):
            Session(offer, 5.0, 5.0)
