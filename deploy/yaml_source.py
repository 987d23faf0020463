"""YAML as plain data that remembers its place, so that any later complaint can say `file:line`.

Only what a configuration needs is read, by YAML 1.2's core rules for scalars: mappings with text keys, lists, text,
whole and decimal numbers, true, false and null. Anchors, aliases and tags are refused: they are what "billion laughs"
files and object injection are made of. `yes`, `no`, `on`, `off`, dates and `1:30` are text, not surprises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from deploy import units
from deploy.errors import InputError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_NODES = 20_000

T = TypeVar("T")
Value = None | bool | int | float | str | dict[str, "Node"] | tuple["Node", ...]
Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]

_Event = Any  # yaml.Event, whose type stubs leave out what its subclasses carry.

# libyaml's events are the same as the Python parser's, and some twenty times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,20}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Node:
    """A value of a YAML file and where it stands (`source:line`, counted from 1)."""

    value: Value
    source: str
    line: int

    @property
    def where(self) -> str:
        """Return the place as `file:line`."""
        return f"{self.source}:{self.line}"

    def error(self, message: str) -> InputError:
        """Return (not raise) an InputError that starts with the place."""
        return InputError(f"{self.where}: {message}")

    def placing(self, build: Callable[[], T]) -> T:
        """Return what `build` returns; an InputError it raises gets the place in front."""
        try:
            return build()
        except InputError as error:
            raise self.error(str(error)) from None

    def shown(self) -> str:
        """Return the value as an error message quotes it: short, on one line."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, tuple):
            return "a list"
        if self.value is None:
            return "nothing"
        if isinstance(self.value, bool):
            return str(self.value).lower()
        text = str(self.value)
        text = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
        text = text if len(text) <= 80 else text[:77] + "..."
        return f'"{text}"' if isinstance(self.value, str) else text

    def plain(self) -> Plain:
        """Return the value without places: dict, list, str, int, float, bool or None."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value

    def mapping(self, what: str, allowed: Iterable[str] | None = None) -> dict[str, Node]:
        """Return the entries of a mapping; InputError when it is none or has a key that is not in `allowed`."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} must be a mapping (key: value), not {self.shown()}")
        if allowed is not None:
            known = sorted(allowed)
            for key, node in self.value.items():
                if key not in known:
                    hint = units.did_you_mean(key, known)
                    raise node.error(f'unknown key "{key[:80]}" in {what}; allowed: {", ".join(known)}{hint}')
        return self.value

    def items(self, what: str) -> tuple[Node, ...]:
        """Return the entries of a list, or raise InputError."""
        if not isinstance(self.value, tuple):
            raise self.error(f"{what} must be a list such as [a, b], not {self.shown()}")
        return self.value

    def text(self, what: str) -> str:
        """Return non-empty text without control characters, or raise InputError."""
        if not isinstance(self.value, str) or not self.value or not self.value.isprintable():
            hint = "; put it in quotes" if isinstance(self.value, int | float) else ""
            raise self.error(f"{what} must be text on one line, not {self.shown()}{hint}")
        return self.value

    def integer(self, what: str, minimum: int, maximum: int) -> int:
        """Return a whole number in [minimum, maximum], or raise InputError."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or not minimum <= self.value <= maximum:
            raise self.error(f"{what} must be a whole number from {minimum} to {maximum}, not {self.shown()}")
        return self.value

    def number(self, what: str, minimum: float, maximum: float) -> float:
        """Return a number in [minimum, maximum] as a float, or raise InputError."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not minimum <= self.value <= maximum:  # type: ignore[operator]
            raise self.error(f"{what} must be a number from {minimum:g} to {maximum:g}, not {self.shown()}")
        return float(self.value)  # type: ignore[arg-type]

    def flag(self, what: str) -> bool:
        """Return true or false, or raise InputError."""
        if not isinstance(self.value, bool):
            raise self.error(f"{what} must be true or false, not {self.shown()}")
        return self.value

    def choice(self, what: str, allowed: Iterable[str]) -> str:
        """Return text that is one of `allowed`, or raise InputError with them and the nearest."""
        choices = list(allowed)
        if not isinstance(self.value, str) or self.value not in choices:
            hint = units.did_you_mean(self.value, choices) if isinstance(self.value, str) else ""
            raise self.error(f"{what} must be one of {', '.join(choices)}, not {self.shown()}{hint}")
        return self.value

    def quantity(self, what: str, kind: units.Kind) -> float:
        """Return a quantity with a unit in the base unit of `kind`, or raise InputError."""
        if not isinstance(self.value, str | int | float) or isinstance(self.value, bool):
            raise self.error(f'{what} must be a quantity such as "{units.EXAMPLES[kind]}", not {self.shown()}')
        try:
            return units.parse(self.value, kind)
        except InputError as error:
            raise self.error(f"{what}: {error}") from None


def load(path: Path | str) -> Node:
    """Return the mapping in the YAML file `path`; raises InputError as `parse` does, or when it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from None
    except ValueError:
        raise InputError(f"{str(path)!r} is not a file name") from None
    return parse(data, str(path))


def parse(data: bytes | str, source: str) -> Node:
    """Return the mapping that the YAML text `data` consists of; `source` names it in errors.

    Raises InputError (`source:line: ...`) for text that is over 1 MiB, binary, not YAML, not one mapping, nested deeper
    than 20 levels, or that uses anchors, aliases, tags or a key twice.
    """
    text = _decode(data, source)
    try:
        root = _Composer(yaml.parse(text, Loader=_LOADER), source).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(root.value, dict):
        raise root.error(f"the file must be a mapping (key: value), not {root.shown()}")
    return root


def dump(data: Plain) -> str:
    """Return `data` as YAML text that `parse` reads back to the same data, keys in the given order."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)
    return str(text)


def _decode(data: bytes | str, source: str) -> str:
    if len(data) > MAX_BYTES:
        raise InputError(f"{source}: is larger than 1 MiB; a configuration file is a few KiB, is this the right file?")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1  # type: ignore[arg-type]
        raise InputError(f"{source}:{line}: is not UTF-8 text; is this the right file?") from None
    binary = re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff\ufffe\uffff]", text.replace("\r\n", "\n"))
    if binary:
        line = text.count("\n", 0, binary.start()) + 1
        raise InputError(f"{source}:{line}: contains the character {binary.group()!a}; is this a text file?")
    return text


def _syntax_error(error: yaml.MarkedYAMLError, text: str, source: str) -> InputError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return InputError(f"{source}: is not valid YAML ({error.problem or error.context})")
    if "nesting depth" in (error.problem or ""):  # PyYAML's own limit, which it meets while it looks ahead
        return InputError(f"{source}:{mark.line + 1}: is nested deeper than {MAX_DEPTH} levels")
    place = f"{source}:{mark.line + 1}:{mark.column + 1}"
    culprit = "".join(text.splitlines()[mark.line : mark.line + 1])[mark.column : mark.column + 1]
    if culprit == "\t":
        return InputError(f"{place}: a tab is used for indentation, which YAML forbids; use spaces")
    if "cannot start any token" in (error.problem or ""):
        return InputError(f'{place}: a value cannot start with "{culprit}"; put it in quotes')
    if "mapping values are not allowed" in (error.problem or ""):
        return InputError(f'{place}: ": " is not allowed here; put a text that contains it in quotes')
    return InputError(f"{place}: is not valid YAML ({error.problem or error.context})")


class _Composer:
    """Builds nodes from parser events; unlike PyYAML's own composer it bounds the depth and the number of nodes."""

    def __init__(self, events: Iterable[_Event], source: str) -> None:
        self._events = iter(events)
        self._source = source
        self._count = 0

    def document(self) -> Node:
        root = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise self._error(event, 'a second document starts here; keep one per file (remove "---")')
                root = self._node(next(self._events), 0)
        if root is None:
            raise InputError(f"{self._source}: is empty")
        return root

    def _node(self, event: _Event, depth: int) -> Node:
        self._check(event, depth)
        line = event.start_mark.line + 1
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self._mapping(depth), self._source, line)
        if isinstance(event, yaml.SequenceStartEvent):
            entries = []
            while not isinstance(entry := next(self._events), yaml.SequenceEndEvent):
                entries.append(self._node(entry, depth + 1))
            return Node(tuple(entries), self._source, line)
        plain = event.implicit[0] and event.style in (None, "")
        return Node(_resolve(event.value) if plain else event.value, self._source, line)

    def _mapping(self, depth: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key.value, str):
                raise key.error(f"a key must be text, not {key.shown()}")
            if key.value in entries:
                first = entries[key.value].line
                raise key.error(f'the key "{key.value[:80]}" is given twice (first on line {first}); keep one')
            node = self._node(next(self._events), depth + 1)
            # A complaint about the entry points at its key: a nested value only starts on the next line.
            entries[key.value] = Node(node.value, self._source, key.line)
        return entries

    def _check(self, event: _Event, depth: int) -> None:
        self._count += 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._error(event, "anchors (&) and aliases (*) are not allowed; write the value out")
        if event.tag is not None and event.tag != "!":
            raise self._error(event, f"the tag {event.tag[:80]} is not allowed; write plain values")
        if depth > MAX_DEPTH:
            raise self._error(event, f"is nested deeper than {MAX_DEPTH} levels")
        if self._count > MAX_NODES:
            raise self._error(event, f"the file has more than {MAX_NODES} values")

    def _error(self, event: _Event, message: str) -> InputError:
        return InputError(f"{self._source}:{event.start_mark.line + 1}: {message}")


def _resolve(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `_resolve` would take for something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def ignore_aliases(self, data: object) -> bool:
        return True


for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), None)
