"""Where the boards of a target are, as its device says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from deploy.device.rpc_client import Session
from deploy.device.rpc_link import SERVER_PORT, TRACKER_PORT, Dial, Offer, Place, Tracker, place_of
from deploy.device.rpc_tunnel import Tunnel
from deploy.device.ssh_link import Address
from deploy.errors import DeviceError, InputError
from deploy.target import Target

TIMEOUT_S = 10.0
DEFAULT_KEY = "board"
SCHEME = "ssh://"


@dataclass(frozen=True)
class Source:
    """Where boards come from: a tracker and a key, or one board's server; and the tunnel to them, if there is one."""

    tracker: Place | None
    server: Place | None
    key: str
    timeout_s: float
    tunnel: Tunnel | None = None

    @property
    def dial(self) -> Dial | None:
        """How to connect to these boards and their tracker, where that is not done directly."""
        return self.tunnel.connect if self.tunnel else None

    def session(self, offer: Offer, lasts_s: float, queue_s: float = 0.0) -> Session:
        """A session on a board. Raises DeviceError, see `Session`."""
        return Session(offer, lasts_s, self.timeout_s, queue_s if self.server else 0.0, self.dial)

    def close(self) -> None:
        """Close the tunnel, if there is one; it is opened again when it is needed."""
        if self.tunnel is not None:
            self.tunnel.close()

    def offer(self, queue_s: float) -> Offer:
        """A board to use. Raises DeviceError, which is a QueueError where none becomes free in `queue_s`."""
        if self.server is not None:
            return Offer(self.server, self.key, self.key)
        with Tracker(cast(Place, self.tracker), self.timeout_s, self.dial) as tracker:
            listed, _ = tracker.summary()
            if not any(board.key == self.key for board in listed):
                keys = ", ".join(sorted({board.key for board in listed})) or "none"
                raise DeviceError(
                    f"the tracker {self.tracker} has no board of the key {self.key} (it has: {keys}): start one with "
                    f"`tvm-deploy board serve --tracker {self.tracker} --key {self.key}` on the board"
                )
            return tracker.request(self.key, queue_s)

    def count(self) -> int:
        """How many boards there are, free or not. Raises DeviceError."""
        if self.server is not None:
            return 1
        with Tracker(cast(Place, self.tracker), self.timeout_s, self.dial) as tracker:
            return sum(board.key == self.key for board in tracker.summary()[0])

    @property
    def words(self) -> str:
        """What to call these boards in messages."""
        return f"board {self.server}" if self.server else f"board of the key {self.key} at the tracker {self.tracker}"


def source_of(target: Target) -> Source:
    """Where a target's device says that its boards are. Raises InputError: it does not say that, or says it wrongly."""
    spec = target.device
    tracker, host, key = (cast("str | None", spec.get(name)) for name in ("tracker", "host", "key"))
    if (tracker is None) == (host is None) or (tracker is not None and key is None):
        raise InputError(
            f"target {target.name} runs on a board over RPC: its device needs `tracker` and `key`, or the `host` of "
            "one board; give them in a boards.yaml (--boards, --device)"
        )
    if key is not None and (not key or any(letter.isspace() or letter == ":" for letter in key)):
        raise InputError(f'key "{key}" of a device of kind rpc has spaces or colons: use another')
    timeout_s = cast(float, spec.get("timeout") or TIMEOUT_S)
    if tracker is not None:
        place, tunnel = tracker_at(tracker, timeout_s, cast("str | None", spec.get("config")))
        return Source(place, None, cast(str, key), timeout_s, tunnel)
    port = cast(int, spec.get("port") or SERVER_PORT)
    return Source(None, place_of(cast(str, host), "a board", port), key or DEFAULT_KEY, timeout_s)


def tracker_at(text: str, timeout_s: float, config: str | None = None) -> tuple[Place, Tunnel | None]:
    """A tracker at HOST:PORT, or at port PORT of a machine that is reached over SSH: ssh://USER@HOST:PORT.

    config: a configuration file of SSH's. Raises InputError: it is neither.
    """
    if not text.startswith(SCHEME):
        return place_of(text, "a tracker", TRACKER_PORT), None
    user, _, host = text.removeprefix(SCHEME).rpartition("@")
    there = place_of(host, "a tracker", TRACKER_PORT)
    return Place("127.0.0.1", there.port), Tunnel(Address(there.host, user or None, config=config), timeout_s)
