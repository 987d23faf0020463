"""Candidates compiled in a crew of processes forked from this one, where TVM is loaded already.

A crew is forked for a batch and takes its candidates one after the other: nothing is sent to it, for a fork has them in
memory, and what leaks goes when the batch is done. A candidate that crashes the compiler, hangs, or takes too much time
or memory ends one process of the crew; another takes its place. What counts against a candidate is its own processor
time, which is no more where the machine is busy.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import math
import os
import resource
import select
import signal
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NoReturn, Protocol, TypeVar

from deploy import shell
from deploy.errors import ToolError
from deploy.tuning.reasons import LONGEST_REASON, one_line, told

WAIT_S = 0.02  # between looks at processes that say nothing
STALL_S = 20.0  # a process that has not worked for so long waits for something that will not come
ANY = -1  # core
PR_SET_PDEATHSIG = 1
STARTED, FINISHED = 0, 1
_NOTE = struct.Struct("<iii")  # the process, what it did, and the number of the candidate
_NUMBER = struct.Struct("<i")
_LIBC = ctypes.CDLL(None)
_NO_MEMORY = ("MemoryError", "bad_alloc", "out of memory", "Cannot allocate memory")
Job = TypeVar("Job")
Work = TypeVar("Work", contravariant=True)


class Workplace(Protocol[Work]):
    """Where candidates are compiled: a folder, how many at once, and what one may take.

    timeout_s: processor time. memory_bytes: beyond what this process has.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def workers(self) -> int: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def memory_bytes(self) -> int: ...

    def compile(self, job: Work, folder: Path) -> None:
        """Compile one candidate into `folder`, in a process of its own. May raise anything."""


@dataclass(frozen=True)
class Built:
    """A candidate's folder, and the reason why it holds nothing to use, empty where it does."""

    folder: Path
    reason: str


def compile_all(workplace: Workplace[Job], jobs: Sequence[Job]) -> list[Built]:
    """Compile each candidate in a folder of its own; no process is left when this returns or raises."""
    with Crew(workplace, jobs) as crew:
        return [crew.built(number) for number in range(len(jobs))]


@dataclass
class _Member:
    """A process of a crew: its core, the candidate it is at, and its processor time, which is the same since when."""

    pid: int
    core: int
    job: int | None = None
    worked: int = 0
    since: float = field(default_factory=time.monotonic)
    hung: bool = False

    def look(self, stall_s: float) -> None:
        """End the process if it hangs. One that waits for a core of a busy machine gets a little, now and then."""
        worked, now = _ticks(self.pid), time.monotonic()
        if self.job is None or worked != self.worked:
            self.worked, self.since = worked, now
        elif now - self.since > stall_s:
            self.hung = True
            _kill(self.pid)


class Crew(Generic[Job]):
    """The processes that compile a batch, from `__enter__` on; all have ended when the block is left.

    Each keeps to a core, in turn those that this process may use, so that one can be made quiet with `paused`. One that
    is alone goes where there is room: several such crews of other programs would meet on the first core.
    """

    def __init__(self, workplace: Workplace[Job], jobs: Sequence[Job], stall_s: float = STALL_S) -> None:
        self._place, self._jobs, self._stall_s = workplace, jobs, stall_s
        self._cores = sorted(os.sched_getaffinity(0))
        self._members: list[_Member] = []
        self._reasons: dict[int, str] = {}
        self._folders: list[Path] = []
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> Crew[Job]:
        self._folders = [Path(tempfile.mkdtemp(dir=self._place.folder)) for _ in self._jobs]
        self._resources.callback(self._end_all)
        # The numbers of the candidates in a file without a name. All processes read it at one offset, which belongs to
        # the open file and not to them: each takes the next number.
        queue = self._resources.enter_context(tempfile.TemporaryFile(dir=self._place.folder, buffering=0))
        queue.write(b"".join(map(_NUMBER.pack, range(len(self._jobs)))))
        queue.seek(0)
        self._queue = queue.fileno()
        self._reader, self._writer = os.pipe()
        self._resources.callback(os.close, self._reader)
        self._resources.callback(os.close, self._writer)
        os.set_blocking(self._reader, False)
        self._recruit()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def built(self, number: int) -> Built:
        """The candidate of that number, once it is compiled or given up."""
        while number not in self._reasons:
            self._look(WAIT_S)
        return Built(self._folders[number], self._reasons[number])

    @contextlib.contextmanager
    def paused(self, cores: Sequence[int]) -> Iterator[None]:
        """Within this block no process of the crew runs on these cores."""
        self._look(0)
        stopped = [member.pid for member in self._members if member.core in (*cores, ANY)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)

    # --- this process ---

    def _recruit(self) -> None:
        """As many processes as there is work for, each on the core that has the fewest."""
        while len(self._members) < self._place.workers and self._unclaimed():
            load = [sum(member.core == core for member in self._members) for core in self._cores]
            self._fork(self._cores[load.index(min(load))] if self._place.workers > 1 else ANY)

    def _unclaimed(self) -> int:
        return len(self._jobs) - os.lseek(self._queue, 0, os.SEEK_CUR) // _NUMBER.size

    def _fork(self, core: int) -> None:
        """Start a process, which is in `_members` before Ctrl-C can come between."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                self._work(core)
            self._members.append(_Member(pid, core))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _look(self, wait_s: float) -> None:
        """Take note of what the processes did, of those that ended, and of those that hang."""
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.poll(wait_s * 1e3)
        ended = [(m, status) for m in self._members for pid, status in [os.waitpid(m.pid, os.WNOHANG)] if pid]
        self._read_notes()  # after the look at who ended: their last notes are there
        for member, status in ended:
            self._members.remove(member)
            code = os.waitstatus_to_exitcode(status)
            if member.job is not None:
                self._reasons[member.job] = self._explained(member, code)
            elif code > 0:  # another one would do no better
                raise ToolError(f"a process that was to compile could not be set up: {shell.exit_words(code)}")
        self._recruit()
        if not self._members:  # whoever took these was killed before it could say so
            lost = set(range(len(self._jobs))) - self._reasons.keys()
            self._reasons |= dict.fromkeys(lost, "the process that was to compile it was killed")
        for member in self._members:
            member.look(self._stall_s)

    def _read_notes(self) -> None:
        members = {member.pid: member for member in self._members}
        with contextlib.suppress(BlockingIOError):
            while notes := os.read(self._reader, 256 * _NOTE.size):
                for pid, what, number in _NOTE.iter_unpack(notes):
                    members[pid].job = number if what == STARTED else None
                    members[pid].since = time.monotonic()
                    if what == FINISHED:
                        error = self._folders[number] / "error"
                        self._reasons[number] = self._blamed(error.read_text()) if error.exists() else ""

    def _explained(self, member: _Member, code: int) -> str:
        """Why a process ended while it compiled a candidate."""
        limit_s = self._place.timeout_s
        if member.hung:
            return f"compiling hung: did nothing for {self._stall_s:g} s"
        if code == -signal.SIGXCPU:
            return f"compiling took longer than {limit_s:g} s of processor time"
        said = ""
        with contextlib.suppress(OSError):
            text = (self._folders[member.job or 0] / "stderr").read_text(errors="replace")
            said = one_line(text.partition("!!!!!!!")[0])  # then comes TVM's list of addresses, every time another
        ended = f"compiling ended with {shell.exit_words(code)}"
        return self._blamed(said, f"{ended}: {said}" if said else ended)

    def _blamed(self, said: str, otherwise: str = "") -> str:
        """The same words for all that ran out of memory, whichever way they took it."""
        if any(word in said for word in _NO_MEMORY):
            return f"compiling needed more than {self._place.memory_bytes >> 20} MiB of memory"
        return (otherwise or said)[:LONGEST_REASON]

    def _end_all(self) -> None:
        """Kill what still runs and wait for its end."""
        for member in self._members:
            _kill(member.pid)
        for member in self._members:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(member.pid, 0)
        self._members = []

    # --- the forked process ---

    def _work(self, core: int) -> NoReturn:
        """Compile candidates until none is left, leave results or reasons, and never return."""
        code = 1
        try:
            self._settle(core)
            pid = os.getpid()
            while len(data := os.read(self._queue, _NUMBER.size)) == _NUMBER.size:
                (number,) = _NUMBER.unpack(data)
                os.write(self._writer, _NOTE.pack(pid, STARTED, number))
                self._compile(number)
                os.write(self._writer, _NOTE.pack(pid, FINISHED, number))
            code = 0
        finally:
            os._exit(code)  # whatever happened, it must not unwind into the code of the process that forked

    def _settle(self, core: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who forked ends its children
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # also where it has no time to: nobody would look at the result
        with contextlib.suppress(OSError):  # a core that was taken away meanwhile
            os.sched_setaffinity(0, self._cores if core == ANY else {core})
        faulthandler.disable()  # what ends here is a candidate's fault, and told as its reason
        gc.freeze()  # a collection would write to, and so copy, all that the fork shares
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower_limit(resource.RLIMIT_AS, used + self._place.memory_bytes)
        with contextlib.suppress(OSError):  # where memory runs out all the same, this is what to end
            Path("/proc/self/oom_score_adj").write_text("1000")

    def _compile(self, number: int) -> None:
        folder = self._folders[number]
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used_s = usage.ru_utime + usage.ru_stime
        _lower_limit(resource.RLIMIT_CPU, math.ceil(used_s + self._place.timeout_s))
        descriptor = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        try:
            self._place.compile(self._jobs[number], folder)
        except BaseException as error:
            (folder / "error").write_text(told(error))


def _lower_limit(kind: int, wanted: int) -> None:
    """Set the limit at which a process is told off, at most as high as the one that it cannot raise."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _ticks(pid: int) -> int:
    """The processor time of a process of ours, in the kernel's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
