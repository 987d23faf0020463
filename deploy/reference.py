"""The source model in its own framework: what a deployed library has to agree with."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy import model_tflite
from deploy.errors import InputError
from deploy.expose import expose_intermediates
from deploy.model_spec import Described, SourceModel, TensorSpec, one_line

__all__ = ["Reference", "check_installed", "expose_intermediates", "load_inputs", "load_labels", "sample_inputs"]

Array = npt.NDArray[Any]

# Integer inputs that are not quantized are mostly indices; every table has at least this many rows.
_INDEX_LIMIT = 4

# Package and name of the framework that defines each format, and of TFLite's other definition.
_MICRO = "tflite micro"
_FRAMEWORKS = {
    "onnx": ("onnxruntime", "ONNX Runtime"),
    "tflite": ("ai-edge-litert", "LiteRT"),
    _MICRO: ("tflite-micro", "TFLite Micro"),
    "torch": ("torch", "torch"),
}


class Reference:
    """`source` run by ONNX Runtime, LiteRT, TFLite Micro or torch on one thread of this CPU.

    LiteRT runs its reference kernels for a quantized model, whose results define the format, and its built-in kernels
    without delegates for a float one. With the rounding `double` TFLite Micro's reference kernels run a quantized
    TFLite model instead. ONNX Runtime and torch run the model as given (`source.original`), the former with basic graph
    optimizations. Raises InputError when the framework refuses the model, or is not installed.
    """

    def __init__(self, source: SourceModel, rounding: str = "single") -> None:
        self.source, self._framework = source, _framework_of(source, rounding)
        check_installed(source, rounding)
        runners = {"onnx": _onnx_runner, "tflite": _tflite_runner, _MICRO: _micro_runner, "torch": _torch_runner}
        try:
            self._run = runners[self._framework](source)
        except Exception as error:  # the frameworks' errors have no common class
            raise self._refused("load", error) from error

    @property
    def name(self) -> str:
        """The framework and its version."""
        package, title = _FRAMEWORKS[self._framework]
        return f"{title} {version(package)}"

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs in the order of `source.outputs`, for arrays in the order, shapes and types of `source.inputs`."""
        check_inputs(self.source, inputs)
        try:
            outputs = self._run(inputs)
        except Exception as error:  # the frameworks' errors have no common class
            raise self._refused("run", error) from error
        return [np.asarray(value) for value in outputs]

    def _refused(self, step: str, error: Exception) -> InputError:
        framework = _FRAMEWORKS[self._framework][1]
        return InputError(f"{framework} cannot {step} model '{self.source.name}': {one_line(error)}.")


def check_installed(source: SourceModel, rounding: str) -> None:
    """Raises InputError where the framework that defines the model's results is an extra that is not there."""
    if _framework_of(source, rounding) == _MICRO and find_spec("tflite_micro") is None:
        raise InputError(
            f"'rounding: double' has model '{source.name}' verified against TFLite Micro, which is not installed; "
            "pip install tflite-micro (Linux on x86-64 only), or take 'rounding: single'."
        )


def _framework_of(source: SourceModel, rounding: str) -> str:
    double = rounding == "double" and source.format == "tflite" and _is_quantized(source)
    return _MICRO if double else source.format


def check_inputs(source: Described, inputs: Sequence[Array]) -> None:
    """Raises InputError unless `inputs` are arrays of the number, shapes and types of `source.inputs`."""
    if len(inputs) != len(source.inputs):
        raise InputError(f"Model '{source.name}' takes {len(source.inputs)} inputs, not {len(inputs)}.")
    for spec, value in zip(source.inputs, inputs, strict=True):
        if tuple(value.shape) != spec.shape or value.dtype.name != spec.dtype:
            raise InputError(
                f"Input '{spec.name}' is {value.dtype.name} of shape {list(value.shape)}; "
                f"the model takes {spec.dtype} of shape {list(spec.shape)}."
            )


def sample_inputs(source: Described, count: int, seed: int) -> list[list[Array]]:
    """`count` sets of random inputs, the same for the same `seed`.

    Floats are standard normal, quantized and 8-bit integers span their whole range, other integers (mostly indices
    into a table) are small and not negative, truth values are both.
    """
    random = np.random.default_rng(seed)
    return [[_sample(spec, random) for spec in source.inputs] for _ in range(count)]


def _sample(spec: TensorSpec, random: np.random.Generator) -> Array:
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return random.standard_normal(spec.shape).astype(dtype)
    if dtype.kind == "b":
        return random.integers(0, 2, spec.shape).astype(dtype)
    if spec.scale is not None or dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max, spec.shape, dtype, endpoint=True)
    return random.integers(0, _INDEX_LIMIT, spec.shape, dtype)


def load_inputs(path: str | Path, source: Described) -> list[list[Array]]:
    """Sets of inputs for `source` from a NumPy file.

    An .npz has one array for each input, under its name; for a model with one input, an .npy, or an .npz with a single
    array or one called `inputs`, will do. An array has the input's shape (one set), or one more dimension in front, or
    any number in place of a batch of 1 (as many sets). Raises InputError.
    """
    file = Path(path)
    arrays = _by_input(file, _read_arrays(file), source)
    sets = {spec.name: _split(file, spec, arrays[spec.name]) for spec in source.inputs}
    counts = {name: len(values) for name, values in sets.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        listed = ", ".join(f"{count} for '{name}'" for name, count in counts.items())
        raise InputError(f"Inputs {file} have {listed}; give each input the same number of samples, at least one.")
    return [list(values) for values in zip(*sets.values(), strict=True)]


def load_labels(path: str | Path, count: int) -> Array | None:
    """The integer array `labels` of an .npz of `count` samples; nothing where it has none. Raises InputError."""
    arrays = _read_arrays(Path(path))
    labels = arrays.get("labels")
    if labels is None:
        return None
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"Inputs {path}: 'labels' is {labels.dtype.name} of shape {list(labels.shape)}; "
            f"it must be one integer for each of the {count} samples."
        )
    return labels


def _read_arrays(file: Path) -> Mapping[str, Array]:
    if file.suffix.lower() not in (".npz", ".npy"):
        raise InputError(f"Inputs {file} are not a NumPy file; save them with numpy.savez (.npz) or numpy.save (.npy).")
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"Inputs {file} do not exist; check the path.") from None
    except (ValueError, OSError, EOFError, KeyError, MemoryError, zipfile.BadZipFile) as error:
        raise InputError(f"Inputs {file} cannot be read as a NumPy file: {one_line(error)}.") from None


def _by_input(file: Path, arrays: Mapping[str, Array], source: Described) -> Mapping[str, Array]:
    wanted = [spec.name for spec in source.inputs]
    if all(name in arrays for name in wanted):
        return arrays
    if len(wanted) == 1 and (len(arrays) == 1 or "inputs" in arrays):
        return {wanted[0]: arrays["inputs"] if "inputs" in arrays else next(iter(arrays.values()))}
    if "" in arrays:
        raise InputError(
            f"Inputs {file} are one array, but model '{source.name}' has {len(wanted)} inputs; "
            f"save an .npz with the arrays {', '.join(map(repr, wanted))}."
        )
    missing = ", ".join(repr(name) for name in wanted if name not in arrays)
    raise InputError(f"Inputs {file} lack {missing}; the file has {', '.join(map(repr, arrays)) or 'nothing'}.")


def _split(file: Path, spec: TensorSpec, array: Array) -> list[Array]:
    if array.dtype.name != spec.dtype:
        raise InputError(
            f"Inputs {file}: '{spec.name}' is {array.dtype.name}, but the model takes {spec.dtype}; "
            f"convert it with .astype('{spec.dtype}')."
        )
    if array.shape == spec.shape:
        return [np.ascontiguousarray(array)]
    batched = array.ndim == len(spec.shape) and spec.shape[:1] == (1,) and array.shape[1:] == spec.shape[1:]
    if batched or array.shape[1:] == spec.shape:
        return [np.ascontiguousarray(item).reshape(spec.shape) for item in array]
    raise InputError(
        f"Inputs {file}: '{spec.name}' has shape {list(array.shape)}; "
        f"it must be {list(spec.shape)}, or {['samples', *spec.shape]}.".replace("'samples'", "samples")
    )


def _onnx_runner(source: SourceModel) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    model = source.original if source.original is not None else source.payload
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in source.outputs]
    return lambda inputs: session.run(names, dict(zip((spec.name for spec in source.inputs), inputs, strict=True)))


def _tflite_runner(source: SourceModel) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    graph = model_tflite.parse(source.payload).subgraphs[0]
    interpreter = Interpreter(
        model_content=source.payload,
        num_threads=1,
        experimental_op_resolver_type=(
            OpResolverType.BUILTIN_REF if _is_quantized(source) else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )
    interpreter.allocate_tensors()

    def run(inputs: Sequence[Array]) -> list[Array]:
        interpreter.reset_all_variables()
        for index, value in zip(graph.inputs, inputs, strict=True):
            interpreter.set_tensor(int(index), value)
        interpreter.invoke()
        return [interpreter.get_tensor(int(index)) for index in graph.outputs]

    return run


def _is_quantized(source: SourceModel) -> bool:
    """Whether a TFLite model has tensors with scales."""
    tensors = model_tflite.parse(source.payload).subgraphs[0].tensors
    scales = (tensor.quantization.scale for tensor in tensors if tensor.quantization is not None)
    return any(scale is not None and len(scale) for scale in scales)


def _micro_runner(source: SourceModel) -> Any:
    from tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(source.payload, arena_size=_micro_arena(source))

    def run(inputs: Sequence[Array]) -> list[Array]:
        interpreter.reset()
        for number, value in enumerate(inputs):
            interpreter.set_input(value, number)
        interpreter.invoke()
        return [interpreter.get_output(number) for number in range(len(source.outputs))]

    return run


def _micro_arena(source: SourceModel) -> int:
    """Bytes that are enough: every activation at once and as 32-bit sums, what describes tensors, and some more."""
    tensors = model_tflite.parse(source.payload).subgraphs[0].tensors
    activations = sum(int(np.prod(tensor.shape)) for tensor in tensors if tensor.shape is not None)
    return 8 * activations + 2 * len(source.payload) + 2**20


def _torch_runner(source: SourceModel) -> Any:
    import torch

    program = source.original if source.original is not None else source.payload
    module = program.module(check_guards=False)
    structure = program.call_spec.in_spec

    def run(inputs: Sequence[Array]) -> list[Array]:
        tensors = [torch.from_numpy(value.copy()) for value in inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(tensors, structure)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.no_grad():
                outputs = torch.utils._pytree.tree_leaves(module(*args, **kwargs))
        finally:
            torch.set_num_threads(threads)
        return [output.detach().numpy() for output in outputs]

    return run
