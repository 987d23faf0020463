"""The RPC server of a board: one session at a time, each in a process of its own, registered with a tracker.

TVM's own server stops serving when a session crashes or the tracker is away for a minute, and waits for ever for a
client that says nothing. This one runs the same sessions (TVM's `rpc.ServerLoop`), so that any of TVM's clients can use
the board, but each session has a limit, what it leaves is ended with it, and the server goes on whatever happens to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from deploy.device import rpc_wire as wire
from deploy.device.rpc_link import FUNCTION, Wire
from deploy.device.rpc_registration import Registration, Say, Service
from deploy.device.rpc_session import Desk, end_what_runs_in
from deploy.errors import DeployError, DeviceError, InputError, ToolError
from deploy.shell import exit_words

HANDSHAKE_S = 5.0
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 30.0  # before a server that died is started again
AT_ONCE_S = 3.0  # one that died within, time after time, is started less and less often
GONE_S = 2.0  # that a session may go on when its client is gone
_PDEATHSIG = 1
_LIMIT = re.compile(r"-timeout=(\d+(?:\.\d+)?)")


@dataclass
class _Session:
    """A session that runs: its process, its folder, its client's connection, and until when."""

    pid: int
    folder: Path
    client: socket.socket
    limit_s: float
    ends: float
    gone: bool = False


class Server:
    """Serves sessions on a socket that listens, until it is killed. folder: where sessions' folders are made."""

    def __init__(self, service: Service, listener: socket.socket, folder: Path, say: Say) -> None:
        self._service, self._listener, self._folder, self._say = service, listener, folder, say
        self._registration = Registration(service, int(listener.getsockname()[1]), say)
        self._session: _Session | None = None
        self._woken, waker = socket.socketpair()
        for end in (self._woken, waker):
            end.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._waker = waker

    def serve(self) -> NoReturn:
        """Serve for ever."""
        end_what_runs_in(self._folder)
        for left in self._folder.iterdir():
            shutil.rmtree(left, ignore_errors=True)
        load_runtime()
        while True:
            self._registration.keep(busy=self._session is not None)
            self._wait()
            if self._session is None:
                self._accept()
            else:
                self._look(self._session)

    # --- sessions ---

    def _wait(self) -> None:
        """Until something happens, or a second is over."""
        watched: list[Any] = [self._woken]
        session = self._session
        if session is None:
            watched.append(self._listener)
        limit_s = 1.0 if session is None else min(1.0, max(0.01, session.ends - time.monotonic()))
        poll = select.poll()
        for one in watched:
            poll.register(one, select.POLLIN)
        if session is not None and not session.gone:
            poll.register(session.client, select.POLLRDHUP)
        happened = dict(poll.poll(limit_s * 1e3))
        with contextlib.suppress(OSError):
            while self._woken.recv(64):
                pass
        if session is not None and session.client.fileno() in happened:
            session.gone = True
            session.ends = min(session.ends, time.monotonic() + GONE_S)

    def _accept(self) -> None:
        self._listener.settimeout(0)
        try:
            client, address = self._listener.accept()
        except OSError:
            return
        connection = Wire(client, f"the client {address[0]}")
        try:
            limit_s = self._greeted(connection)
        except DeployError as error:
            self._say(str(error))
            connection.close()
            return
        self._start(client, limit_s)

    def _greeted(self, client: Wire) -> float:
        """Let a client in that names the key it was offered; the seconds that its session may last."""
        if client.word(HANDSHAKE_S) != wire.MAGIC:
            raise client.nonsense("no greeting")
        words = client.text(HANDSHAKE_S).decode("utf-8", "replace").split()
        if words[:1] != [f"client:{self._registration.match}"]:
            client.send(wire.WORD.pack(wire.MISMATCH), HANDSHAKE_S)
            raise DeviceError(f"{client.name} names another key than it was offered")
        client.send(wire.greeting(f"server:{self._service.key}"), HANDSHAKE_S)
        asked = [float(found[1]) for word in words[1:] if (found := _LIMIT.fullmatch(word))]
        return min([self._service.most_s, *asked])

    def _start(self, client: socket.socket, limit_s: float) -> None:
        folder = Path(tempfile.mkdtemp(prefix="session-", dir=self._folder))
        client.setblocking(True)
        pid = fork(lambda: self._in_session(client, folder, limit_s))
        self._session = _Session(pid, folder, client, limit_s, time.monotonic() + limit_s)
        self._registration.changed()

    def _in_session(self, client: socket.socket, folder: Path, limit_s: float) -> int:
        """The process of a session, which ends by itself too where the server cannot end it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit_s + 10)
        self._listener.close()
        self._registration.leave()
        os.chdir(folder)
        serve_session(client.fileno(), Desk(folder, self._service.hosting), folder)
        return 0

    def _look(self, session: _Session) -> None:
        """End a session that is over, or has been for too long."""
        pid, status = os.waitpid(session.pid, os.WNOHANG)
        late = not pid and time.monotonic() >= session.ends
        if not pid and not late:
            return
        if late:
            with contextlib.suppress(ProcessLookupError):
                os.kill(session.pid, signal.SIGKILL)
            os.waitpid(session.pid, 0)
        end_what_runs_in(session.folder)
        if late and not session.gone:
            with contextlib.suppress(OSError):
                session.client.settimeout(HANDSHAKE_S)
                session.client.sendall(wire.exception(f"{wire.LATE}it had lasted {session.limit_s:g} s, its limit"))
            self._note(f"a session was ended after {session.limit_s:g} s, its limit")
        elif pid and (code := os.waitstatus_to_exitcode(status)):
            self._note(f"a session ended with {exit_words(code)}")
        elif late:
            self._note("the client of a session went away")
        with contextlib.suppress(OSError):
            session.client.close()
        shutil.rmtree(session.folder, ignore_errors=True)
        self._session = None
        self._registration.changed()

    def _note(self, failure: str) -> None:
        self._registration.note(failure)
        self._say(failure)


def fork(work: Callable[[], int]) -> int:
    """Start a process that does `work` and ends with the status it returns, or when this one ends."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            status = work()
    except BaseException as error:
        os.write(2, f"tvm-deploy: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def leave_out_torch() -> None:
    """Have this process start without torch, which apache-tvm-ffi loads where it is installed, for seconds."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]


def load_runtime() -> None:
    """Load TVM's runtime without its compiler and its Python package, which take long on a small board.

    Raises ToolError: it is not installed.
    """
    leave_out_torch()
    try:
        import tvm_ffi

        found = importlib.util.find_spec("tvm")
        place = Path(str((found.submodule_search_locations or [""])[0])) if found else Path()
        for name in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
            if (place / "lib" / name).is_file():
                ctypes.CDLL(str(place / "lib" / name), ctypes.RTLD_GLOBAL)
        tvm_ffi.get_global_func("rpc.ServerLoop")
    except (ImportError, OSError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        raise ToolError(f"TVM's runtime cannot be loaded: {words}; install it: pip install apache-tvm") from None


def serve_session(descriptor: int, desk: Desk, folder: Path) -> None:
    """Serve TVM's RPC to the client at a socket until it is done. What TVM's clients upload is kept in `folder`."""
    import tvm_ffi

    def workpath(name: str) -> str:
        return str(folder / name)

    def load_module(name: str) -> Any:
        return tvm_ffi.load_module(str(folder / name))

    tvm_ffi.register_global_func("tvm.rpc.server.workpath", workpath, override=True)
    tvm_ffi.register_global_func("tvm.rpc.server.load_module", load_module, override=True)
    tvm_ffi.register_global_func(FUNCTION, desk.answer, override=True)
    tvm_ffi.get_global_func("rpc.ServerLoop")(descriptor)


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError: the address is not this machine's, or the port is taken."""
    try:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=16)
    except (OSError, OverflowError) as error:
        words = os.strerror(number).lower() if (number := getattr(error, "errno", None)) else str(error)
        raise InputError(f"cannot listen at {address}, port {port}: {words}; use another --port or --bind") from None


def supervise(service: Service, listener: socket.socket, say: Say) -> NoReturn:
    """Have a server serve, and another one when it dies, until this is interrupted. Raises ToolError: no TVM is there.

    The socket is of this process, so that clients that come in between wait and are served by the next one.
    """
    if importlib.util.find_spec("tvm_ffi") is None or importlib.util.find_spec("tvm") is None:
        raise ToolError("a board needs TVM's runtime: pip install apache-tvm apache-tvm-ffi")
    pause_s = SHORTEST_PAUSE_S
    with tempfile.TemporaryDirectory(prefix="tvm-deploy-board-", ignore_cleanup_errors=True) as folder:
        while True:
            started = time.monotonic()
            pid = fork(lambda: Server(service, listener, Path(folder), say).serve())
            try:
                _, status = os.waitpid(pid, 0)
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            finally:
                end_what_runs_in(Path(folder))
            say(f"the server ended with {exit_words(os.waitstatus_to_exitcode(status))}; it is started again")
            at_once = time.monotonic() - started < AT_ONCE_S
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S) if at_once else SHORTEST_PAUSE_S
            time.sleep(pause_s)
