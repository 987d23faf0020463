"""What a pool of boards does with a candidate, as functions that whoever opens it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deploy.device.rpc_client import Session

Result = TypeVar("Result")
Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Answer(Generic[Result]):
    """What a board found out about a candidate, and the conditions under which it did."""

    result: Result
    conditions: Mapping[str, object]


@dataclass(frozen=True)
class Work(Generic[Candidate, Result]):
    """What is done with a candidate, by functions that raise DeviceError where the board fails.

    greet: look at a board when a session begins. measure: measure a candidate there. lost: what becomes of one that no
    board brings back. takes_s: the longest that `measure` takes.
    """

    greet: Callable[[Session], dict[str, Any]]
    measure: Callable[[Session, dict[str, Any], Candidate], Answer[Result]]
    lost: Callable[[str], Result]
    takes_s: float


@dataclass
class Proof(Generic[Candidate]):
    """A candidate that some board measured: a board that was put aside has to measure it again."""

    candidate: Candidate | None = None
