"""What the tests of tuning logs share: lines made up without TVM, and folders that hold them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from deploy.tuning import store
from deploy.tuning.log_lines import Kernel, Line, Proposal, Record, pack

TVM = version("apache-tvm")


def kernel_id(number: int) -> str:
    return f"{number:024x}"


def trace(factor: int) -> str:
    """A packed trace; each factor gives another one."""
    return pack(
        [
            [
                ["GetSBlock", [], ["C", "main"], ["b0"]],
                ["GetLoops", ["b0"], [], ["l1", "l2"]],
                ["Split", ["l2", "None", factor], [True, False], ["l3", "l4"]],
                ["Vectorize", ["l4"], [], []],
            ],
            [],
        ]
    )


def kernel(number: int, name: str = "fused_add") -> Kernel:
    return Kernel(kernel_id(number), name, f"float32[1,{number}] float32[{number}]")


def record(number: int, factor: int, *ns: float, trial: int = 1, failed: str = "crashed") -> Record:
    return Record(kernel_id(number), trace(factor), ns, "" if ns else failed, trial)


def proposal(number: int, factor: int, source: str = "other") -> Proposal:
    return Proposal(kernel_id(number), trace(factor), source)


def folder(root: Path, target: str = "board", fingerprint: str = "abc123", tvm: str = TVM) -> Path:
    return root / target / f"{fingerprint}-tvm{tvm}"


def fill(place: Path, *lines: Line) -> Path:
    """Add lines to the log in a folder, by default two kernels with three records each."""
    default = (
        kernel(1), record(1, 8, 3000, trial=1), record(1, 4, 1000, 9000, 1200, trial=2), record(1, 2, trial=3),
        kernel(2, "softmax"), record(2, 8, 500, trial=1), record(2, 4, 700, trial=2), record(2, 2, trial=3),
    )  # fmt: skip
    file = store.LogFile(place)
    file.append(lines or default)
    file.sync()
    return place


def damage(place: Path, number: int, text: str = "half a l") -> None:
    """Put something else in the place of a line, counted from 1."""
    path = place / store.LOG
    lines = path.read_text().splitlines()
    lines[number - 1] = text
    path.write_text("".join(f"{line}\n" for line in lines))
