"""Candidates compiled elsewhere: real workers, one of which dies, and executors that break or fall silent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from tuning_support import calling, processes_about, product, this_machine, unbound

from deploy.errors import InputError, ToolError
from deploy.tuning import farm
from deploy.tuning.farm import Farm, Order, carry_out, opened
from deploy.tuning.runner import Bench
from deploy.tuning.workshop import LIBRARY, Workshop

pytestmark = pytest.mark.tvm
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return Bench.open(this_machine(), tmp_path_factory.mktemp("farm"))


@contextlib.contextmanager
def cluster(tmp_path, workers):
    """The address of a Dask scheduler, and the processes of its workers."""
    pytest.importorskip("distributed", reason="Dask's `distributed` is not installed")
    facts, env = tmp_path / "scheduler.json", {**os.environ, "PYTHONPATH": str(ROOT)}
    dask, common = [sys.executable, "-m", "dask"], ["--scheduler-file", str(facts), "--no-dashboard"]
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *common]]
    commands += [[*dask, "worker", *common, "--nthreads", "1", "--no-nanny"]] * workers
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL))
            deadline = time.monotonic() + 30
            while not facts.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
        address = json.loads(facts.read_text())["address"].replace("tcp://", "dask://")
        yield address, started[1:]
    finally:
        for one in started[::-1]:
            one.kill()
            one.wait()


def test_two_workers_one_of_which_is_killed(bench, tmp_path):
    funcs = [product(size) for size in range(8, 24)]
    with cluster(tmp_path, 2) as (address, workers), opened(address) as executor:
        executor._client.wait_for_workers(2, timeout=30)
        measuring = replace(bench, executor=executor).measure([*funcs, unbound(), calling("abort")])
        first = next(measuring)
        workers[0].kill()
        rest = list(measuring)
    assert all(one.seconds for one in [first, *rest[: len(funcs) - 1]])
    assert rest[-2].reason
    assert rest[-1].reason == "crashed: killed by SIGABRT"
    assert processes_about(str(tmp_path)) == []


def test_a_worker_finds_what_is_wrong_with_a_candidate(bench):
    with ThreadPoolExecutor(1) as pool, Farm(bench.workshop, pool, [unbound(), product(16)]) as batch:
        bad, good = batch.built(0), batch.built(1)
    assert bad.reason
    assert good.reason == ""
    assert (good.folder / LIBRARY).is_file()


def test_a_broken_executor_is_replaced_by_this_machine(bench):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.raises(Exception, match="terminated"):
            pool.submit(os._exit, 1).result()
        measured = list(replace(bench, executor=pool).measure([product(16), calling("abort")]))
    assert measured[0].seconds
    assert measured[1].reason == "crashed: killed by SIGABRT"


class Deaf(Executor):
    """Takes everything and never answers."""

    def submit(self, *_args, **_kwargs):
        return Future()


def test_an_executor_that_never_answers_is_not_waited_for(bench):
    with Farm(bench.workshop, Deaf(), [product(16), product(24)], silence_s=0.3) as batch:
        assert [batch.built(number).reason for number in (0, 1)] == ["", ""]


def test_a_linker_that_fails_here(tmp_path):
    shop = Workshop(tmp_path, this_machine(), 1, ("false",))
    with ThreadPoolExecutor(1) as pool, Farm(shop, pool, [product(16)]) as batch:
        assert "exit status 1" in batch.built(0).reason


def test_another_version_of_tvm_compiles_nothing():
    with pytest.raises(ToolError, match=r"has TVM .*, the candidates are of 0\.1"):
        carry_out(Order("", {}, "0.1"))


@pytest.mark.parametrize("address", ["", "host:8786", "dask://", "dask://host", "tcp://host:8786"])
def test_an_address_that_is_none(address):
    with pytest.raises(InputError, match="dask://host:port"), opened(address):
        pass


def test_no_scheduler_answers(monkeypatch):
    pytest.importorskip("distributed", reason="Dask's `distributed` is not installed")
    monkeypatch.setattr(farm, "CONNECT_S", 0.5)
    with pytest.raises(InputError, match="no Dask scheduler answers at dask://127"), opened("dask://127.0.0.1:9"):
        pass
