"""Tables of YAML keys: what type each has, how it is read and how it is written back.

A table maps a key to its type: "text", "texts" (a list of it), "count" (from 1), "whole" (from 0), "number", "flag",
"address" (32 bits, such as 0x20000000), or a kind of quantity ("time", "bytes", ...). Values are held as pairs so that
what holds them can be frozen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import cast

from deploy import units
from deploy.yaml_source import Node, Plain

Option = str | int | float | bool | tuple[str, ...]
Options = tuple[tuple[str, Option], ...]
Table = Mapping[str, str]

_LARGEST = 2**53  # What every reader of numbers, JSON's included, holds exactly.


def read(node: Node, what: str, table: Table, required: Iterable[str] = ()) -> Options:
    """Return the keys of the mapping `node` with their values, in the table's order.

    Raises InputError (`file:line`) for a key that is not in `table`, a value of another type, or a missing `required`.
    """
    entries = node.mapping(what, table)
    for key in required:
        if key not in entries:
            raise node.error(f'{what} has no "{key}", which it needs')
    return tuple((key, _read_value(entries[key], f"{key} of {what}", table[key])) for key in table if key in entries)


def write(options: Options, table: Table) -> dict[str, Plain]:
    """Return the plain data that `read` takes for `options`."""
    return {key: _write_value(value, table[key]) for key, value in options}


def text_list(node: Node, what: str) -> tuple[str, ...]:
    """Return a list of texts, or raise InputError."""
    return tuple(entry.text(f"an entry of {what}") for entry in node.items(what))


def _read_value(node: Node, what: str, kind: str) -> Option:
    if kind in units.KINDS:
        return node.quantity(what, kind)
    match kind:
        case "text":
            return node.text(what)
        case "texts":
            return text_list(node, what)
        case "count":
            return node.integer(what, 1, _LARGEST)
        case "whole":
            return node.integer(what, 0, _LARGEST)
        case "address":
            return _address(node, what)
        case "number":
            return node.number(what, 0, 1e300)
        case _:
            return node.flag(what)


def _address(node: Node, what: str) -> int:
    if not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", str(node.value), re.ASCII):
        raise node.error(f"{what} must be an address of 32 bits, such as 0x20000000, not {node.shown()}")
    return int(str(node.value), 16)


def _write_value(value: Option, kind: str) -> Plain:
    if kind in units.KINDS:
        return units.render(cast(float, value), kind)
    if kind == "address":
        return f"0x{value:08x}"
    return list(value) if isinstance(value, tuple) else value
