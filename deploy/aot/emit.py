"""What all emitted C files share: names that are C, text that is harmless in C, and the signature of `run`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from deploy.aot.plan import Plan
from deploy.graph import Graph
from deploy.model_spec import TensorSpec, c_identifier

C_TYPES = {
    "bool": "uint8_t", "int8": "int8_t", "uint8": "uint8_t", "int16": "int16_t", "uint16": "uint16_t",
    "int32": "int32_t", "uint32": "uint32_t", "int64": "int64_t", "uint64": "uint64_t",
    "float16": "uint16_t", "float32": "float", "float64": "double",
}  # fmt: skip

# Names that mean something else in the emitted files or in a C++ program that includes the header: what the code
# uses itself, macros that compilers define by default, and C++ keywords that are no C keywords.
_TAKEN = frozenset(
    re.findall(
        r"\w+",
        "arena arena_bytes status base i main memcpy printf fprintf stderr stdin stdout null eof linux unix "
        "i386 alignas alignof and and_eq asm bitand bitor bool catch class co_await co_return co_yield compl "
        "concept const_cast consteval constexpr constinit decltype delete dynamic_cast explicit export false "
        "friend mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public "
        "reinterpret_cast requires static_assert static_cast template this thread_local throw true try typeid "
        "typename typeof using virtual xor xor_eq",
    )
)
_TAKEN_START = re.compile(
    r"tvm_deploy|u?int\d|u?int(max|ptr|_)|(size|ptrdiff|sig_atomic|wchar|wint|char8|char16|char32)_|max_align"
)


@dataclass(frozen=True)
class Layout:
    """Everything the C files are made from. `weight_offsets` are bytes into the weights, per constant's name.

    external_weights: they are for a flash memory outside of the chip.
    """

    prefix: str
    name: str
    target: str
    graph: Graph
    plan: Plan
    weight_offsets: dict[str, int]
    weight_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    threads: int
    external_weights: bool = False

    @property
    def macro(self) -> str:
        """Prefix of the model's macros."""
        return self.prefix.upper()

    @property
    def title(self) -> str:
        """What this is, for a comment."""
        return comment(f"{self.name} for {self.target}")

    @property
    def ends(self) -> dict[str, str]:
        """C identifiers of the model's inputs and outputs, by tensor name; different in more than case."""
        names = (*self.graph.inputs, *self.graph.outputs)
        return dict(zip(names, _identifiers(names, self.prefix, self.plan.pools), strict=True))


def _identifiers(names: Iterable[str], prefix: str, pools: Iterable[str] = ()) -> list[str]:
    """One C identifier for each name: parameters of `run`, and (in upper case) parts of macros."""
    used = {name for pool in pools for name in (f"arena_{pool}", f"arena_{pool}_bytes", f"base_{pool}")}
    result = []
    for name in names:
        stem, number = c_identifier(name, "tensor"), 1
        lower = stem.lower()
        if lower in _TAKEN or _TAKEN_START.match(lower) or lower.startswith(f"{prefix.lower()}_"):
            stem = f"tensor_{stem}"
        candidate = stem
        while candidate.lower() in used:
            number += 1
            candidate = f"{stem}_{number}"
        used.add(candidate.lower())
        result.append(candidate)
    return result


def comment(text: str) -> str:
    """`text` for a C comment: nothing in it ends the comment, begins another or hides what follows."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    for pattern, harmless in (("\\", "/"), ("*/", "* /"), ("/*", "/ *"), ("??", "? ?")):
        while pattern in shown:
            shown = shown.replace(pattern, harmless)
    return shown


def literal(text: str) -> str:
    """`text` as a C string literal in UTF-8."""
    plain = {ord(c): c for c in map(chr, range(32, 127)) if c not in '"\\?'}
    data = text.encode("utf-8", "replace")
    return '"' + "".join(plain.get(byte, f"\\{byte:03o}") for byte in data) + '"'


def kernel_symbol(prefix: str, kernel: str) -> str:
    """Name of a kernel's C function."""
    return f"{prefix}_k_{kernel}"


def signature(layout: Layout) -> str:
    """The declaration of `run`, without a semicolon."""
    ends, tensors = layout.ends, layout.graph.tensors
    inputs = [f"const {C_TYPES[tensors[n].dtype]} *{ends[n]}" for n in layout.graph.inputs]
    outputs = [f"{C_TYPES[tensors[n].dtype]} *{ends[n]}" for n in layout.graph.outputs]
    memories = [f"void *arena{pool}, size_t arena{pool}_bytes" for pool in ("", *(f"_{p}" for p in layout.plan.pools))]
    return f"int32_t {layout.prefix}_run({', '.join([*inputs, *outputs, *memories])})"
