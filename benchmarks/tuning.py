"""The tuning engine against stock MetaSchedule: the same candidates built and measured, whole runs, and memory.

    python benchmarks/tuning.py [--model NAME_OR_PATH] [--count N] [--rounds N] [--loaded] [--json]
    python benchmarks/tuning.py --end-to-end [--trials N] [--seeds N] [--to-quality] [--loaded] [--json]
    python benchmarks/tuning.py --memory N [--json]

By itself: candidates a minute of both, in turns, on schedules of our kernels and on schedules of TVM's own tasks.
--end-to-end: whole runs of both, each in a process of its own: wall time, and the time of one inference of what they
compile, measured side by side. --to-quality: how long ours takes to be as fast as what stock found.
--memory: the memory of all processes of a run of N candidates. --loaded: with every core kept busy.
The table goes to stdout; with --json it goes to stderr, and stdout is one line with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import rounds
from rich.console import Console
from rich.table import Table
from x86 import cpu_name, model_paths

from deploy.errors import DeployError

SCHEMA_VERSION = 1
BATCH = 16  # candidates that a tuning run of ours measures at a time
SPIN = "while True: pass"
STEPS = (0, 16, 32, 64, 128, 256, 512, 1024)  # trials after which ours is compared with stock's result
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Rate:
    """How fast each contender built and measured the same candidates, in candidates a minute, round by round."""

    kind: str
    candidates: int
    per_minute: Mapping[str, Sequence[float]]
    cpu_s: Mapping[str, Sequence[float]]
    failed: Mapping[str, int]
    agreement: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as many as stock ours managed, or None where stock managed none in half of the rounds."""
        stock = rounds.middle(self.per_minute["stock"])
        return rounds.middle(self.per_minute["ours"]) / stock if stock else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; exit code 0, 2 for wrong arguments, 3 for a failed tool."""
    options = _parser().parse_args(arguments)
    log = Console(stderr=True, highlight=False)
    try:
        if options.part:
            print(json.dumps(PARTS[options.part](options)))
            return 0
        with busy() if options.loaded else nullcontext():
            summary, shown = _chosen(options)(options, log)
    except DeployError as error:
        log.print(f"error: {error}", markup=False)
        return error.exit_code
    console = log if options.json else Console(highlight=False)
    console.print(shown)
    console.print(f"{cpu_name()}; {os.cpu_count()} cores{', all kept busy' if options.loaded else ''}", markup=False)
    if options.json:
        facts = {"benchmark": "tuning", "schema_version": SCHEMA_VERSION, "cpu": cpu_name(), "loaded": options.loaded}
        print(json.dumps(facts | {"load": os.getloadavg()[0]} | summary))
    return 0


def _chosen(options: argparse.Namespace) -> Any:
    if options.memory:
        return compare_memory
    return compare_runs if options.end_to_end or options.to_quality else compare_rates


@contextmanager
def busy() -> Iterator[None]:
    """Keep every core busy: one endless loop for each."""
    cores = len(os.sched_getaffinity(0))
    spinning = [subprocess.Popen([sys.executable, "-S", "-c", SPIN]) for _ in range(cores)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


# --- candidates a minute ---


def compare_rates(options: argparse.Namespace, log: Console) -> tuple[dict[str, Any], Table]:
    """The same candidates built and measured by both, in turns."""
    target, results = _target(options), []
    for kind, schedules in candidates(options).items():
        log.print(f"{len(schedules)} candidates: {kind}", markup=False)
        results.append(rate(kind, schedules, target, options))
        log.print(json.dumps(vars(results[-1])), markup=False)
    shown = Table(title="Candidates built and measured a minute; CPU seconds and failures: stock, ours")
    for title in ("Schedules of", "n", "stock", "ours", "ratio", "CPU s each", "failed", "same order"):
        shown.add_column(title, justify="left" if title == "Schedules of" else "right")
    for one in results:
        medians = {name: rounds.middle(values) for name, values in one.per_minute.items()}
        agreement = "n/a" if one.agreement is None else f"{100 * one.agreement:.0f} %"
        failed = f"{one.failed['stock']}, {one.failed['ours']}"
        ratio = "n/a" if one.ratio is None else f"{one.ratio:.1f}"
        speeds = (f"{medians['stock']:.0f}", f"{medians['ours']:.0f}")
        spent = ", ".join(f"{rounds.middle(one.cpu_s[name]):.2f}" for name in ("stock", "ours"))
        shown.add_row(one.kind, str(one.candidates), *speeds, ratio, spent, failed, agreement)
    return {"rates": [vars(one) | {"ratio": one.ratio} for one in results]}, shown


def candidates(options: argparse.Namespace) -> dict[str, list[Any]]:
    """Schedules by where they come from: of our packed kernels, and of TVM's own tasks out of its own space."""
    import stock
    from tvm.s_tir import Schedule

    from deploy import model
    from deploy.compile import lower_for
    from deploy.kernels.for_target import machine_for
    from deploy.relax_import import import_model
    from deploy.tuning.space import has_list, listed_schedules
    from deploy.tuning.task import tasks

    source, target = model.load(model_paths([options.model])[0]), _target(options)
    machine, chance = machine_for(target), random.Random(0)
    listed = [t for t in tasks(lower_for(source, target)) if has_list(t.func, machine)]
    each = max(1, -(-options.count // len(listed)))
    own = [schedules for t in listed if (schedules := listed_schedules(Schedule(t.mod), machine))]
    chosen = [one for schedules in own for one in chance.sample(schedules, min(each, len(schedules)))]
    others = stock.sampled(import_model(source).mod, target, machine, each, seed=0)
    chance.shuffle(chosen)
    chance.shuffle(others)
    return {"our kernels": chosen[: options.count], "TVM's kernels": others[: options.count]}


def rate(kind: str, schedules: Sequence[Any], target: Any, options: argparse.Namespace) -> Rate:
    """Let both build and measure the same schedules, in turns."""
    import stock

    found: dict[str, list[stock.Timed]] = {"stock": [], "ours": []}
    runs = {"stock": partial(stock.build_and_run, timeout_s=options.stock_timeout), "ours": build_and_run}
    for number in range(options.rounds):
        for name in rounds.turn_order(list(found), number):
            found[name].append(runs[name](schedules, target))
    speeds = {name: [one.per_minute for one in timed] for name, timed in found.items()}
    spent = {name: [one.cpu_s / len(schedules) for one in timed] for name, timed in found.items()}
    failed = {name: max(one.failed for one in timed) for name, timed in found.items()}
    same = agreement(found["stock"][-1].seconds, found["ours"][-1].seconds)
    return Rate(kind, len(schedules), speeds, spent, failed, same)


def build_and_run(schedules: Sequence[Any], target: Any) -> Any:
    """Our builder and runner, in batches of the size that a tuning run has."""
    import stock

    from deploy.tuning.guard import temporary_folder
    from deploy.tuning.runner import Bench

    started, used_s, seconds = time.perf_counter(), stock.processor_s(), []
    with temporary_folder() as folder:
        bench = Bench.open(target, folder)
        for first in range(0, len(schedules), BATCH):
            funcs = [one.mod["main"] for one in schedules[first : first + BATCH]]
            seconds += [rounds.middle(m.seconds) if m.seconds else None for m in bench.measure(funcs)]
    return stock.Timed(tuple(seconds), time.perf_counter() - started, stock.processor_s() - used_s)


def agreement(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """The share of pairs that both put in the same order, among pairs that differ by a tenth or more in the first."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    told = [(one, other) for i, one in enumerate(pairs) for other in pairs[:i] if abs(one[0] / other[0] - 1) >= 0.1]
    same = sum((one[0] < other[0]) == (one[1] < other[1]) for one, other in told)
    return same / len(told) if told else None


# --- whole runs ---


def compare_runs(options: argparse.Namespace, log: Console) -> tuple[dict[str, Any], Table]:
    """Whole runs of both with as many trials, seed by seed; then how long ours takes to be as good as stock."""
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(_one_seed(options, seed, Path(folder), log))
    shown = Table(title=f"Whole runs of {options.trials} trials of {options.model}")
    for title in ("Seed", "stock s", "ours s", "stock / ours", "stock µs", "ours µs", "ours as good after"):
        shown.add_column(title, justify="right")
    for seed, run in enumerate(runs):
        wall, inference, quality = run["wall_s"], run["inference_us"], run["to_quality_s"]
        row = [f"{wall['stock']:.1f}", f"{wall['ours']:.1f}", f"{wall['stock'] / wall['ours']:.1f}"]
        row += [f"{inference['stock']:.1f}", f"{inference['ours']:.1f}"]
        shown.add_row(str(seed), *row, "n/a" if quality is None else f"{quality:.1f} s")
    speed = rounds.middle([run["wall_s"]["stock"] / run["wall_s"]["ours"] for run in runs])
    latency = {name: rounds.middle([run["inference_us"][name] for run in runs]) for name in ("stock", "ours")}
    return {"trials": options.trials, "runs": runs, "speedup": speed, "inference_us": latency}, shown


def _one_seed(options: argparse.Namespace, seed: int, folder: Path, log: Console) -> dict[str, Any]:
    wall = {}
    for name in rounds.turn_order(["stock", "ours"], seed):
        log.print(f"seed {seed}: {name}", markup=False)
        (folder / name).mkdir()
        wall[name] = _part(name, options, folder / name, seed)["seconds"]
    libraries = {"stock": folder / "stock", "ours": folder / "ours" / "model"}
    inference, reached = _inference(libraries, options), None
    if options.to_quality:
        (folder / "steps").mkdir()
        reached = _to_quality(options, seed, folder)
    return {"wall_s": wall, "inference_us": inference, "to_quality_s": reached}


def _to_quality(options: argparse.Namespace, seed: int, folder: Path) -> float | None:
    """Seconds that ours has tuned when what it compiles is as fast as stock's, or None if it never is."""
    spent = 0.0
    for trials in STEPS:
        out = folder / "steps"
        stepped = argparse.Namespace(**(vars(options) | {"trials": trials}))
        spent += _part("ours", stepped, out, seed)["seconds"]
        found = _inference({"stock": folder / "stock", "ours": out / "model"}, options)
        if found["ours"] <= found["stock"]:
            return spent
    return None


def _inference(libraries: Mapping[str, Path], options: argparse.Namespace) -> dict[str, float]:
    """Median µs of one inference of each compiled model, side by side on one core."""
    import stock

    from deploy import load, model
    from deploy.reference import sample_inputs

    inputs = sample_inputs(model.load(model_paths([options.model])[0]), 1, seed=0)[0]
    own = load(libraries["ours"]).prepare(*inputs)
    calls = {"stock": stock.load(libraries["stock"] / "stock.so", inputs), "ours": own.run}
    with rounds.pinned(1):
        times = rounds.time_in_rounds(calls, 15, 0.02)
    return {name: rounds.middle(values) for name, values in times.items()}


def _part(name: str, options: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """What this program says when it runs one contender in a process of its own."""
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder), "--seed", str(seed)]
    command += ["--trials", str(options.trials), "--model", options.model, "--target", options.target]
    command += ["--stock-timeout", str(options.stock_timeout)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeployError(f"{name} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_stock(options: argparse.Namespace) -> dict[str, Any]:
    """Stock's whole run; seconds from the imported model to the library."""
    import stock

    from deploy import model
    from deploy.relax_import import import_model

    mod = import_model(model.load(model_paths([options.model])[0])).mod
    started = time.perf_counter()
    plan = stock.Plan(options.trials, options.seed, options.stock_timeout)
    stock.tune(mod, _target(options), plan, options.folder)
    return {"seconds": time.perf_counter() - started}


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """Our whole run; seconds from the loaded model to the library, and the memory of all processes on the way."""
    from deploy import model
    from deploy.compile import build, lower_for
    from deploy.progress import Silent
    from deploy.tuning.log import TuningLog
    from deploy.tuning.search import tune
    from deploy.tuning.task import tasks

    source, target = model.load(model_paths([options.model])[0]), _target(options)
    log = TuningLog.open(target, options.folder / "logs")
    with Memory() as memory:

        class Noting(Silent):
            def update(self, event: Any) -> None:
                memory.done = event.done

        started = time.perf_counter()
        kernels = tasks(lower_for(source, target))
        outcome = tune(kernels, target, log, options.trials, Noting(), options.seed)
        log = TuningLog.read(target, [options.folder / "logs"])
        build(source, target, options.folder / "model", log)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "trials": outcome.trials, "failures": outcome.failures, "memory": memory.samples}


PARTS = {"stock": run_stock, "ours": run_ours}


# --- memory ---


class Memory:
    """Samples, while it is entered, of the memory of this process and all below it: (candidates done, MiB)."""

    def __init__(self, every_s: float = 0.5) -> None:
        self.samples: list[tuple[int, float]] = []
        self.done = 0
        self._every_s, self._stop = every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.samples.append((self.done, sum(map(own_bytes, family(os.getpid()))) / 2**20))


def family(root: int) -> list[int]:
    """A process and all that descend from it."""
    found = [root]
    for pid in found:
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:
                continue
    return found


def own_bytes(pid: int) -> int:
    """A process's share of the memory that is in use: pages that several have count for each in part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def compare_memory(options: argparse.Namespace, log: Console) -> tuple[dict[str, Any], Table]:
    """The memory of all processes of one long run, by how much of it was done."""
    log.print(f"{options.memory} candidates", markup=False)
    with tempfile.TemporaryDirectory() as folder:
        stepped = argparse.Namespace(**(vars(options) | {"trials": options.memory}))
        found = _part("ours", stepped, Path(folder), 0)
    shown = Table(title=f"Memory of all processes of a run of {found['trials']} candidates")
    for title in ("Candidates", "median MiB", "most MiB"):
        shown.add_column(title, justify="right")
    tenth = max(1, found["trials"] // 10)
    for part in range(10):
        taken = [mib for done, mib in found["memory"] if part * tenth < done <= (part + 1) * tenth]
        if taken:
            shown.add_row(f"{part * tenth}..{(part + 1) * tenth}", f"{rounds.middle(taken):.0f}", f"{max(taken):.0f}")
    return {"memory": found}, shown


def _target(options: argparse.Namespace) -> Any:
    from deploy.targets import load_target

    return replace(load_target(options.target), threads=1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tuning.py", description="Compare the tuning engine with stock MetaSchedule.")
    parser.add_argument("--model", default="ic_resnet8_f32", metavar="NAME_OR_PATH")
    parser.add_argument("--target", default="host", help="target to tune for (default: host)")
    parser.add_argument("--count", type=int, default=64, help="candidates of each kind (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: 3)")
    parser.add_argument("--trials", type=int, default=64, help="trials of whole runs (default: 64)")
    parser.add_argument("--seeds", type=int, default=1, help="whole runs of each contender (default: 1)")
    parser.add_argument("--end-to-end", action="store_true", help="compare whole runs")
    parser.add_argument("--to-quality", action="store_true", help="whole runs, and when ours is as good as stock's")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="memory over a run of N candidates")
    parser.add_argument(
        "--stock-timeout", type=float, default=30.0, metavar="S",
        help="seconds for a candidate of stock's, its worker's start included (default: stock's own 30)",
    )  # fmt: skip
    parser.add_argument("--loaded", action="store_true", help="keep every core busy meanwhile")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, the table on stderr")
    for hidden, kind in (("--part", str), ("--folder", Path), ("--seed", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
