"""Models on emulated Linux boards over SSH: are their outputs those of this machine, and of the source framework?

    python benchmarks/ssh_boards.py [--models NAME_OR_PATH ...] [--targets NAME ...] [--inputs N] [--tensors] [--json]

A real SSH server on this machine's loopback interface stands for the board, and qemu-user for its processor; times
there mean nothing, so none are shown. Integers have to be equal byte for byte, and floats to 1e-5; with --tensors all
tensors inside the models too, which a softmax at the end cannot hide. Exit code 1 where they are not. The table goes to
stdout; with --json it goes to stderr, and stdout is one line with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ssh_server
from rich.console import Console
from rich.table import Table

from deploy import pipeline
from deploy.device.protocol import RunPlan
from deploy.model_spec import SourceModel
from deploy.reference import Reference, expose_intermediates, sample_inputs
from deploy.target import Target
from deploy.target_parts import DeviceSpec
from deploy.targets import load_target

TINY = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
TARGETS = ("aarch64", "cortex-a76", "armv7-a", "riscv64")
EMULATORS = {**ssh_server.EMULATORS, "armv7a": ssh_server.EMULATORS["armv7-a"]}
TOLERANCE = 1e-5
PLAN = RunPlan(warmup_s=0, seconds=0.01, min_samples=1, max_samples=2, max_rounds=1)


@dataclass(frozen=True)
class Row:
    """One model on one target: the largest difference to this machine and to the framework's reference, over all
    outputs of all inputs (0 is equal byte for byte); bytes of the library; how many outputs were compared."""

    model: str
    target: str
    integers: bool
    from_host: float
    from_reference: float
    library_bytes: int
    outputs: int = 1

    @property
    def passed(self) -> bool:
        limit = 0 if self.integers else TOLERANCE
        return max(self.from_host, self.from_reference) <= limit


def difference(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> float:
    """The largest difference: of integers in steps, of floats relative to 1 or the value, whichever is larger."""
    largest = 0.0
    for a, b in zip((x for run in ours for x in run), (x for run in theirs for x in run), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
        scale = np.maximum(1.0, np.abs(b.astype(np.float64))) if a.dtype.kind == "f" else 1.0
        largest = max(largest, float(np.max(gap / scale, initial=0.0)))
    return largest


def outputs_of(source: SourceModel, target: Target, inputs: list[Any], folder: Path) -> tuple[list[Any], int]:
    """What a model gives on a target's device, and the size of its library."""
    artifact = pipeline.build(source, target, out=folder)
    found = pipeline.measure_artifact(artifact, target, pipeline.Samples(inputs), PLAN).outputs
    return list(found), artifact.library.stat().st_size


def rows(models: Sequence[SourceModel], targets: Sequence[str], count: int, folder: Path, server: Any) -> list[Row]:
    """Each model on each target."""
    found = []
    for source in models:
        inputs = sample_inputs(source, count, 1)
        host = load_target("host")
        expected = [Reference(source, host.rounding).run(sample) for sample in inputs]
        here, _ = outputs_of(source, host, inputs, folder / f"{source.name}-host")
        for name in targets:
            target = load_target(name)
            options = server.board(directory=str(folder), run_with=(EMULATORS[target.architecture],))
            target = replace(target, device=DeviceSpec("ssh", tuple(options.items())))
            there, size = outputs_of(source, target, inputs, folder / f"{source.name}-{name}")
            integers = all(spec.dtype in ("int8", "uint8", "int16") for spec in source.outputs)
            gaps = difference(there, here), difference(there, expected)
            found.append(Row(source.name, name, integers, *gaps, size, len(source.outputs)))
            sys.stderr.write(f"{found[-1]}\n")
    return found


def table(found: Sequence[Row]) -> Table:
    """The rows for people."""
    made = Table("model", "target", "tensors", "from this machine", "from the reference", "library", "")
    for row in found:
        gaps = ("equal" if gap == 0 else f"{gap:.2g}" for gap in (row.from_host, row.from_reference))
        made.add_row(
            row.model, row.target, str(row.outputs), *gaps, f"{row.library_bytes:,}", "ok" if row.passed else "WRONG"
        )
    return made


def main() -> int:
    """Run the program; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=None, help="names in the MLPerf Tiny models, or files")
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--inputs", type=int, default=4)
    parser.add_argument(
        "--tensors", action="store_true", help="compare all tensors inside the models, not only outputs"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if lacking := ssh_server.missing():
        parser.error(f"not installed: {', '.join(lacking)}")
    names = options.models or [path.name for path in sorted(TINY.glob("*.tflite"))]
    models = [pipeline.load_model(path if (path := Path(name)).exists() else TINY / name) for name in names]
    models = [expose_intermediates(source) for source in models] if options.tensors else models
    with tempfile.TemporaryDirectory(prefix="ssh-boards-") as place:
        folder = Path(place)
        server = ssh_server.Server(folder / "server").make().start()
        try:
            found = rows(models, options.targets, options.inputs, folder, server)
        finally:
            server.stop()
    Console(file=sys.stderr if options.json else sys.stdout, width=110).print(table(found))
    if options.json:
        sys.stdout.write(json.dumps([asdict(row) for row in found]) + "\n")
    return 0 if all(row.passed for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
