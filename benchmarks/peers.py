"""Other inference engines for CPUs, each set up as its documentation recommends for the lowest latency.

All in float32 and with the number of threads asked for. What is timed is each engine's own call on inputs that are
already in place: no conversion or copying of Python objects in it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TOLERANCE = 1e-4
INTEGER_STEPS = 64  # engines round between layers as they like; the fast kernels of LiteRT are up to 50 steps off


class Unavailable(Exception):
    """An engine cannot take part; the message says why, for the table. Fix: what the message says."""


@dataclass(frozen=True)
class Prepared:
    """A model loaded into an engine with its inputs set: `run` executes it once, `outputs` returns the results."""

    run: Callable[[], object]
    outputs: Callable[[], list[Array]]


class Peer(Protocol):
    """An engine: `package` is its distribution's name, from which its version is read."""

    name: str
    package: str

    def prepare(self, path: Path, inputs: Sequence[Array], threads: int) -> Prepared:
        """Load the model at `path` and set its `inputs`, in the model's order. Raises Unavailable."""


class LiteRT:
    """LiteRT (TensorFlow Lite) with its default delegate for CPUs, XNNPACK. Reads .tflite."""

    name = "LiteRT"
    package = "ai-edge-litert"

    def prepare(self, path: Path, inputs: Sequence[Array], threads: int) -> Prepared:
        if path.suffix != ".tflite":
            raise Unavailable("reads .tflite only")
        interpreter = _imported("ai_edge_litert.interpreter", self.package).Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
        for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], value)
        indices = [detail["index"] for detail in interpreter.get_output_details()]
        return Prepared(interpreter.invoke, lambda: [interpreter.get_tensor(index) for index in indices])


class OnnxRuntime:
    """ONNX Runtime with its CPU provider, all graph optimizations and bound inputs and outputs.

    Reads .onnx. A .tflite is converted by tflite2onnx first, which also turns images into channels first, the layout
    that ONNX Runtime is fastest in.
    """

    name = "ONNX Runtime"
    package = "onnxruntime"

    def prepare(self, path: Path, inputs: Sequence[Array], threads: int) -> Prepared:
        if path.suffix not in (".onnx", ".tflite"):
            raise Unavailable("reads .onnx and .tflite only")
        runtime = _imported("onnxruntime", self.package)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        converted = path.suffix == ".tflite"
        model = _tflite_as_onnx(path) if converted else str(path)
        try:
            session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # what it raises has no common class
            reason = str(error).strip().splitlines()[0]
            raise Unavailable(f"it refuses the model converted to ONNX: {reason[:100]}") from error
        binding = session.io_binding()
        for node, value in zip(session.get_inputs(), inputs, strict=True):
            placed = _channels_first(value, node.shape) if converted else value
            binding.bind_ortvalue_input(node.name, runtime.OrtValue.ortvalue_from_numpy(placed))
        for node in session.get_outputs():
            binding.bind_output(node.name, "cpu")

        def outputs() -> list[Array]:
            results = binding.copy_outputs_to_cpu()
            return [_channels_last(result) for result in results] if converted else results

        return Prepared(lambda: session.run_with_iobinding(binding), outputs)


class OpenVino:
    """OpenVINO's CPU plugin in float32: left to itself it computes in bfloat16 on CPUs with AMX. Reads both formats."""

    name = "OpenVINO"
    package = "openvino"

    def prepare(self, path: Path, inputs: Sequence[Array], threads: int) -> Prepared:
        if path.suffix not in (".onnx", ".tflite"):
            raise Unavailable("reads .onnx and .tflite only")
        openvino = _imported("openvino", self.package)
        core = openvino.Core()
        model = core.read_model(str(path))
        # A batch that the file leaves open would make it look at the shapes again on every call.
        model.reshape({index: list(value.shape) for index, value in enumerate(inputs)})
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the benchmark pins everybody to the same cores
        }
        compiled = core.compile_model(model, "CPU", settings)
        request = compiled.create_infer_request()
        tensors = [openvino.Tensor(np.ascontiguousarray(value)) for value in inputs]
        for index, tensor in enumerate(tensors):
            request.set_input_tensor(index, tensor)
        # The method below the Python wrapper, which would add its own checks of the inputs to the time (1 to 2 µs).
        infer = openvino.InferRequest.__base__.infer
        count = len(compiled.outputs)
        return Prepared(
            lambda: infer(request, {}, share_outputs=True, decode_strings=False),
            lambda: [np.array(request.get_output_tensor(index).data) for index in range(count)],
        )


PEERS: tuple[Peer, ...] = (LiteRT(), OnnxRuntime(), OpenVino())


def disagreement(outputs: Sequence[Array], reference: Sequence[Array], steps: int = 0) -> str:
    """What is wrong with `outputs`, in words, or an empty string; integers may differ by `steps`.

    The largest difference may be 1e-4 of the largest value of the reference, or 1e-4 where that is less than 1: engines
    add in different orders, but lower precision or a wrong layout shows.
    """
    if len(outputs) != len(reference):
        return f"{len(outputs)} outputs instead of {len(reference)}"
    for index, (value, expected) in enumerate(zip(outputs, reference, strict=True)):
        if value.shape != expected.shape:
            return f"output {index} has shape {list(value.shape)} instead of {list(expected.shape)}"
        difference = np.abs(value.astype(np.float64) - expected.astype(np.float64)).max(initial=0)
        largest = float(np.abs(expected.astype(np.float64)).max(initial=0))
        allowed = TOLERANCE * max(1.0, largest) if expected.dtype.kind == "f" else steps
        if not difference <= allowed:  # not a number is not, either
            return f"output {index} differs by {difference:.3g}, more than {allowed:.3g}"
    return ""


def version(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _imported(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        raise Unavailable(f"{package} is not installed: pip install '.[bench]'") from None


def _tflite_as_onnx(path: Path) -> bytes:
    converter = _imported("tflite2onnx", "tflite2onnx")
    logging.getLogger("tflite2onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        try:
            converter.convert(str(path), str(file))
        except Exception as error:  # it raises whatever its parts raise
            raise Unavailable(f"tflite2onnx cannot convert it: {' '.join(str(error).split())[:80]}") from error
        return file.read_bytes()


def _channels_first(value: Array, shape: Sequence[int]) -> Array:
    if list(value.shape) == list(shape):
        return value
    return np.ascontiguousarray(value.transpose(0, 3, 1, 2))


def _channels_last(value: Array) -> Array:
    return value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
