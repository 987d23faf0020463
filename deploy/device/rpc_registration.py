"""How the server of a board keeps itself known to a tracker: offered while it is free, and with what it is like."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.device.rpc_link import Place, Tracker
from deploy.device.rpc_session import Hosting, state
from deploy.errors import DeviceError

ANSWER_S = 5.0
TELL_S = 5.0  # between what the tracker is told
RETRY_S = 2.0  # between looks for a tracker that is away
UNUSED_S = 2.0  # after which an offer that somebody took and does not use is made anew
MOST_S = 3600.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Service:
    """What a server serves: under which key, whom it tells, and the longest session.

    reached: what the tracker tells clients to connect to; None for the server's port at the address it comes from.
    """

    key: str
    tracker: Place | None = None
    reached: Place | None = None
    hosting: Hosting = field(default_factory=Hosting)
    most_s: float = MOST_S


class Registration:
    """A server's place at the tracker, if it has one. port: of the server.

    match: what a client has to name: where there is a tracker, what only the client knows that it was offered to.
    """

    def __init__(self, service: Service, port: int, say: Say) -> None:
        self._service, self._say = service, say
        self._host = service.reached.host if service.reached else None
        self._port = service.reached.port if service.reached else port
        self.match = service.key
        self._tracker: Tracker | None = None
        self._offered = False
        self._due = 0.0
        self._unused_since: float | None = None
        self._failed: dict[str, object] = {}
        self._missed = False  # it was told that the tracker is away

    def keep(self, *, busy: bool) -> None:
        """Tell what is due. A tracker that is away is looked for again, and nothing else waits for it for long."""
        if self._service.tracker is None:
            return
        try:
            if time.monotonic() >= self._due:
                self._tell(self._service.tracker, busy)
            elif self._tracker is not None and self._offered and not busy:
                self._renew(self._tracker)
        except DeviceError as error:
            if not self._missed:
                self._say(f"{error}; trying again")
            self.close()
            self._missed, self._due = True, time.monotonic() + RETRY_S

    def changed(self) -> None:
        """The server became busy or free: the offer is used up, and the tracker is told at once."""
        self._offered, self._due = False, 0.0

    def note(self, failure: str) -> None:
        """Remember what went wrong last."""
        self._failed = {"failed": failure, "failed_at": int(time.time())}

    def leave(self) -> None:
        """Have nothing to do with the tracker in this process, which was forked for a session."""
        if self._tracker is not None:
            self._tracker.leave()

    def close(self) -> None:
        """End the connection to the tracker, which forgets the server."""
        if self._tracker is not None:
            self._tracker.close()
        self._tracker, self._offered = None, False

    def _tell(self, place: Place, busy: bool) -> None:
        if self._tracker is None:
            self._tracker = Tracker(place, ANSWER_S)
            self._missed = False
            self._say(f"registered with the tracker {place} as {self._service.key}")
        self._tracker.update(self._facts(busy))
        if not busy and not self._offered:
            self._offer(self._tracker)
        self._due = time.monotonic() + TELL_S

    def _renew(self, tracker: Tracker) -> None:
        if self.match in tracker.pending():
            self._unused_since = None
        elif self._unused_since is None:
            self._unused_since = time.monotonic()
        elif time.monotonic() - self._unused_since > UNUSED_S:
            self._offer(tracker)

    def _offer(self, tracker: Tracker) -> None:
        self.match, self._unused_since = f"{self._service.key}:{random.SystemRandom().random()}", None
        tracker.put(self._service.key, self._port, self.match, self._host)
        self._offered = True

    def _facts(self, busy: bool) -> dict[str, object]:
        hosting = self._service.hosting
        now = {name: value for name, value in state(hosting).items() if name in ("governor", "temperature_c")}
        board = {
            "busy": busy,
            "node": platform.node(),
            "machine": platform.machine(),
            "how": hosting.how,
            **now,
            **self._failed,
        }
        return {"key": f"server:{self._service.key}", "addr": [self._host, self._port], "board": board}
