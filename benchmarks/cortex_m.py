"""tvm-deploy on microcontrollers under QEMU, beside TensorFlow Lite Micro with CMSIS-NN: instructions and bytes.

    python benchmarks/cortex_m.py [--models NAME_OR_PATH ...] [--targets NAME ...] [--trials N] [--inputs N] [--json]

Instruction counts are exact and repeatable; they are not cycles. The peer's counts are constants of this program: they
were measured once, in the same emulator, with the versions that PEER names. Every output must equal that of the source
framework's reference before a row is printed. The table goes to stdout; with --json it goes to stderr, and stdout is
one line with one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rounds
from rich.console import Console
from rich.table import Table

from deploy import pipeline
from deploy.device.protocol import RunPlan
from deploy.errors import DeployError
from deploy.targets import load_target

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT.parent / "shared" / "models" / "mlperf-tiny"
MODELS = ("ic_resnet8_int8", "kws_dscnn_int8", "vww_mobilenetv1_int8", "ad_autoencoder_int8", "sww_int8")
TARGETS = (
    "cortex-m3-mps2", "cortex-m4-mps2", "cortex-m7-mps2", "cortex-m33-mps2", "cortex-m55-mps3", "rv32imc-virt",
)  # fmt: skip

# Instructions an inference and bytes of arena of TensorFlow Lite Micro 90b983c2 with its CMSIS-NN 4ab83cc3: the best
# of GCC 12 -O3, its default flags, and CMSIS-NN by clang 22 -O3, counted under QEMU 7.2; the arena with default flags.
PEER = {
    ("ic_resnet8_int8", "cortex-m4-mps2"): (29_862_776, 54_996),
    ("ic_resnet8_int8", "cortex-m7-mps2"): (29_112_835, 54_996),
    ("ic_resnet8_int8", "cortex-m55-mps3"): (4_512_439, 55_028),
    ("kws_dscnn_int8", "cortex-m4-mps2"): (7_696_805, 22_820),
    ("kws_dscnn_int8", "cortex-m7-mps2"): (7_642_560, 22_820),
    ("kws_dscnn_int8", "cortex-m55-mps3"): (1_723_975, 27_348),
    ("vww_mobilenetv1_int8", "cortex-m4-mps2"): (24_101_574, 100_708),
    ("vww_mobilenetv1_int8", "cortex-m7-mps2"): (24_025_189, 100_708),
    ("vww_mobilenetv1_int8", "cortex-m55-mps3"): (6_134_549, 100_772),
    ("ad_autoencoder_int8", "cortex-m4-mps2"): (582_237, 2_580),
    ("ad_autoencoder_int8", "cortex-m7-mps2"): (582_558, 2_580),
    ("ad_autoencoder_int8", "cortex-m55-mps3"): (63_291, 9_268),
}


@dataclass(frozen=True)
class Row:
    """One model on one core: instructions and bytes; `peer_*` are None where the peer was not measured.

    ram_bytes: inputs, outputs and the arena, which the peer's arena has in it too.
    """

    model: str
    target: str
    instructions: int
    ram_bytes: int
    arena_bytes: int
    stack_bytes: int
    weight_bytes: int
    code_bytes: int
    peer_instructions: int | None
    peer_arena_bytes: int | None

    @property
    def ratio(self) -> float | None:
        """Instructions as a multiple of the peer's."""
        return None if self.peer_instructions is None else self.instructions / self.peer_instructions


def measure(path: Path, target_name: str, inputs: int, trials: int) -> Row:
    """Build, run and verify one model. Raises DeployError, and where an output differs."""
    target, source = load_target(target_name), pipeline.load_model(path)
    samples = pipeline.samples_for(source, None)
    chosen = pipeline.Samples(samples.inputs[:inputs])
    with tempfile.TemporaryDirectory(prefix="tvm-deploy-bench-") as folder:
        artifact = pipeline.build(source, target, out=Path(folder) / "artifact", trials=trials)
        plan = RunPlan(energy_seconds=None)
        measured = pipeline.measure_artifact(artifact, target, chosen, plan)
    verified, _ = pipeline.verify_outputs(source, chosen, measured.outputs, target)
    if not verified.passed:
        raise DeployError(f"{path.stem} on {target_name} differs from {verified.reference}: {verified.tensors}")
    sizes = artifact.facts["sizes"]
    flash = sizes["flash"]
    peer = PEER.get((path.stem, target_name), (None, None))
    return Row(
        model=path.stem,
        target=target_name,
        instructions=int(np.median(measured.instructions)),
        ram_bytes=sizes["io_bytes"] + sizes["arena_bytes"],
        arena_bytes=sizes["arena_bytes"],
        stack_bytes=measured.stack_bytes or 0,
        weight_bytes=flash["weights"],
        code_bytes=sum(size for name, size in flash.items() if name != "weights"),
        peer_instructions=peer[0],
        peer_arena_bytes=peer[1],
    )


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    shown = Table(title="Instructions an inference (emulated, exact) and bytes")
    headings = (
        "model", "core", "instructions", "TFLM + CMSIS-NN", "ratio", "arena", "+ in/outputs", "its arena", "stack",
        "weights", "code",
    )  # fmt: skip
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in ("model", "core") else "right")
    for row in rows:
        peer = "" if row.peer_instructions is None else f"{row.peer_instructions:,}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        arena = "" if row.peer_arena_bytes is None else f"{row.peer_arena_bytes:,}"
        numbers = (row.arena_bytes, row.ram_bytes)
        shown.add_row(
            row.model, row.target, f"{row.instructions:,}", peer, ratio, *(f"{n:,}" for n in numbers), arena,
            *(f"{n:,}" for n in (row.stack_bytes, row.weight_bytes, row.code_bytes)),
        )  # fmt: skip
    return shown


def _rows(options: argparse.Namespace, console: Console) -> Iterator[Row]:
    for name in options.models:
        path = Path(name) if Path(name).exists() else TINY / f"{name}.tflite"
        for target in options.targets:
            try:
                yield measure(path, target, options.inputs, options.trials)
            except DeployError as error:
                console.print(f"{path.stem} on {target}: {error}", markup=False, highlight=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME_OR_PATH")
    made.add_argument("--targets", nargs="+", default=list(TARGETS), metavar="NAME")
    made.add_argument("--trials", type=int, default=0, help="candidates to tune with first (default: %(default)s)")
    made.add_argument("--inputs", type=int, default=2, help="inputs to verify with (default: %(default)s)")
    made.add_argument("--json", action="store_true")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 where every row could be measured."""
    options = parser().parse_args(arguments)
    console = Console(stderr=options.json, width=None if sys.stdout.isatty() else 160)
    rows = list(_rows(options, console))
    console.print(table(rows))
    ratios = {t: [r.ratio for r in rows if r.target == t and r.ratio is not None] for t in options.targets}
    means: dict[str, Any] = {t: rounds.geomean(found) for t, found in ratios.items() if found}
    for name, mean in means.items():
        console.print(f"{name}: geometric mean of the ratios {mean:.2f}")
    if options.json:
        print(json.dumps({"rows": [asdict(row) | {"ratio": row.ratio} for row in rows], "geometric_means": means}))
    return 0 if len(rows) == len(options.models) * len(options.targets) else 1


if __name__ == "__main__":
    sys.exit(main())
