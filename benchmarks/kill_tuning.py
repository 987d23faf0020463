"""Kill tuning runs at random moments, again and again, and count what was lost: it may be nothing.

    python benchmarks/kill_tuning.py [--kills N] [--seed N] [--longest SECONDS]

Two runs are always at it, in the same log, until one is killed with SIGKILL and another one takes its place. In the end
a run is left to finish. Counted are records that a run had put on record (it says so in a pipe) and the log has not,
damaged lines, processes that outlived their run, and files left in the temporary folder. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvm import te, tirx
from tvm.s_tir import Schedule

from deploy.progress import Silent
from deploy.target import Target
from deploy.targets import load_target
from deploy.tuning import log_verify, store
from deploy.tuning.kernel_id import kernel_id
from deploy.tuning.log import TuningLog
from deploy.tuning.log_lines import nanoseconds
from deploy.tuning.search import tune
from deploy.tuning.task import Task

ENDLESS, SIZES = 100_000, (32, 40, 48)
PR_SET_CHILD_SUBREAPER = 36
GONE_S = 5.0  # a process that was just killed may take a moment to be gone


@dataclass
class Run:
    """A tuning run in a process, and in a session, of its own; what it says it has put on record."""

    process: int
    pipe: int
    said: bytes = b""

    def listen(self, to_the_end: bool = False) -> None:
        """Take what the run has said up to now."""
        os.set_blocking(self.pipe, to_the_end)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 20):
                self.said += part

    def records(self) -> set[tuple[str, tuple[float, ...]]]:
        """Kernels and times on record; the last line may have been cut off."""
        told = [json.loads(line) for line in self.said.split(b"\n")[:-1]]
        return {(kernel, tuple(ns)) for kernel, ns in told}


class Loud(TuningLog):
    """A log that says in a pipe what it has taken down."""

    pipe = -1

    def commit(self, task: Task, schedule: Schedule, seconds: Sequence[float], reason: str = "") -> None:
        super().commit(task, schedule, seconds, reason)
        line = json.dumps([kernel_id(task.mod), [nanoseconds(s) for s in seconds]]) + "\n"
        os.write(self.pipe, line.encode())


def product(size: int) -> tirx.PrimFunc:
    """A product of two matrices, which TVM's own space has many schedules for."""
    a, b = te.placeholder((size, size), name="a"), te.placeholder((size, size), name="b")
    k = te.reduce_axis((0, size), "k")
    return te.create_prim_func([a, b, te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]))])


def start(target: Target, root: Path, trials: int, seed: int) -> Run:
    """Begin to tune in another process."""
    ours, theirs = os.pipe()
    process = os.fork()
    if process:
        os.close(theirs)
        return Run(process, ours)
    code = 1
    try:
        os.setsid()
        os.close(ours)
        log = Loud.open(target, root)
        log.pipe = theirs
        tune([Task(f"product{size}", product(size), 1) for size in SIZES], target, log, trials, Silent(), seed)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def alive(sessions: set[int]) -> list[str]:
    """Command lines of processes in these sessions."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) in sessions:
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()[:80]!r}")
    return found


def reap() -> None:
    """Bury the children of runs that were killed, which are this process's by then."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def left_running(sessions: set[int]) -> list[str]:
    """What still runs, a moment later, of runs that are over."""
    deadline = time.monotonic() + GONE_S
    while (found := alive(sessions)) and time.monotonic() < deadline:
        time.sleep(0.05)
        reap()
    return found


def main() -> int:
    """Kill, count, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--longest", type=float, default=3.0, help="seconds that a run lives at most, about half of it alone"
    )
    args = parser.parse_args()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    chance = random.Random(args.seed)
    target = replace(load_target("host"), threads=1)
    with tempfile.TemporaryDirectory(prefix="kill-tuning-") as work:
        tempfile.tempdir = str(Path(work) / "tmp")
        os.mkdir(tempfile.tempdir)
        root = Path(work) / "logs"
        folder = store.folder_for(root, target)
        running, over, damaged, unreadable = [start(target, root, ENDLESS, 0)], [], 0, 0
        survivors: list[str] = []
        for number in range(1, args.kills + 1):
            running.append(start(target, root, ENDLESS, 10 * number))
            time.sleep(chance.uniform(0, args.longest / 2))
            for run in running:
                run.listen()
            victim = running.pop(0)
            os.kill(victim.process, signal.SIGKILL)
            os.waitpid(victim.process, 0)
            victim.listen()
            survivors += left_running({victim.process})
            over.append(victim)
            try:
                damaged = len(store.read(folder).damaged)
            except Exception as error:
                unreadable += 1
                sys.stderr.write(f"after {number} kills: {error}\n")
        os.kill(running[0].process, signal.SIGKILL)
        os.waitpid(running[0].process, 0)
        running[0].listen()
        over.append(running[0])
        known = len(store.read(folder).records)
        last = start(target, root, known + 4, 1)
        finished = os.waitpid(last.process, 0)[1] == 0
        last.listen(to_the_end=True)
        survivors += left_running({run.process for run in (*over, last)})
        on_record = {(record.kernel, record.ns) for record in store.read(folder).records}
        said = set().union(*(run.records() for run in (*over, last)))
        result = {
            "kills": args.kills + 1,
            "said to be on record": len(said),
            "lost": len(said - on_record),
            "on record": len(store.read(folder).records),
            "damaged lines": damaged,
            "unreadable": unreadable,
            "log sound": log_verify.verify(folder).sound,
            "processes left": len(survivors),
            "files left": len(os.listdir(tempfile.tempdir)),
            "last run finished": finished,
        }
    sys.stderr.write("".join(f"left running: {line}\n" for line in survivors))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    good = finished and not (result["lost"] or unreadable or survivors or result["files left"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
