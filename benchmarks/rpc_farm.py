"""Boards over RPC on this machine: real trackers and servers, each its own process, and a link that fails."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from deploy.device.rpc_link import Place, Tracker

ROOT = Path(__file__).resolve().parents[1]
KEY = "box"


class Program:
    """A `tvm-deploy board` command that runs, and what it said."""

    def __init__(self, *arguments, folder=None, command=(sys.executable, "-m", "deploy.cli")):
        environment = {**os.environ, **({"TMPDIR": str(folder)} if folder else {})}
        line = [*command, "board", *map(str, arguments)]
        self.process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        self.said, self._arrived = [], threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._arrived:
                self.said.append(line.rstrip())
                self._arrived.notify_all()

    def wait_for(self, pattern, limit_s=40):
        """The first line that matches."""
        deadline = time.monotonic() + limit_s
        with self._arrived:
            while True:
                for line in self.said:
                    if found := re.search(pattern, line):
                        return found
                assert time.monotonic() < deadline, self.said
                assert self.process.poll() is None, self.said
                self._arrived.wait(0.2)

    @property
    def place(self):
        found = self.wait_for(r"at 127\.0\.0\.1:(\d+)$")
        return Place("127.0.0.1", int(found[1]))

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)
        self._reader.join(5)
        self.process.stderr.close()

    def children(self):
        """Process ids of the children of this program, and of theirs."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found[1:]

    def kill_server(self):
        """Kill the process that serves, not who starts it again."""
        os.kill(self.children()[0], signal.SIGKILL)


@contextlib.contextmanager
def tracker():
    program = Program("tracker", "--port", 0)
    try:
        program.wait_for("tracking boards")
        yield program
    finally:
        program.stop()


@contextlib.contextmanager
def server(*arguments, **options):
    program = Program("serve", "--port", 0, *arguments, **options)
    try:
        program.wait_for("serving")
        yield program
    finally:
        program.stop()


def wait_until(condition, limit_s=20):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for_boards(place, count, key=KEY):
    """Until so many boards of the key are at the tracker and free."""

    def there():
        with Tracker(place, 5) as known:
            listed, free = known.summary()
        return free.get(key, 0) >= count and sum(board.key == key for board in listed) >= count

    wait_until(there, 40)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Link:
    """A TCP proxy, through which every connection goes; it delays, drops, cuts and resets as it is told.

    to: where it leads. `mode`: pass, hang (nothing goes through any more), cut, reset, refuse, garble.
    """

    def __init__(self, to=None, port=0):
        self.to, self.mode, self.delay_s = to, "pass", 0.0
        self.after = None  # bytes from the client after which `mode` becomes `then`, once
        self.then = "cut"
        self._listener = socket.create_server(("127.0.0.1", port))
        self.place = Place("127.0.0.1", self._listener.getsockname()[1])
        self._pairs, self._closed = [], False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._closed = True
        self._listener.close()
        self.end("cut")

    def end(self, how):
        """End all connections: cut or reset."""
        for pair in self._pairs:
            for one in pair:
                with contextlib.suppress(OSError):
                    if how == "reset":
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        one.close()
                    else:
                        one.shutdown(socket.SHUT_RDWR)
        self._pairs = []

    def _accept(self):
        with contextlib.suppress(OSError):
            while not self._closed:
                client, _ = self._listener.accept()
                if self.mode in ("refuse", "cut", "reset"):
                    client.close()
                    continue
                try:
                    onward = socket.create_connection((self.to.host, self.to.port))
                except OSError:
                    client.close()
                    continue
                pair = (client, onward)
                self._pairs.append(pair)
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, client, onward):
        passed = 0
        with contextlib.suppress(OSError, ValueError):
            while True:
                ready, _, _ = select.select([client, onward], [], [], 0.2)
                if self.mode == "hang":
                    continue
                for one in ready:
                    data = one.recv(1 << 16)
                    if not data:
                        raise OSError
                    if one is client:
                        passed += len(data)
                        if self.after is not None and passed >= self.after:
                            self.after, self.mode = None, self.then
                            if self.mode in ("cut", "reset"):
                                self.end(self.mode)
                                self.mode = "pass"
                                return
                            if self.mode == "hang":
                                continue
                    elif self.mode == "garble":
                        data = bytes(byte ^ 0x5A for byte in data)
                    time.sleep(self.delay_s)
                    (onward if one is client else client).sendall(data)
        for one in (client, onward):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
                one.close()
