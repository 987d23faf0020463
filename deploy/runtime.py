"""Call a compiled model from Python: ctypes and numpy, no TVM.

```python
model = deploy.load("artifacts/digits")
probabilities = model(image)
```
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.artifact import Artifact
from deploy.errors import InputError, ToolError
from deploy.model_spec import TensorSpec

Array = npt.NDArray[np.generic]
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_DTYPES = ("bool", *_INTEGERS, "float16", "float32", "float64")  # in the order of enum tvm_deploy_dtype
DTYPE_CODES = {name: code for code, name in enumerate(_DTYPES)}


class _Tensor(ctypes.Structure):
    """tvm_deploy_tensor"""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


def aligned_empty(shape: tuple[int, ...], dtype: str, alignment: int) -> Array:
    """An uninitialized array whose first element lies on a multiple of `alignment` bytes."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(nbytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + nbytes].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Prepared:
    """A call with everything in place: `run()` computes `outputs` from `inputs`, both changeable in place."""

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    run: Callable[[], None]


_spellings = itertools.count()


def _open(library: Path) -> ctypes.CDLL:
    """Load a library even where an older one of the same path is loaded.

    dlopen knows libraries by the path's text first and by the file second: another spelling of the path makes it look
    at the file.
    """
    spelling = f"{library.parent}/{'./' * next(_spellings)}{library.name}"
    try:
        return ctypes.CDLL(spelling)
    except OSError as error:
        raise ToolError(f"cannot load {library}: {error}; build the artifact on this kind of machine") from error


class Model:
    """A loaded artifact; call it with one array for each input. Safe to call from several threads at once."""

    def __init__(self, path: str | Path) -> None:
        """Load the library of the artifact folder `path`. Raises InputError or ToolError."""
        self.artifact = Artifact.open(Path(path))
        self.inputs = self.artifact.inputs
        self.outputs = self.artifact.outputs
        if self.artifact.library.suffix == ".a":
            name = self.artifact.facts["target"]["name"]
            raise InputError(f"{path} is firmware for {name}: it is linked into a program and cannot be loaded here")
        self._library = _open(self.artifact.library.resolve())
        prefix = self.artifact.prefix
        self._call = _function(self._library, f"{prefix}_call")
        self._status_text = _function(self._library, f"{prefix}_status_text")
        self._status_text.restype = ctypes.c_char_p
        self._arenas = threading.local()

    def __call__(self, *arrays: npt.ArrayLike) -> Array | tuple[Array, ...]:
        """The outputs for one array an input, in the model's order; a single output is not wrapped in a tuple.

        Raises InputError where number, shape or type of the arrays is not the model's.
        """
        prepared = self._prepare(arrays, self._thread_arena())
        prepared.run()
        return prepared.outputs[0] if len(prepared.outputs) == 1 else prepared.outputs

    def prepare(self, *arrays: npt.ArrayLike) -> Prepared:
        """Check and place `arrays` once, for calls that must cost nothing but the computation.

        The result has memory of its own: it may run in any thread, in one at a time.
        """
        return self._prepare(arrays, self._new_arena())

    def _prepare(self, arrays: tuple[npt.ArrayLike, ...], arena: Array) -> Prepared:
        if len(arrays) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"the model takes {len(self.inputs)} arrays ({names}), not {len(arrays)}")
        inputs = tuple(_checked(array, spec) for array, spec in zip(arrays, self.inputs, strict=True))
        outputs = tuple(aligned_empty(spec.shape, spec.dtype, 64) for spec in self.outputs)
        memory = (inputs, outputs, arena)
        arguments = (
            *_pack(inputs, self.inputs),
            *_pack(outputs, self.outputs),
            ctypes.c_void_p(arena.ctypes.data),
            ctypes.c_size_t(arena.nbytes),
        )
        call, text = self._call, self._status_text

        def run(_alive: object = memory) -> None:  # C knows addresses only: the function itself keeps them valid
            if status := call(*arguments):
                raise InputError(text(status).decode())

        return Prepared(inputs, outputs, run)

    def _new_arena(self) -> Array:
        return aligned_empty((max(1, self.artifact.arena_bytes),), "uint8", self.artifact.arena_alignment)

    def _thread_arena(self) -> Array:
        """This thread's arena: the model keeps nothing anywhere else."""
        arena: Array | None = getattr(self._arenas, "arena", None)
        if arena is None:
            arena = self._arenas.arena = self._new_arena()
        return arena


def _function(library: ctypes.CDLL, name: str) -> Any:
    try:
        return library[name]
    except AttributeError:
        raise ToolError(f"{library._name} has no function {name}; build the artifact again") from None


def _checked(array: npt.ArrayLike, spec: TensorSpec) -> Array:
    try:
        given = np.asarray(array)
    except (ValueError, TypeError) as error:
        raise InputError(f"{spec.name} is not an array: {error}; the model takes {list(spec.shape)}") from None
    if given.dtype != np.dtype(spec.dtype):
        raise InputError(f"{spec.name} is {given.dtype}, the model takes {spec.dtype}: use .astype('{spec.dtype}')")
    if given.shape != spec.shape:
        raise InputError(f"{spec.name} has shape {list(given.shape)}, the model takes {list(spec.shape)}")
    placed = aligned_empty(spec.shape, spec.dtype, 64)
    placed[...] = given
    return placed


def _pack(arrays: tuple[Array, ...], specs: tuple[TensorSpec, ...]) -> tuple[ctypes.Array[_Tensor], ctypes.c_int32]:
    tensors = (_Tensor * len(arrays))()
    for tensor, array, spec in zip(tensors, arrays, specs, strict=True):
        tensor.data = array.ctypes.data
        tensor.shape = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        tensor.ndim = array.ndim
        tensor.dtype = DTYPE_CODES[spec.dtype]
    return tensors, ctypes.c_int32(len(arrays))
