"""A laboratory's boards: merged into a target, mistakes named with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import yaml_source
from deploy.boards import board_at, boards_from_node, load_boards
from deploy.errors import InputError
from deploy.target import Target, from_text
from deploy.target_parts import DeviceSpec

TARGET = """\
name: pi
description: d
tvm: {kind: llvm}
device: {kind: ssh, directory: /tmp/x}
power: {kind: auto, active: 2 W}
"""
BOARDS = """\
pi-1:
  target: pi
  device: {host: 10.0.0.7, user: lab}
  power: {root: /srv/sys}
local:
  device: {kind: local}
"""


def pi() -> Target:
    return from_text(TARGET, "pi.yaml")


def test_a_board_adds_to_the_device_and_power_of_its_target(tmp_path: Path) -> None:
    path = tmp_path / "boards.yaml"
    path.write_text(BOARDS, encoding="utf-8")
    boards = load_boards(path)
    assert list(boards) == ["pi-1", "local"]
    reached = boards["pi-1"].apply(pi())
    assert dict(reached.device.options) == {"host": "10.0.0.7", "user": "lab", "directory": "/tmp/x"}
    assert dict(reached.power.options) == {"root": "/srv/sys", "active": 2.0}
    assert reached.fingerprint() == pi().fingerprint()
    other = boards["local"].apply(pi())
    assert (other.device.kind, other.device.options, other.power) == ("local", (), pi().power)


def test_a_board_is_only_for_its_target() -> None:
    board = boards_from_node(yaml_source.parse(BOARDS, "b.yaml"))["pi-1"]
    other = from_text(TARGET.replace("name: pi", "name: other"), "other.yaml")
    with pytest.raises(InputError, match='board "pi-1" is a "pi", not a "other"; use another board'):
        board.apply(other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: {devise: {kind: local}}",
            'b.yaml:1: unknown key "devise" in board a; allowed: device, power, target; did you mean "device"?',
        ),
        ("a: 3", "b.yaml:1: board a must be a mapping (key: value), not 3"),
        ("a: {target: pi}", 'b.yaml:1: board a has neither "device" nor "power"; it would change nothing'),
        (
            "a:\n  device: {kind: shs}",
            'b.yaml:2: kind of device must be one of local, qemu, rpc, serial, ssh, replay, not "shs"; '
            'did you mean "ssh"?',
        ),
    ],
)
def test_wrong_boards_are_named_when_read(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        boards_from_node(yaml_source.parse(text, "b.yaml"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a:\n  device: {baud: 9600}",
            'b.yaml:2: unknown key "baud" in device of kind ssh; allowed: config, directory',
        ),
        ("a:\n  device: {port: x}", "b.yaml:2: port of device of kind ssh must be a whole number"),
        (
            "a:\n  device: {kind: serial}",
            'b.yaml:2: a device of kind "serial" cannot run the artifact "shared-library"',
        ),
        ("a:\n  power: {kind: estimate}", 'b.yaml:2: power of kind estimate needs "active"'),
    ],
)
def test_a_board_that_does_not_fit_is_named_when_applied(text: str, message: str) -> None:
    board = boards_from_node(yaml_source.parse(text, "b.yaml"))["a"]
    with pytest.raises(InputError) as caught:
        board.apply(pi())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("address", "options"),
    [
        ("ssh://raspberrypi", {"host": "raspberrypi"}),
        ("ssh://pi@10.0.0.7:2222", {"host": "10.0.0.7", "user": "pi", "port": 2222}),
        ("ssh://pi@[fe80::1%eth0]:22/", {"host": "fe80::1%eth0", "user": "pi", "port": 22}),
        ("ssh://lab/var/tmp", {"host": "lab", "directory": "/var/tmp"}),
    ],
)
def test_a_board_at_an_address(address: str, options: dict[str, object]) -> None:
    reached = board_at(address).apply(pi())
    assert reached.device.kind == "ssh"
    assert dict(reached.device.options) == {"directory": "/tmp/x", **options}
    local = from_text(TARGET.replace("{kind: ssh, directory: /tmp/x}", "{kind: local}"), "pi.yaml")
    assert dict(board_at(address).apply(local).device.options) == options


@pytest.mark.parametrize(
    "address", ["ssh://", "ssh:/x", "http://x", "ssh://a@b@c", "ssh://x:port", "ssh://[::1", "://"]
)
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(InputError, match=r"no address of a board: write ssh://HOST or ssh://USER@HOST:PORT"):
        board_at(address)


def test_an_address_is_only_for_what_runs_on_linux() -> None:
    firmware = from_text(
        TARGET.replace("device: {kind: ssh, directory: /tmp/x}", "device: {kind: serial}\nartifact: firmware"), "f"
    )
    with pytest.raises(
        InputError, match=r'--device ssh://x.*a device of kind "ssh" cannot run the artifact "firmware"'
    ):
        board_at("ssh://x").apply(firmware)


@pytest.mark.parametrize("tracker", ["127.0.0.1:9190", "hub", "[::1]:9190"])
def test_a_board_at_a_tracker_needs_no_file(tracker: str) -> None:
    target = board_at(f"rpc://{tracker}/rpi4").apply(pi())
    assert target.device == DeviceSpec("rpc", (("tracker", tracker), ("key", "rpi4")))


@pytest.mark.parametrize("address", ["rpc://hub", "rpc://hub/", "rpc:///rpi4", "rpc://hub/a/b", "rpc://hub:1x/rpi4"])
def test_what_is_no_tracker_and_key(address: str) -> None:
    with pytest.raises(InputError, match=r"is no address of a board: .* or rpc://TRACKER/KEY for a board over RPC$"):
        board_at(address)
