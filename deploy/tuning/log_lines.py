"""The lines of a tuning log: what they say, how they are written and read. No files and no TVM.

Every line is a JSON object that begins with the CRC-32 of all that follows its comma, the newline left out:

```
{"crc":"5f1c2d3e","format":1,"target":"host","fingerprint":"a8a6a56c4644","tvm":"0.27.0.post1"}
{"crc":"…","kernel":"0c8e…","name":"fused_conv2d_add","arguments":"float32[1,8,8,64] float32[64]"}    for people
{"crc":"…","kernel":"0c8e…","name":"…","arguments":"…","best_of":32}           of 32 measured the best were kept
{"crc":"…","kernel":"0c8e…","trial":3,"ns":[15154.2,13419.4],"trace":"…"}        each run, in nanoseconds
{"crc":"…","kernel":"0c8e…","trial":4,"failed":"crashed: killed by SIGABRT","trace":"…"}
{"crc":"…","kernel":"0c8e…","from":"cortex-m7","trace":"…"}                      proposed, not measured
```

A line means the same wherever it stands and however often, so logs can be joined line by line. A microcontroller's
nanoseconds are its instructions, counted in an emulator, at the target's clock, one a cycle: a single number.
A trace is MetaSchedule's own, as `pack` writes it.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

FORMAT = 1
DIGITS = 6  # of a time: the runs of one candidate on a quiet machine differ in the third
LONGEST_REASON = 160
LONGEST_TRACE = 1 << 22  # bytes, unpacked: what is longer is damage or malice
# What traces begin with and are made of, so that short ones are packed well too. Part of the format.
_DICTIONARY = (
    b'["SampleComputeLocation",["b1"],[],"l1"],["ReverseComputeInline",["ComputeAt",["b1","l2"],[0,-1]],["Parallel",["Bind",'
    b'["CacheRead",["meta_schedule.parallel"]],["GetConsumers",["b1"],[],"b1"],["GetProducers",'
    b'["Annotate",["b0","\\"SSRSRS\\""],["meta_schedule.tiling_structure"]],["GetLoops",["b0"],[],"l3"],'
    b'["SamplePerfectTile",["l2"],[4,64],"v4"],["Split",["l2","v5","v6","v7","v8"],[true,false],"l4"],'
    b'["SamplePerfectTile",["l3"],[4,64],"v4"],["Split",["l3","v13","v14","v15","v16"],[true,false],"l4"],'
    b'["SamplePerfectTile",["l4"],[2,64],"v2"],["Split",["l4","v21","v22"],[true,false],"l2"],'
    b'["Reorder",["l9","l17","l10","l18","l23","l11","l19","l24","l12","l20"]],["CacheWrite",["b0",[]],[0,"global"],"b1"],'
    b'["ReverseComputeAt",["b25","l18"],[1,-1]],["Annotate",["b1",16],["meta_schedule.vectorize"]],'
    b'["SampleCategorical",[],[[0,16,64,512],[0.25,0.25,0.25,0.25]],"v1"],'
    b'["Annotate",["b1","v26"],["meta_schedule.unroll_explicit"]],["EnterPostproc"],["GetSBlock",[],["root","main"],"b1"],'
    b'["Unannotate",["b27"],["meta_schedule.parallel"]],["Unannotate",["b27"],["meta_schedule.vectorize"]],'
    b'["Unannotate",["b27"],["meta_schedule.unroll_explicit"]],["GetChildBlocks",["b27"],[],"b2"],'
    b'["GetLoops",["b28"],[],"l10"],["Fuse",["l39"],[1],"l1"],["Vectorize",["l40"]],'
    b'["Annotate",["l30",64],["pragma_auto_unroll_max_step"]],["Annotate",["l30",1],["pragma_unroll_explicit"]],'
    b'["GetLoops",["b29"],[],"l6"],["Fuse",["l46"],[1],"l1"],["Vectorize",["l47"]],["GetSBlock",[],["compute","main"],"b1"],'
    b'["GetLoops",["b48"],[],"l10"],["Tensorize",["deploy.tvm_deploy_",true],["DecomposeReduction",["b2","l34"],[],"b1"]],'
    b'["Split",["Reorder",["ComputeInline",["Vectorize",["ComputeAt",["b2","l20"],[1,-1]],["Unroll",["l19"]],'
    b'["Unroll",["l30"]],["Unroll",["l31"]],["GetLoops",["b1"],[],"l4"]],["Split",["l17","None",16],[true,false],"l2"]],'
    b'["Split",["l15","None",1],[true,false],"l2"]],[[["GetSBlock",[],["root","main"],"b1"],["GetChildBlocks",["b0"],[],"b6"],'
    b'["GetSBlock",[],["root","main"],"b1"],["GetChildBlocks",["b7"],[],"b6"],["ComputeInline",["b10"]],["ComputeInline",["b11"]]'
)
_KERNEL_ID = re.compile(r"[0-9a-f]{24}")


@dataclass(frozen=True)
class Header:
    """Whose records these are."""

    target: str
    fingerprint: str
    tvm: str


@dataclass(frozen=True)
class Kernel:
    """By which id its records know a kernel, and what people call it: fused_add, "float32[1,640] float32[640]".

    of: how many candidates were measured, where only the best of them were kept.
    """

    id: str
    name: str
    arguments: str
    of: int = 0

    def joined(self, other: Kernel) -> Kernel:
        """What two logs say of the same kernel, in the words that come first in the alphabet."""
        first = min(self, other, key=lambda kernel: (kernel.name, kernel.arguments))
        return replace(first, of=max(self.of, other.of))


@dataclass(frozen=True)
class Record:
    """A measured candidate, the `trial`th of its kernel: nanoseconds of each run, or none and why it failed.

    trace: packed.
    """

    kernel: str
    trace: str
    ns: tuple[float, ...] = ()
    failed: str = ""
    trial: int = 1

    def __post_init__(self) -> None:
        if bool(self.ns) == bool(self.failed):
            raise ValueError("a record has times or the reason why there are none")

    @property
    def time_s(self) -> float:
        """Seconds of one call: the median of the runs, one of which may have been disturbed; infinite if it failed."""
        return median(self.ns) / 1e9 if self.ns else float("inf")


@dataclass(frozen=True)
class Proposal:
    """A schedule that was good on another target, which a tuning run is to measure first."""

    kernel: str
    trace: str
    source: str


Line = Header | Kernel | Record | Proposal


def nanoseconds(seconds: float) -> float:
    """A time as it is written: in nanoseconds, rounded to what means something, a whole number where it is one."""
    rounded = float(f"{seconds * 1e9:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def pack(trace: Any) -> str:
    """A trace of MetaSchedule, as its JSON, in as few characters as can be: without the names that are just counted.

    An instruction's results are numbered on from the last one's: "l3" stands for ["l12", "l13", "l14"].
    """
    instructions, decisions = trace
    lines, number = [], 0
    for name, inputs, attributes, outputs in instructions:
        line = [name, inputs, attributes, _short(outputs, number)]
        while line[-1] == []:
            line.pop()
        lines.append(line)
        number += len(outputs)
    text = json.dumps([lines, decisions] if decisions else [lines], separators=(",", ":")).encode()
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=_DICTIONARY)
    return base64.b85encode(packer.compress(text) + packer.flush()).decode()


def _short(names: list[str], number: int) -> Any:
    kind = names[0][:1] if names else ""
    counted = bool(names) and names == _long(f"{kind}{len(names)}", number)
    return f"{kind}{len(names)}" if counted else names


def _long(names: Any, number: int) -> list[str]:
    if not isinstance(names, str):
        return list(names)
    count = int(names[1:])
    if not 0 < count <= LONGEST_TRACE:
        raise ValueError(f"{count} results of an instruction")
    return [f"{names[0]}{number + index}" for index in range(count)]


def unpack(packed: str) -> Any:
    """The trace that `pack` made short. Raises ValueError where there is none in it."""
    try:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_DICTIONARY)
        text = unpacker.decompress(base64.b85decode(packed), LONGEST_TRACE)
        if not unpacker.eof or unpacker.unused_data:
            raise ValueError("it is cut off or too long")
        lines, *decisions = json.loads(text)
        instructions: list[Any] = []
        number = 0
        for line in lines:
            padded: list[Any] = [*line, *([[]] * (4 - len(line)))]
            name, inputs, attributes, short = padded
            instructions.append([name, inputs, attributes, _long(short, number)])
            number += len(instructions[-1][3])
        chosen = decisions[0] if decisions else []
        if not all(0 <= index < len(instructions) for index, _ in chosen):  # TVM would crash
            raise ValueError("it has decisions of no instruction")
        return [instructions, chosen]
    except (ValueError, TypeError, IndexError, RecursionError, zlib.error) as error:
        raise ValueError(f"its trace cannot be read: {error}") from None


def render(line: Line) -> str:
    """A line as it stands in the file, newline and all."""
    rest = json.dumps(_fields(line), separators=(",", ":"), ensure_ascii=False)[1:]
    return f'{{"crc":"{zlib.crc32(rest.encode()):08x}",{rest}\n'


def _fields(line: Line) -> dict[str, Any]:
    if isinstance(line, Header):
        return {"format": FORMAT, "target": line.target, "fingerprint": line.fingerprint, "tvm": line.tvm}
    if isinstance(line, Kernel):
        best = {"best_of": line.of} if line.of else {}
        return {"kernel": line.id, "name": line.name, "arguments": line.arguments, **best}
    if isinstance(line, Proposal):
        return {"kernel": line.kernel, "from": line.source, "trace": line.trace}
    outcome = {"ns": list(line.ns)} if line.ns else {"failed": line.failed}
    return {"kernel": line.kernel, "trial": line.trial, **outcome, "trace": line.trace}


class NewerFormatError(ValueError):
    """A log that a newer version of this program wrote."""


def parse(text: bytes) -> Line:
    """What a line of a file, without its newline, says.

    Raises ValueError with the reason where it is damaged, NewerFormatError where it is none of this version's.
    """
    head, rest = text[:18], text[18:]
    if head[:8] != b'{"crc":"' or head[16:] != b'",':
        raise ValueError("it does not begin with a checksum")
    if head[8:16] != b"%08x" % zlib.crc32(rest):
        raise ValueError("its checksum is wrong" if rest.endswith(b"}") else "it is cut off")
    try:
        fields = json.loads(b"{" + rest)
        return next(read for key, read in _READERS.items() if key in fields)(fields)
    except NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError, binascii.Error):
        raise ValueError("it is no line of a tuning log") from None


def _header(fields: dict[str, Any]) -> Line:
    if fields["format"] != FORMAT:
        raise NewerFormatError(f"it is in format {str(fields['format'])[:20]}, and this version reads format {FORMAT}")
    return Header(_text(fields["target"]), _text(fields["fingerprint"]), _text(fields["tvm"]))


def _measured(fields: dict[str, Any]) -> Line:
    times = fields["ns"]
    if not all(type(ns) in (int, float) and 0 < ns < 1e18 for ns in times):
        raise ValueError("a time is a number of nanoseconds")
    return Record(_id(fields), _text(fields["trace"]), tuple(times), "", _number(fields["trial"]))


def _failed(fields: dict[str, Any]) -> Line:
    return Record(_id(fields), _text(fields["trace"]), (), _text(fields["failed"]), _number(fields["trial"]))


def _proposal(fields: dict[str, Any]) -> Line:
    return Proposal(_id(fields), _text(fields["trace"]), _text(fields["from"]))


def _kernel(fields: dict[str, Any]) -> Line:
    of = _number(fields["best_of"]) if "best_of" in fields else 0
    return Kernel(_id(fields), _text(fields["name"]), _text(fields["arguments"]), of)


_READERS: dict[str, Callable[[dict[str, Any]], Line]] = {
    "format": _header, "ns": _measured, "failed": _failed, "from": _proposal, "name": _kernel,
}  # fmt: skip


def _id(fields: dict[str, Any]) -> str:
    if not _KERNEL_ID.fullmatch(fields["kernel"]):
        raise ValueError("a kernel's id has 24 hex digits")
    return str(fields["kernel"])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text was expected")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a trial's number is 1 or more")
    return value
