"""Candidates for Linux boards over RPC: compiled here, each as one static program, and timed on all free boards."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tvm import tirx

from deploy import shell
from deploy.device.rpc import LINGER_S, check_started, hello, pinned
from deploy.device.rpc_client import Session
from deploy.device.rpc_link import SLOWEST_LINK
from deploy.device.rpc_source import Source, source_of
from deploy.errors import DeviceError
from deploy.host import core_count
from deploy.target import Target
from deploy.toolchain import compiler, runtime_sources
from deploy.tuning.board_health import Ledger, Rules
from deploy.tuning.board_pool import Pool
from deploy.tuning.board_work import Answer, Proof, Work
from deploy.tuning.builder import Crew
from deploy.tuning.farm import Farm
from deploy.tuning.reasons import LONGEST_REASON
from deploy.tuning.runner import IDLE_S, MEMORY_BYTES, Building, Measured, decode
from deploy.tuning.task import Task
from deploy.tuning.workshop import OBJECT, SIZES, SYMBOL, Workshop

PROGRAM = "program"
LARGEST_ROUND = 64
TIMEOUT_S = 10  # of processor time
LONGEST_S = 60.0  # on the board's clock; the program ends itself before, however busy the board is
REPEAT_S, REPEATS = 0.002, 5
_COMPILE_S = 120.0


@dataclass(frozen=True)
class Program:
    """A candidate to time: the program, what it is called with after the cores, and its task's number."""

    data: bytes
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class BoardShop(Workshop):
    """Where candidates are built for boards: `linker` makes a program of an object file."""

    @classmethod
    def open(cls, target: Target, folder: Path) -> BoardShop:
        """Compile what all programs have. Raises ToolError: there is no compiler for the target, or it fails."""
        cc = compiler(target, static=True)
        shop = cls(folder, target, core_count())
        sources = {"time_kernel.c": "deploy.tuning", "board_library.c": "deploy.tuning"}
        sources |= {"pool.c": "deploy.aot"} if target.threads > 1 else {}
        flags = ["-std=gnu11", "-O2", *target.toolchain.cflags, "-w", f"-DPOOL_THREADS={target.threads}"]
        for name, package in sources.items():
            (folder / name).write_bytes(files(package).joinpath("c", name).read_bytes())
            shell.run([*cc, *flags, "-c", name], timeout_s=_COMPILE_S, cwd=folder)
        objects = [str(folder / name.replace(".c", ".o")) for name in sources]
        parts = [*objects, *runtime_sources(target), *target.toolchain.ldflags, "-lm", "-lpthread", "-s"]
        linker = (*cc, "-static", *target.toolchain.cflags, OBJECT, *parts)
        return cls(folder, target, shop.workers, linker)

    def link(self, folder: Path) -> None:
        """Link the object in a folder to a program. Raises ToolError."""
        shell.run([*self.linker, "-o", PROGRAM], timeout_s=self.link_s, cwd=folder)


@dataclass
class BoardBench:
    """Where candidates are built and timed on boards, with what is known of boards and the best time of each task."""

    shop: BoardShop
    source: Source
    ledger: Ledger = field(default_factory=Ledger)
    executor: Executor | None = None
    largest_round: int = LARGEST_ROUND
    best: dict[int, tuple[Task, float]] = field(default_factory=dict)
    proof: Proof[Program] = field(default_factory=Proof)

    @classmethod
    def open(
        cls, target: Target, folder: Path, executor: Executor | None = None, rules: Rules | None = None
    ) -> BoardBench:
        """Prepare in `folder`. Raises InputError: the device lacks something; ToolError: the compiler fails."""
        source = source_of(target)
        shop = BoardShop.open(target, folder)
        shop.prepare()
        return cls(shop, source, Ledger(rules or Rules()), executor)

    @property
    def note(self) -> str:
        """The boards in use."""
        return self.ledger.words()

    def measure(self, funcs: Sequence[tirx.PrimFunc], tasks: Sequence[Task] = ()) -> Iterator[Measured]:
        """Build scheduled kernels and time them on boards, each of the task beside it if there are any.

        Raises DeviceError: there has been no board for too long.
        """
        target = self.shop.target
        work = Work(lambda session: hello(session, target), self._timed, _lost, LONGEST_S + LINGER_S)
        # Processes are forked before there are threads, and later ones while these only wait for sockets.
        with self._batch(funcs) as batch, Pool(self.source, work, self.ledger, self.proof) as pool:
            failed: dict[int, Measured] = {}
            told = 0
            for number in range(len(funcs)):
                self._submit(batch, pool, number, failed, tasks)
                while told < number and (told in failed or pool.done(told)):
                    yield self._noted(failed.get(told) or pool.result(told), tasks[told] if tasks else None)
                    told += 1
            for number in range(told, len(funcs)):
                yield self._noted(failed.get(number) or pool.result(number), tasks[number] if tasks else None)

    def _batch(self, funcs: Sequence[tirx.PrimFunc]) -> AbstractContextManager[Building]:
        return Crew(self.shop, funcs) if self.executor is None else Farm(self.shop, self.executor, funcs)

    def _submit(
        self,
        batch: Building,
        pool: Pool[Program, Measured],
        number: int,
        failed: dict[int, Measured],
        tasks: Sequence[Task],
    ) -> None:
        """Have a candidate timed, once it is built."""
        built = batch.built(number)
        try:
            if built.reason:
                failed[number] = Measured(reason=built.reason)
                return
            best_s = self.best[id(tasks[number])][1] if tasks and id(tasks[number]) in self.best else 0.0
            limits = (TIMEOUT_S * self.shop.target.threads, IDLE_S, MEMORY_BYTES)
            sizes = json.loads((built.folder / SIZES).read_text())
            arguments = (*map(str, (*limits, REPEAT_S, REPEATS, best_s)), *sizes)
            pool.submit(number, Program((built.folder / PROGRAM).read_bytes(), arguments))
        finally:
            shutil.rmtree(built.folder, ignore_errors=True)

    def _noted(self, measured: Measured, task: Task | None) -> Measured:
        if task is not None and measured.seconds:
            known = self.best.get(id(task), (task, measured.seconds[0]))[1]
            self.best[id(task)] = (task, min(known, *measured.seconds))
        return measured

    def _timed(self, session: Session, board: dict[str, Any], program: Program) -> Answer[Measured]:
        """Time a candidate on a board; what it does wrong is a result, what the board does wrong a DeviceError."""
        session.ask({"do": "put", "name": PROGRAM}, program.data, len(program.data) / SLOWEST_LINK)
        threads = self.shop.target.threads
        cores = ",".join(map(str, pinned(board, threads) or [int(cpu) for cpu in board["cpus"]]))
        command = [f"./{PROGRAM}", "-", SYMBOL, cores, *program.arguments]
        told, _ = session.ask({"do": "run", "command": command, "limit_s": LONGEST_S}, takes_s=LONGEST_S + LINGER_S)
        conditions = told.get("conditions")
        measured = outcome(session.name, told)
        return Answer(measured, conditions if isinstance(conditions, dict) else {})


def outcome(name: str, told: dict[str, Any]) -> Measured:
    """What a board's answer says of a candidate. Raises DeviceError: it says nothing of it, or nonsense."""
    if told.get("late"):
        return Measured(reason=f"ran longer than {LONGEST_S:g} s")
    check_started(name, told)
    status = int(told["status"])
    if status == 0:
        measured = decode(str(told.get("stdout")))
        if measured.reason:
            raise DeviceError(f"{name}: {measured.reason}")
        return measured
    if status == -signal.SIGXCPU:
        return Measured(reason=f"ran longer than {TIMEOUT_S} s")
    if status == -signal.SIGALRM:
        return Measured(reason=f"hung: did nothing for {IDLE_S} s")
    if status < 0:
        return Measured(reason=f"crashed: {shell.exit_words(status)}")
    said = str(told.get("stderr") or "").strip().splitlines() or [shell.exit_words(status)]
    return Measured(reason=said[-1][:LONGEST_REASON])


def _lost(why: str) -> Measured:
    return Measured(reason=f"no board brought it back: {why}"[:LONGEST_REASON])
