"""What a loaded model is, whatever file format it came in: names, shapes and types of its inputs and outputs."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

from deploy.errors import InputError

# Element types that a compiled library can hold, with their size in bytes.
DTYPES: Mapping[str, int] = MappingProxyType(
    {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8}
    | {"float16": 2, "float32": 4, "float64": 8}
)

# Kernels index with 32-bit integers, so no single tensor may be larger. It also keeps a small file that
# declares an enormous tensor from making this machine allocate it.
MAX_TENSOR_BYTES = 2**31 - 1

Format = Literal["onnx", "tflite", "torch"]
Dim = int | str | None  # a size, the name of a dynamic dimension, or a dynamic dimension without a name

_C_KEYWORDS = frozenset(
    re.findall(
        r"\w+",
        "auto break case char const continue default do double else enum extern float for goto if inline int long "
        "register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while "
        "asm main bool true false nullptr class delete namespace new operator private public template this",
    )
)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    `shape` has fixed positive sizes (`()` is a scalar), `dtype` is one of `DTYPES`. A quantized tensor of the source
    format has `scale` and `zero_point`: real value = scale * (stored - zero_point). Raises InputError.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError("A model input or output has no name; give every input and output a name.")
        if self.dtype not in DTYPES:
            raise InputError(f"Tensor '{self.name}' has type {self.dtype}; allowed are {', '.join(DTYPES)}.")
        check_size(self.name, self.shape, self.dtype)
        if (self.scale is None) != (self.zero_point is None):
            raise InputError(f"Tensor '{self.name}' has only one of scale and zero point; a quantized tensor has both.")
        if self.scale is not None and not (math.isfinite(self.scale) and self.scale > 0):
            raise InputError(f"Tensor '{self.name}' has scale {self.scale}; a scale is a positive number.")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * DTYPES[self.dtype]


class Described(Protocol):
    """Whatever knows a model's name and inputs: the source model, or an artifact made from it."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A model as its framework wrote it, with static shapes.

    `payload` is an `onnx.ModelProto`, the bytes of a TFLite flatbuffer or a `torch.export.ExportedProgram`. `sha256` is
    the hash of what the user gave. `original` is the model before it was simplified (ONNX) or made free of in-place
    operators (torch), so that the reference is the user's model and not a rewriting of it.
    """

    name: str
    c_name: str
    format: Format
    path: str | None
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    payload: Any = field(repr=False)
    original: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.c_name):
            raise InputError(f"'{self.c_name}' is not a C identifier; use letters, digits and underscores.")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InputError(f"'{self.sha256}' is not a SHA-256 in lower-case hexadecimal.")
        if not self.inputs or not self.outputs:
            which = "input" if not self.inputs else "output"
            raise InputError(f"Model '{self.name}' has no {which}; a deployable model has at least one.")
        for specs in (self.inputs, self.outputs):
            names = [spec.name for spec in specs]
            if len(set(names)) != len(names):
                raise InputError(f"Model '{self.name}' has two inputs or outputs with one name: {', '.join(names)}.")


def c_identifier(text: str, prefix: str = "m") -> str:
    """`text` as a valid C (and Python) identifier: other characters become underscores; `prefix` mends the rest."""
    name = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", text)).strip("_")
    if not name or not name[0].isalpha() or name in _C_KEYWORDS or keyword.iskeyword(name):
        name = f"{prefix}_{name}".rstrip("_")
    return name


def unique(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """`names` in order, repeated ones (and those in `taken`) made different by a number at the end."""
    wanted = list(names)
    used, result = set(taken), []
    for name in wanted:
        candidate, number = name, 1
        while candidate in used or (number > 1 and candidate in wanted):
            number += 1
            candidate = f"{name}_{number}"
        used.add(candidate)
        result.append(candidate)
    return result


def check_size(name: str, shape: Sequence[int], dtype: str) -> None:
    """Raises InputError when a tensor has a dimension below 1 or is larger than MAX_TENSOR_BYTES."""
    if any(size < 1 for size in shape):
        raise InputError(f"Tensor '{name}' has shape {_times(shape)}; every dimension is at least 1.")
    nbytes = math.prod(shape) * DTYPES[dtype]
    if nbytes > MAX_TENSOR_BYTES:
        raise InputError(
            f"Tensor '{name}' of shape {_times(shape)} ({dtype}) takes {nbytes / 2**30:.1f} GiB; "
            "a tensor is smaller than 2 GiB."
        )


def static_shape(name: str, dims: Sequence[Dim]) -> tuple[int, ...]:
    """`dims` of model input `name` as numbers; InputError with the `--shape` flag to use when one is dynamic."""
    for axis, size in enumerate(dims):
        if not isinstance(size, int):
            called = f" ('{size}')" if size else ""
            example = ["1" if d is None or (i == 0 and isinstance(d, str)) else str(d) for i, d in enumerate(dims)]
            rest = "" if all(part.isdigit() for part in example) else " with a number for each name"
            raise InputError(
                f"Input '{name}' has a dynamic dimension {axis}{called}, and ahead-of-time code needs fixed sizes; "
                f"give the shape, for example --shape '{name}={','.join(example)}'{rest}."
            )
    return tuple(int(size) for size in dims if isinstance(size, int))


def check_overrides(shapes: Mapping[str, Sequence[int]], ranks: Mapping[str, int]) -> None:
    """Raises InputError when `shapes` names an input that is not in `ranks`, or has another number of dimensions."""
    for name, shape in shapes.items():
        if name not in ranks:
            known = ", ".join(f"'{known}'" for known in ranks) or "none"
            raise InputError(f"--shape names input '{name}', which the model does not have; its inputs are {known}.")
        if len(shape) != ranks[name]:
            raise InputError(
                f"--shape gives input '{name}' {len(shape)} dimensions ({_times(shape)}), but it has {ranks[name]}."
            )
        if any(not isinstance(size, int) or size < 1 for size in shape):
            raise InputError(f"--shape gives input '{name}' the shape {_times(shape)}; every dimension is at least 1.")


def one_line(error: BaseException) -> str:
    """The first line of `error` that says something, for quoting in a message of our own."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = next((line for line in lines if re.search(r"[A-Za-z]{3}", line)), type(error).__name__)
    return (text if len(text) <= 200 else text[:197] + "...").rstrip(" .:")


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"
