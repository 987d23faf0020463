"""Why candidates fail, in one line each: the same words for the same reason, for they are counted."""

from __future__ import annotations

LONGEST_REASON = 300  # characters


def told(error: BaseException) -> str:
    """An error on one line: its first, and its last where there are more, which is where programs say what is wrong."""
    return one_line(str(error)) or type(error).__name__


def one_line(text: str) -> str:
    """The first line of a text, and its last where there are more."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    return (lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}")[:LONGEST_REASON]
