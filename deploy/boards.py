"""A laboratory's own boards: addresses and meters that belong to no shipped target.

```yaml
nucleo-1:                      # the name to give to --device
  target: cortex-m7-nucleo     # optional: only for this target
  device: {port: /dev/ttyACM0, baud: 115200}    # merged into the target's device; another kind replaces it
  power: {kind: hwmon, rails: [ina3221/VDD_IN]}
```

A board over SSH needs no file: its address is `ssh://USER@HOST:PORT`; and `rpc://TRACKER:PORT/KEY` is one at a tracker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from deploy import target_parts as parts
from deploy import yaml_source
from deploy.errors import InputError
from deploy.target import Target
from deploy.yaml_source import Node, Plain

_ADDRESS = re.compile(r"ssh://(?:([^@/:]+)@)?(?:([^@/:\[\]]+)|\[([\w:.%]+)\])(?::(\d{1,5}))?(/.*)?", re.ASCII)
_TRACKED = re.compile(r"rpc://((?:[^@/:\[\]]+|\[[\w:.%]+\])(?::\d{1,5})?)/([^\s/:]+)", re.ASCII)
_KEYS = ("target", "device", "power")


@dataclass(frozen=True)
class Board:
    """One board: what of a target's device and power it overrides, still with its place in the file."""

    name: str
    target: str | None
    device: Node | None
    power: Node | None

    def apply(self, target: Target) -> Target:
        """Return `target` reached through this board; InputError (`file:line: ...`) when the two do not fit."""
        if self.target is not None and self.target != target.name:
            raise InputError(f'board "{self.name}" is a "{self.target}", not a "{target.name}"; use another board')
        device, power = target.device, target.power
        if self.device is not None:
            device = parts.parse_device(_over(self.device, parts.plain_device(device)))
            self.device.placing(lambda: parts.check_device(target.artifact, device))
        if self.power is not None:
            power = parts.parse_power(_over(self.power, parts.plain_power(power)))
        return replace(target, device=device, power=power)


def load_boards(path: Path | str) -> dict[str, Board]:
    """Return the boards in a file by name; InputError (`file:line: ...`) when it is wrong or cannot be read."""
    return boards_from_node(yaml_source.load(path))


def board_at(address: str) -> Board:
    """Return the board at `ssh://USER@HOST:PORT/DIRECTORY`, of which only the host is needed, or `rpc://TRACKER:PORT/KEY`.

    The path is the folder on the board in which its own is made. Raises InputError: it is not such an address.
    """
    place = Node(None, f"--device {address}", 1)
    if tracked := _TRACKED.fullmatch(address):
        found_at: dict[str, Plain] = {"kind": "rpc", "tracker": tracked[1], "key": tracked[2]}
        return Board(address, None, _node(found_at, place), None)
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(
            f'"{address[:80]}" is no address of a board: write ssh://HOST or ssh://USER@HOST:PORT, or '
            "rpc://TRACKER/KEY for a board over RPC"
        )
    user, plain, bracketed, port, directory = found.groups()
    entries: dict[str, Plain] = {"kind": "ssh", "host": plain or bracketed}
    entries |= {"user": user} if user else {}
    entries |= {"port": int(port)} if port else {}
    entries |= {"directory": directory} if directory and directory != "/" else {}
    return Board(address, None, _node(entries, place), None)


def boards_from_node(node: Node) -> dict[str, Board]:
    """Return the boards of a parsed file by name. Kinds and option names are checked here, the rest when applied."""
    return {name: _board(name, entry) for name, entry in node.mapping("boards").items()}


def _board(name: str, node: Node) -> Board:
    entries = node.mapping(f"board {name}", _KEYS)
    if not set(entries) & {"device", "power"}:
        raise node.error(f'board {name} has neither "device" nor "power"; it would change nothing')
    for key, tables in (("device", parts.DEVICES), ("power", parts.POWER)):
        if key in entries:
            every_option = {"kind", *(option for table in tables.values() for option in table)}
            options = entries[key].mapping(f"{key} of board {name}", every_option)
            if "kind" in options:
                options["kind"].choice(f"kind of {key}", tables)
    target = entries["target"].text("target") if "target" in entries else None
    return Board(name, target, entries.get("device"), entries.get("power"))


def _over(node: Node, base: dict[str, Plain]) -> Node:
    """`node`, a mapping, on top of the target's own options unless it is of another kind."""
    entries = node.mapping("a board's entry")
    if "kind" in entries and entries["kind"].value != base["kind"]:
        return node
    places = {key: _node(value, node) for key, value in base.items()}
    return Node({**places, **entries}, node.source, node.line)


def _node(value: Plain, place: Node) -> Node:
    if isinstance(value, list):
        return Node(tuple(_node(entry, place) for entry in value), place.source, place.line)
    if isinstance(value, dict):
        return Node({key: _node(entry, place) for key, entry in value.items()}, place.source, place.line)
    return Node(value, place.source, place.line)
