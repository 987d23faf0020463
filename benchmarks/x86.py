"""tvm-deploy against LiteRT, ONNX Runtime and OpenVINO on this CPU: side by side, in one process, in rounds.

    python benchmarks/x86.py [--models NAME_OR_PATH ...] [--trials N] [--threads N] [--rounds N] [--json]

All contenders must agree on the outputs before anything is timed. The table goes to stdout; with --json it goes to
stderr, and stdout is one line with one JSON object: the medians, every round's median, the ratios to the best peer and
their geometric means (below 1: faster than the best of the others).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peers
import rounds
from peers import PEERS, Array, Peer, Prepared, Unavailable
from rich.console import Console
from rich.table import Table

from deploy.errors import DeployError, InputError

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT.parent / "shared" / "models" / "mlperf-tiny"
DIGITS = ROOT / "artifacts" / "digits" / "digits.onnx"
OWN = ("untuned", "tuned")
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelResult:
    """Round medians in µs by contender, and why the other contenders are missing."""

    model: str
    rounds_us: Mapping[str, Sequence[float]]
    missing: Mapping[str, str]
    dtype: str = "float32"

    @property
    def median_us(self) -> dict[str, float]:
        """The median over the rounds, by contender."""
        return {name: rounds.middle(values) for name, values in self.rounds_us.items()}

    @property
    def best_peer(self) -> str | None:
        """The fastest of the others, or None without any."""
        others = {name: value for name, value in self.median_us.items() if name not in OWN}
        return min(others, key=others.__getitem__, default=None)

    def ratio(self, name: str) -> float | None:
        """The median of `name` as a multiple of the best peer's."""
        others = [value for other, value in self.median_us.items() if other not in OWN]
        return rounds.ratio_to_best(self.median_us[name], others)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; exit code 0, 1 for a wrong output, 2 for wrong arguments, 3 for a failed tool."""
    options = _parser().parse_args(arguments)
    log = Console(stderr=True, highlight=False)
    try:
        results = []
        for path in model_paths(options.models):
            log.print(f"{path.stem}: compiling", markup=False)
            results.append(run_model(path, options))
    except WrongOutput as error:
        log.print(f"error: {error}", markup=False)
        return 1
    except DeployError as error:
        log.print(f"error: {error}", markup=False)
        return error.exit_code
    summary = as_json(results, options)
    console = log if options.json else Console(highlight=False)
    console.print(table(results))
    for line in closing_lines(results, summary):
        console.print(line, markup=False)
    if options.json:
        print(json.dumps(summary))
    return 0


class WrongOutput(Exception):
    """A contender computes something else than the model's framework. Fix: that contender; timing it means nothing."""


def model_paths(names: Sequence[str]) -> list[Path]:
    """The files of models given by path or by name, or the default ones. Raises InputError."""
    if not names:
        tiny = [path for kind in ("f32", "int8") for path in sorted(TINY.glob(f"*_{kind}.tflite"))]
        found = tiny or [path for path in (DIGITS,) if path.exists()]
        if not found:
            raise InputError('there is no model to compare with; give one (--models model.onnx) or run "make demo"')
        return found
    paths = []
    for name in names:
        path = next((path for path in (Path(name), TINY / f"{name}.tflite") if path.is_file()), None)
        if path is None:
            known = ", ".join(sorted(path.stem for path in TINY.glob("*.tflite"))) or "none here"
            raise InputError(f'no model "{name}"; give the path of an .onnx or .tflite file, or one of: {known}')
        paths.append(path)
    return paths


def run_model(path: Path, options: argparse.Namespace) -> ModelResult:
    """Compile, load, verify and time one model. Raises WrongOutput or DeployError."""
    from deploy import model
    from deploy.reference import Reference, sample_inputs

    source = model.load(path)
    inputs = sample_inputs(source, 1, seed=0)[0]
    reference = Reference(source).run(inputs)
    with tempfile.TemporaryDirectory() as folder:
        artifacts = compile_both(source, Path(folder), options)
        with _pinned(options.threads):
            ready = {name: _load_own(artifact, inputs) for name, artifact in artifacts.items()}
            others, missing = prepare_peers(PEERS, path, inputs, options.threads)
            ready = others | ready
            verify(path.stem, ready, reference)
            calls = {name: prepared.run for name, prepared in ready.items()}
            times = rounds.time_in_rounds(calls, options.rounds, options.turn_ms / 1e3)
    return ModelResult(path.stem, times, missing, source.inputs[0].dtype)


def compile_both(source: Any, folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Artifact folders of the model with default and with tuned schedules, by contender. Raises DeployError."""
    from deploy import compile, pipeline
    from deploy.targets import load_target

    target = replace(load_target(options.target), threads=options.threads)
    untuned = compile.build(source, target, folder / "untuned")  # without schedules from records of earlier tuning
    tuned = pipeline.build(source, target, out=folder / "tuned", trials=options.trials)
    return {"untuned": untuned.path, "tuned": tuned.path}


def prepare_peers(
    candidates: Sequence[Peer], path: Path, inputs: Sequence[Array], threads: int
) -> tuple[dict[str, Prepared], dict[str, str]]:
    """The peers that can take part, and the reasons of those that cannot, both by name."""
    ready, missing = {}, {}
    for peer in candidates:
        try:
            ready[peer.name] = peer.prepare(path, inputs, threads)
        except Unavailable as reason:
            missing[peer.name] = str(reason)
    return ready, missing


def verify(model: str, ready: Mapping[str, Prepared], reference: Sequence[Array]) -> None:
    """Run each contender once; raises WrongOutput for the first that disagrees with the reference."""
    for name, prepared in ready.items():
        prepared.run()
        steps = 0 if name in OWN else peers.INTEGER_STEPS
        if wrong := peers.disagreement(prepared.outputs(), reference, steps):
            raise WrongOutput(f"{name} computes {model} wrongly: {wrong}")


def as_json(results: Sequence[ModelResult], options: argparse.Namespace) -> dict[str, Any]:
    """Everything that was found out, as plain data."""
    versions = {peer.name: peers.version(peer.package) for peer in PEERS}
    versions |= {name: peers.version(name) for name in ("tvm-deploy", "apache-tvm", "tflite2onnx")}
    return {
        "benchmark": "x86",
        "schema_version": SCHEMA_VERSION,
        "cpu": cpu_name(),
        "target": options.target,
        "threads": options.threads,
        "trials": options.trials,
        "rounds": options.rounds,
        "versions": versions,
        "models": {result.model: _model_as_json(result) for result in results},
        "geomean": _geomeans(results),
        "geomean_by_type": {
            dtype: _geomeans([r for r in results if r.dtype == dtype]) for dtype in sorted({r.dtype for r in results})
        },
    }


def _geomeans(results: Sequence[ModelResult]) -> dict[str, float | None]:
    return {own: rounds.geomean(result.ratio(own) for result in results) for own in OWN}


def table(results: Sequence[ModelResult]) -> Table:
    """Medians in µs, a row for each model, and the ratios to the best peer."""
    names = [*(peer.name for peer in PEERS), *OWN]
    shown = Table(title="Median time of one inference, µs")
    shown.add_column("Model")
    for title in (*names, *(f"{own} / best" for own in OWN)):
        shown.add_column(title, justify="right")
    for result in results:
        times = [f"{result.median_us[name]:.2f}" if name in result.median_us else "n/a" for name in names]
        shown.add_row(result.model, *times, *(_ratio_words(result.ratio(own)) for own in OWN))
    return shown


def closing_lines(results: Sequence[ModelResult], summary: Mapping[str, Any]) -> list[str]:
    """What stands below the table: the geometric means, who is missing and why, where and with what it was run."""
    groups = summary["geomean_by_type"]
    means = "; ".join(
        f"{dtype}: " + ", ".join(f"{own} {_ratio_words(mean)}" for own, mean in group.items())
        for dtype, group in groups.items()
    )
    missing = [f"{r.model}: {name} n/a: {reason}" for r in results for name, reason in r.missing.items()]
    versions = ", ".join(f"{name} {number}" for name, number in summary["versions"].items() if number)
    threads = "1 thread" if summary["threads"] == 1 else f"{summary['threads']} threads"
    return [
        f"Geometric mean of the ratio to the best peer: {means}",
        *missing,
        f"{summary['cpu']}; {threads}; {summary['rounds']} rounds; {versions}",
    ]


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """What this CPU calls itself, and what LLVM calls it."""
    from deploy.host import detect_cpu

    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    own = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{own} ({detect_cpu()[0]})"


def _model_as_json(result: ModelResult) -> dict[str, Any]:
    return {
        "median_us": result.median_us,
        "rounds_us": {name: list(values) for name, values in result.rounds_us.items()},
        "best_peer": result.best_peer,
        "ratio": {own: result.ratio(own) for own in OWN},
        "missing": dict(result.missing),
    }


def _load_own(artifact: Path, inputs: Sequence[Array]) -> Prepared:
    from deploy import load

    placed = load(artifact).prepare(*inputs)
    return Prepared(placed.run, lambda: list(placed.outputs))


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    try:
        with rounds.pinned(threads):
            yield
    except ValueError as error:
        raise InputError(f"--threads: {error}") from None


def _ratio_words(ratio: float | None) -> str:
    return "n/a" if ratio is None else f"{ratio:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="x86.py", description="Compare tvm-deploy with LiteRT, ONNX Runtime and OpenVINO on this CPU."
    )
    parser.add_argument("--models", nargs="*", default=[], metavar="NAME_OR_PATH", help="default: the float ones found")
    parser.add_argument("--target", default="host", help="target to compile for (default: host)")
    parser.add_argument("--trials", type=_count, default=0, help="tuning trials first (default: 0, records only)")
    parser.add_argument("--threads", type=_positive, default=1, help="threads of every contender (default: 1)")
    parser.add_argument("--rounds", type=_positive, default=31, help="turns of each contender (default: 31)")
    parser.add_argument("--turn-ms", type=_positive, default=20, help="length of a turn in ms (default: 20)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, the table on stderr")
    return parser


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
