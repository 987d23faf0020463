"""Frozen dataclasses ⇄ the plain data of JSON, driven by their type annotations.

A field whose metadata say `"report": False` is left out; it needs a default.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deploy.errors import DeployError

Derived = Mapping[type, tuple[str, ...]]
_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}  # JSON has no numbers for these


def to_plain(value: Any, derived: Derived) -> Any:
    """Return dicts, lists, strings and numbers for a dataclass; `derived` names properties to add to a class."""
    if isinstance(value, Enum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        kept = (field.name for field in fields(value) if field.metadata.get("report", True))
        names = [*kept, *derived.get(type(value), ())]
        return {name: to_plain(getattr(value, name), derived) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, derived) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item, derived) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return next(text for text, number in _NOT_FINITE.items() if repr(number) == repr(value))
    return value


def from_plain(kind: Any, data: Any, where: str) -> Any:
    """Return a value of type `kind` made of plain `data`; keys it does not know are ignored.

    Raises ValueError that begins with the place (`where`, such as report.latency.samples_s[3]).
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return from_plain(next(one for one in arguments if one is not type(None)), data, where)
    if origin is Literal:
        return _member(data, list(arguments), where)
    if origin is tuple:
        items = _of_type(data, list, "a list", where)
        return tuple(from_plain(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(items))
    if origin is Mapping:
        entries = _of_type(data, dict, "an object", where)
        return {key: from_plain(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if is_dataclass(kind):
        return _dataclass(kind, _of_type(data, dict, "an object", where), where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(_member(data, [member.value for member in kind], where))
    return _scalar(kind, data, where)


def _dataclass(kind: Any, data: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    arguments = {
        field.name: from_plain(hints[field.name], data[field.name], f"{where}.{field.name}")
        for field in fields(kind)
        if _is_given(field, data, where)
    }
    try:
        return kind(**arguments)
    except (ValueError, TypeError, DeployError) as error:  # what the class itself says is wrong with its fields
        raise ValueError(f"{where}: {error}") from error


def _is_given(field: Field[Any], data: dict[str, Any], where: str) -> bool:
    if not field.metadata.get("report", True):
        return False
    if field.name in data:
        return True
    if field.default is MISSING and field.default_factory is MISSING:
        raise ValueError(f"{where} has no {field.name}")
    return False


def _scalar(kind: Any, data: Any, where: str) -> Any:
    if kind is float:
        if isinstance(data, str) and data in _NOT_FINITE:
            return _NOT_FINITE[data]
        if isinstance(data, int) and not isinstance(data, bool) and abs(data) < 2**1000:
            return data  # a whole number stays one, so that what is read is written again as it was
        return _of_type(data, float, "a number", where)
    if kind is int and isinstance(data, bool):
        raise ValueError(f"{where} is {data!r}; a whole number is expected")
    return _of_type(data, kind, {int: "a whole number", str: "a string", bool: "true or false"}[kind], where)


def _member(data: Any, allowed: list[Any], where: str) -> Any:
    if data not in allowed:
        raise ValueError(f"{where} is {_short(data)}; allowed: {', '.join(map(str, allowed))}")
    return data


def _of_type(data: Any, kind: type, words: str, where: str) -> Any:
    if not isinstance(data, kind):
        raise ValueError(f"{where} is {_short(data)}; {words} is expected")
    return data


def _short(data: Any) -> str:
    if isinstance(data, dict | list):
        return "an object" if isinstance(data, dict) else "a list"
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
