"""Boards over RPC, at a real tracker on this machine: outputs of emulated boards, and tuning over several, with faults.

    python benchmarks/rpc_boards.py outputs [--models NAME ...] [--inputs N]   # two emulated aarch64 boards
    python benchmarks/rpc_boards.py pace [--candidates N] [--delay S]          # two boards against one
    python benchmarks/rpc_boards.py faults [--faults N] [--trials N] [--delay S] [--boards N]

`outputs` compares what models give on boards with the framework's reference and this machine: integers byte for byte,
floats to 1e-5; it needs benchmarks/arm64_userland.py. In `pace` and `faults` the boards are this machine, and their
programs are started after a fixed delay, which stands for the time that a board takes. `faults` tunes twice, once
without and once with faults, of these kinds, at random times: a server is killed, a link is cut, reset, or hangs for
two seconds, answers are garbled, a board reboots (its server is killed, and it is not there for two seconds). stdout is
one JSON object. Exit code 1 where a figure is not reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import arm64_userland
import rpc_farm
import ssh_boards
from rpc_farm import KEY, ROOT, Link, Program

from deploy import pipeline
from deploy.reference import Reference, sample_inputs
from deploy.target import Target
from deploy.target_parts import DeviceSpec
from deploy.targets import load_target
from deploy.tuning import store

KINDS = ("kill", "cut", "reset", "hang", "garble", "reboot")
DOWN_S = 2.0
MOST_TIME, LEAST_PACE = 1.5, 1.7


def with_boards(target: Target, tracker: Program) -> Target:
    """A target whose device is the boards of a tracker."""
    options = (("tracker", str(tracker.place)), ("key", KEY), ("timeout", 5.0))
    return replace(target, device=DeviceSpec("rpc", options))


def delaying(folder: Path, seconds: float) -> Path:
    """A program that starts another one after a while."""
    script = folder / "delay"
    script.write_text(f'#!/bin/sh\nsleep {seconds}\nexec "$@"\n')
    script.chmod(0o755)
    return script


def outputs(options: argparse.Namespace) -> tuple[Any, bool]:
    """Models on emulated boards."""
    if why := arm64_userland.missing():
        raise SystemExit(why)
    names = options.models or [path.name for path in sorted(ssh_boards.TINY.glob("*.tflite"))]
    found = []
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as place:
        tracker = stack.enter_context(rpc_farm.tracker())
        for _ in range(2):
            command = arm64_userland.command("-m", "deploy.cli")
            more = ("--tracker", str(tracker.place), "--key", KEY, "--run-with", arm64_userland.QEMU)
            stack.enter_context(rpc_farm.server(*more, command=command))
        rpc_farm.wait_for_boards(tracker.place, 2)
        target, host = with_boards(load_target("aarch64"), tracker), load_target("host")
        for name in names:
            source = pipeline.load_model(ssh_boards.TINY / name)
            inputs = sample_inputs(source, options.inputs, 1)
            expected = [Reference(source, host.rounding).run(sample) for sample in inputs]
            here, _ = ssh_boards.outputs_of(source, host, inputs, Path(place) / f"{name}-host")
            there, size = ssh_boards.outputs_of(source, target, inputs, Path(place) / name)
            integers = all(spec.dtype in ("int8", "uint8", "int16") for spec in source.outputs)
            gaps = ssh_boards.difference(there, here), ssh_boards.difference(there, expected)
            found.append(ssh_boards.Row(source.name, target.name, integers, *gaps, size, len(source.outputs)))
            sys.stderr.write(f"{found[-1]}\n")
    return [{**asdict(row), "passed": row.passed} for row in found], all(row.passed for row in found)


def pace(options: argparse.Namespace) -> tuple[Any, bool]:
    """Candidates a minute with one board and with two."""
    from tvm import te

    from deploy.tuning.board_runner import BoardBench

    def product(size: int) -> Any:
        a, b = te.placeholder((size, size), name="a"), te.placeholder((size, size), name="b")
        k = te.reduce_axis((0, size), "k")
        return te.create_prim_func([a, b, te.compute((size, size), lambda i, j: te.sum(a[i, k] * b[k, j], axis=[k]))])

    funcs = [product(8 + number) for number in range(options.candidates)]
    found = {}
    for count in (1, 2):
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as place:
            tracker = stack.enter_context(rpc_farm.tracker())
            delay = delaying(Path(place), options.delay)
            for _ in range(count):
                more = ("--tracker", str(tracker.place), "--key", KEY, "--run-with", delay)
                stack.enter_context(rpc_farm.server(*more))
            rpc_farm.wait_for_boards(tracker.place, count)
            bench = BoardBench.open(with_boards(load_target("host"), tracker), Path(place))
            started = time.monotonic()
            good = sum(bool(measured.seconds) for measured in bench.measure(funcs))
            found[count] = round(60 * good / (time.monotonic() - started), 1)
    ratio = found[2] / found[1]
    return {"candidates_a_minute": found, "ratio": round(ratio, 2)}, ratio >= LEAST_PACE


class Fault:
    """A board behind a link, and what can go wrong with it."""

    def __init__(self, server: Program, link: Link) -> None:
        self.server, self.link = server, link

    def happen(self, kind: str) -> None:
        """Let it go wrong; where it does for a while, until it is over."""
        if kind in ("cut", "reset"):
            self.link.end(kind)
        if kind in ("kill", "reboot"):
            with contextlib.suppress(IndexError, ProcessLookupError):
                self.server.kill_server()
        if kind in ("hang", "garble", "reboot"):
            self.link.mode = "refuse" if kind == "reboot" else kind
            if kind == "reboot":
                self.link.end("cut")
            time.sleep(DOWN_S)
            self.link.end("cut")
            self.link.mode = "pass"


@contextlib.contextmanager
def lab(options: argparse.Namespace, folder: Path) -> Iterator[tuple[Program, list[Fault]]]:
    """A tracker with boards, each behind a link."""
    delay = delaying(folder, options.delay)
    with contextlib.ExitStack() as stack:
        tracker = stack.enter_context(rpc_farm.tracker())
        boards = []
        for _ in range(options.boards):
            link = Link()
            stack.callback(link.close)
            more = ("--tracker", str(tracker.place), "--key", KEY, "--run-with", delay, "--advertise", str(link.place))
            server = stack.enter_context(rpc_farm.server(*more))
            link.to = server.place
            boards.append(Fault(server, link))
        rpc_farm.wait_for_boards(tracker.place, options.boards)
        yield tracker, boards


def tuned(options: argparse.Namespace, tracker: Program, folder: Path) -> tuple[dict[str, Any], subprocess.Popen[str]]:
    """A tuning run that was started, and where what comes of it will be."""
    boards = folder / "boards.yaml"
    boards.write_text(f"lab: {{device: {{kind: rpc, tracker: '{tracker.place}', key: {KEY}, timeout: 5 s}}}}\n")
    logs = folder / "logs"
    line = [sys.executable, "-m", "deploy.cli", "tune", str(options.model), "--target", "host", "--boards", str(boards),
            "--device", "lab", "--trials", str(options.trials), "--logs", str(logs)]  # fmt: skip
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    return {"started": time.monotonic(), "logs": logs}, process


def outcome(facts: dict[str, Any], process: subprocess.Popen[str]) -> dict[str, Any]:
    """What came of a tuning run: exit code, seconds, candidates measured and on record, why some failed."""
    out, err = process.communicate()
    seconds = time.monotonic() - facts["started"]
    measured = re.search(r"(\d+) candidates measured now", out)
    records = [record for folder in store.folders(facts["logs"]) for record in store.read(folder).records]
    return {
        "exit": process.returncode,
        "seconds": round(seconds, 1),
        "measured": int(measured[1]) if measured else 0,
        "on_record": len(records),
        "failed": Counter(record.failed for record in records if record.failed).most_common(),
        "said": err[-300:] if process.returncode else "",
    }


def faults(options: argparse.Namespace) -> tuple[Any, bool]:
    """A tuning run without faults, and one with."""
    results: dict[str, Any] = {}
    happened: Counter[str] = Counter()
    for name in ("calm", "faults"):
        with tempfile.TemporaryDirectory() as place, lab(options, Path(place)) as (tracker, boards):
            facts, process = tuned(options, tracker, Path(place))
            if name == "faults":
                gap_s = 0.8 * results["calm"]["seconds"] / options.faults
                generator, threads = random.Random(options.seed), []
                while process.poll() is None and happened.total() < options.faults:
                    kind, board = generator.choice(KINDS), generator.choice(boards)
                    threads.append(threading.Thread(target=board.happen, args=(kind,)))
                    threads[-1].start()
                    happened[kind] += 1
                    time.sleep(generator.uniform(0.5, 1.5) * gap_s)
                for thread in threads:
                    thread.join()
            results[name] = outcome(facts, process)
            sys.stderr.write(f"{name}: {results[name]}\n")
    calm, wild = results["calm"], results["faults"]
    ratio = wild["seconds"] / calm["seconds"]
    good = wild["exit"] == 0 and wild["measured"] == wild["on_record"] and ratio <= MOST_TIME
    return {**results, "happened": dict(happened), "ratio": round(ratio, 2)}, good


def main() -> int:
    """Run the program; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("outputs")
    one.add_argument("--models", nargs="+")
    one.add_argument("--inputs", type=int, default=2)
    two = actions.add_parser("pace")
    two.add_argument("--candidates", type=int, default=48)
    two.add_argument("--delay", type=float, default=1.0)
    three = actions.add_parser("faults")
    three.add_argument("--faults", type=int, default=100)
    three.add_argument("--trials", type=int, default=400)
    three.add_argument("--delay", type=float, default=0.8)
    three.add_argument("--boards", type=int, default=8)
    three.add_argument("--seed", type=int, default=1)
    three.add_argument("--model", type=Path, default=ssh_boards.TINY / "ic_resnet8_f32.tflite")
    options = parser.parse_args()
    found, good = {"outputs": outputs, "pace": pace, "faults": faults}[options.action](options)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
