"""Candidates compiled on other machines: any `concurrent.futures.Executor` will do, and Dask's has many machines.

What is sent is a scheduled kernel as TVM's JSON and its target; what comes back is an object file, which is linked
here, or the reason why there is none. A candidate that crashes the compiler ends a process on the other machine, not
the worker there. A worker that dies takes no candidate with it: the scheduler gives its work to another one, and what
no worker brings back is compiled here.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tvm import ir, tirx
from tvm.ir import IRModule

from deploy.errors import InputError, ToolError
from deploy.tuning.builder import Built, compile_all
from deploy.tuning.guard import temporary_folder
from deploy.tuning.reasons import told
from deploy.tuning.workshop import COMPILE_S, MEMORY_BYTES, OBJECT, SIZES, Workshop, assemble

SCHEME = "dask://"
CONNECT_S = 10
SILENCE_S = 120.0  # without any candidate coming back, before they are compiled here
ANSWERS_S = 0.2


@dataclass(frozen=True)
class Order:
    """A candidate to compile: the module that holds its scheduled kernel as TVM's JSON, TVM's target, its version."""

    module: str
    tvm: Mapping[str, Any]
    version: str


@dataclass(frozen=True)
class Parcel:
    """A compiled candidate: the object file and the sizes of its arguments, or the reason why there are none."""

    data: bytes = b""
    sizes: str = ""
    reason: str = ""


@dataclass(frozen=True)
class _Place:
    """Where an order is carried out."""

    folder: Path
    tvm: Mapping[str, Any]
    workers: int = 1
    timeout_s: float = COMPILE_S
    memory_bytes: int = MEMORY_BYTES

    def compile(self, job: tirx.PrimFunc, folder: Path) -> None:
        """Compile a scheduled kernel to an object."""
        assemble(job, self.tvm, folder)


def carry_out(order: Order) -> Parcel:
    """Compile a candidate in a process of its own; this runs on the other machine.

    Raises ToolError where TVM's version is another one there: what it reads and compiles would be something else.
    """
    own = tvm_version()
    if order.version != own:
        raise ToolError(f"this builder has TVM {own}, the candidates are of {order.version}: install the same on both")
    func = ir.load_json(order.module)["main"]
    with temporary_folder() as folder:
        (built,) = compile_all(_Place(folder, order.tvm), [func])
        if built.reason:
            return Parcel(reason=built.reason)
        return Parcel((built.folder / OBJECT).read_bytes(), (built.folder / SIZES).read_text())


def tvm_version() -> str:
    """The version of TVM."""
    return version("apache-tvm")


@contextlib.contextmanager
def opened(builders: str | Executor | None) -> Iterator[Executor | None]:
    """Who compiles candidates: for an address `dask://host:port` the workers of the Dask scheduler there.

    Raises InputError for another address, without the package `distributed`, or where no scheduler answers.
    """
    if isinstance(builders, str):
        with _dask(builders) as executor:
            yield executor
    else:
        yield builders


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    host = address.removeprefix(SCHEME)
    if not address.startswith(SCHEME) or not host.rpartition(":")[2].isdigit():
        raise InputError(f"builders are given as {SCHEME}host:port, the address of a Dask scheduler, not {address!r}")
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise InputError(f"{address} needs Dask: pip install 'tvm-deploy[cluster]'") from None
    try:
        client = Client(f"tcp://{host}", timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        wrong = f"no Dask scheduler answers at {address}: {told(error)}"
        raise InputError(f"{wrong}; start one with `dask scheduler`") from None
    with client:
        yield client.get_executor(pure=False)


class Farm:
    """A batch that is compiled by an executor; one that brings nothing back for `silence_s` is not waited for."""

    def __init__(
        self, workshop: Workshop, executor: Executor, funcs: Sequence[tirx.PrimFunc], silence_s: float = SILENCE_S
    ) -> None:
        self._workshop, self._executor, self._funcs, self._silence_s = workshop, executor, funcs, silence_s
        self._parcels: list[Future[Parcel]] = []
        self._silent_since = time.monotonic()

    def __enter__(self) -> Farm:
        own = tvm_version()
        for func in self._funcs:
            order = Order(ir.save_json(IRModule({"main": func})), dict(self._workshop.target.tvm), own)
            with contextlib.suppress(Exception):  # a broken executor takes nothing more: `built` finds it missing
                self._parcels.append(self._executor.submit(carry_out, order))
        return self

    def __exit__(self, *_: object) -> None:
        for parcel in self._parcels:
            parcel.cancel()

    def built(self, number: int) -> Built:
        """The candidate of that number, once it came back; compiled here where it does not."""
        parcel = self._parcel(number)
        if parcel is None:
            return compile_all(self._workshop, [self._funcs[number]])[0]
        folder = Path(tempfile.mkdtemp(dir=self._workshop.folder))
        if parcel.reason:
            return Built(folder, parcel.reason)
        (folder / OBJECT).write_bytes(parcel.data)
        (folder / SIZES).write_text(parcel.sizes)
        try:
            self._workshop.link(folder)
        except ToolError as error:
            return Built(folder, told(error))
        return Built(folder, "")

    def paused(self, cores: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """Nothing is built on this machine meanwhile."""
        return contextlib.nullcontext()

    def _parcel(self, number: int) -> Parcel | None:
        """What came back of a candidate, or nothing where its worker is lost or all are silent."""
        if number >= len(self._parcels):
            return None
        done = sum(one.done() for one in self._parcels)
        while not self._parcels[number].done() and time.monotonic() - self._silent_since < self._silence_s:
            time.sleep(min(ANSWERS_S, 0.01 * (number + 1)))
            if (more := sum(one.done() for one in self._parcels)) > done:
                done, self._silent_since = more, time.monotonic()
        try:
            return self._parcels[number].result(timeout=0)
        except Exception:  # whatever befell it there; here it is found out what is the candidate's fault
            return None
