"""`tvm-deploy board` and `boards`: what runs on boards and beside them, and a table of them."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from deploy.device.rpc_link import TRACKER_PORT, Listed, Place, Tracker, place_of
from deploy.device.rpc_registration import Say, Service
from deploy.device.rpc_server import leave_out_torch, listen, supervise
from deploy.device.rpc_session import Hosting
from deploy.device.rpc_source import DEFAULT_KEY, TIMEOUT_S, tracker_at
from deploy.errors import InputError, ToolError

if TYPE_CHECKING:
    from argparse import Namespace

LOOPBACK = "127.0.0.1"
NONE = "-"  # nothing is known
FLAG = "--i-understand-this-is-remote-code-execution"


def run(args: Namespace, say: Say) -> str:
    """`boards`, a table; or `board serve` or `board tracker`, until Ctrl-C or SIGTERM."""
    if args.command == "boards":
        return table(args.tracker)
    actions: dict[str, Callable[[Namespace, Say], None]] = {"serve": _serve, "tracker": _track}
    try:
        with _terminable():
            actions[args.action](args, say)
    except KeyboardInterrupt:
        say("stopped")
    return ""


def table(address: str) -> str:
    """What the tracker knows of each board. Raises DeviceError: there is no tracker."""
    place, tunnel = tracker_at(address, TIMEOUT_S)
    try:
        with Tracker(place, TIMEOUT_S, tunnel.connect if tunnel else None) as tracker:
            listed, free = tracker.summary()
    finally:
        if tunnel is not None:
            tunnel.close()
    if not listed:
        return f"the tracker {place} has no boards"
    rows: list[tuple[str, ...]] = [("KEY", "ADDRESS", "STATE", "TEMPERATURE", "GOVERNOR", "LAST FAILURE")]
    rows += [_row(board, free, time.time()) for board in listed]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _row(board: Listed, free: dict[str, int], now: float) -> tuple[str, ...]:
    facts = board.facts
    busy = facts.get("busy")
    state = {True: "busy", False: "free"}.get(busy) if isinstance(busy, bool) else None
    if state is None:  # a server of another kind tells nothing of itself
        state = "free" if free.get(board.key) else "busy"
    degrees, failed, at = facts.get("temperature_c"), facts.get("failed"), facts.get("failed_at")
    return (
        board.key,
        str(board.place),
        state,
        f"{degrees:.0f} °C" if isinstance(degrees, int | float) else NONE,
        _plain(facts.get("governor") or NONE),
        f"{_plain(failed)}, {_ago(now - at)} ago" if failed and isinstance(at, int | float) else NONE,
    )


def _plain(text: object) -> str:
    """What a board tells, without what a terminal would take for commands."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))[:100]


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(0, seconds):.0f} s"


def _serve(args: Namespace, say: Say) -> None:
    _check_bind(args)
    tracker = place_of(args.tracker, "a tracker", TRACKER_PORT) if args.tracker else None
    key = args.key or DEFAULT_KEY
    if tracker is not None and not args.key:
        raise InputError("a board at a tracker needs a key, such as --key rpi4: its kind, by which it is asked for")
    if any(letter.isspace() or letter == ":" for letter in key):
        raise InputError(f'the key "{key}" has spaces or colons: use another')
    if not args.session_limit > 0:
        raise InputError("--session-limit has to be above 0 s")
    hosting = Hosting(tuple(shlex.split(args.run_with)), args.emulated, args.sysfs)
    with contextlib.closing(listen(args.bind, args.port)) as listener:
        port = int(listener.getsockname()[1])
        own = None if _any_address(args.bind) else Place(args.bind, port)
        reached = place_of(args.advertise, "a board", port) if args.advertise else own
        say(f"serving {key} at {Place(*listener.getsockname()[:2])}")
        supervise(Service(key, tracker, reached, hosting, args.session_limit), listener, say)


def _track(args: Namespace, say: Say) -> None:
    _check_bind(args)
    with contextlib.closing(listen(args.bind, args.port)) as listener:
        leave_out_torch()
        try:
            from tvm.rpc.tracker import TrackerServerHandler
        except ImportError as error:
            raise ToolError(f"TVM's tracker cannot be loaded ({error}): pip install 'tvm-deploy[boards]'") from None
        asyncio.set_event_loop(asyncio.new_event_loop())
        handler = TrackerServerHandler(listener, secrets.token_hex())
        say(f"tracking boards at {Place(*listener.getsockname()[:2])}")
        handler.run()


def _check_bind(args: Namespace) -> None:
    """Raise InputError where whoever reaches this machine could run code here, and nobody said that this is meant."""
    if args.exposed or _loopback(args.bind):
        return
    raise InputError(
        f"TVM's RPC asks nobody who he is: whoever reaches {args.bind} can run any program on this machine; stay with "
        f"{LOOPBACK} and come through SSH, or, in a network that only trusted machines are in, add {FLAG}"
    )


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _any_address(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as a service manager sends it, ends the block as Ctrl-C does."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
