"""A function that is written for one shape: its sizes are its symbol."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

_NUMBER = r"_(m?\d+)"


@dataclass(frozen=True)
class Shape:
    """Base of dataclasses whose fields are whole numbers; `prefix` is what the symbols of a class begin with."""

    prefix: ClassVar[str]

    @property
    def symbol(self) -> str:
        """The function's name: the prefix and every field, negative ones with an m."""
        numbers: list[int] = [getattr(self, field.name) for field in fields(self)]
        return "_".join([self.prefix, *(f"m{-number}" if number < 0 else str(number) for number in numbers)])

    @classmethod
    def of(cls, symbol: str) -> Self | None:
        """The shape that a symbol names, or nothing for any other function."""
        found = re.fullmatch(re.escape(cls.prefix) + _NUMBER * len(fields(cls)), symbol)
        numbers: list[Any] = [] if found is None else [int(text.replace("m", "-")) for text in found.groups()]
        return None if found is None else cls(*numbers)


@dataclass(frozen=True)
class PlaneShape(Shape):
    """Copies of single channels out of an interleaved image [height, width, channels].

    Each becomes rows of `pitch` elements, the image's first pixel at row `top` and column `left`, `border` around it.
    """

    height: int
    width: int
    channels: int
    top: int
    left: int
    rows: int
    pitch: int
    border: int
