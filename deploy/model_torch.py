"""torch.export programs and archives.

`torch.export.load` unpickles and evaluates parts of an archive, so an archive is examined first: only plain tensors,
only operators of PyTorch's own libraries, no code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.errors import InputError
from deploy.model_spec import DTYPES, MAX_TENSOR_BYTES, Dim, TensorSpec, check_overrides, one_line, static_shape, unique

# Operators an archive may name; anything else is resolved by attribute lookup in torch, which reaches far.
_SAFE_TARGET = re.compile(
    r"torch\.ops\.(aten|higher_order|quantized_decomposed)\.\w+(\.\w+)?|_operator\.\w+|torch\.sym_\w+|math\.\w+"
)
# A symbolic size, for example `Add(Integer(1), Symbol('s0', integer=True))`; loading evaluates it as Python.
_SAFE_EXPRESSION = re.compile(
    r"(?:Symbol|Integer|Rational|Add|Mul|Max|Min|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|true|false"
    r"|integer|positive|nonnegative|negative|zero|True|False|'?[a-z]{1,2}\d+'?|[-+*/(),= \d])*"
)
# How a damaged archive shows itself.
_DAMAGE = (zipfile.BadZipFile, EOFError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, OSError)


def is_archive(data: bytes) -> bool:
    """Whether `data` starts like a zip file, which a .pt2 archive is."""
    return data[:4] == b"PK\x03\x04"


def load_archive(data: bytes) -> Any:
    """The torch.export.ExportedProgram in `data`. Raises InputError (a sentence without the path)."""
    try:
        _check_archive(data)
    except _DAMAGE as error:
        raise InputError(f"is a damaged torch.export archive ({one_line(error)}); save it again.") from None
    import torch

    try:
        with _quiet(), _weights_only():
            _know_quantized_operators()
            return torch.export.load(io.BytesIO(data))
    except Exception as error:  # a damaged archive fails in many ways, none of which is told apart by its type
        reason = f"torch {torch.__version__} cannot load: {one_line(error)}"
        raise InputError(f"is a torch.export archive that {reason}.") from None


def _know_quantized_operators() -> None:
    """Make torch know quantized_decomposed.…, the operators of quantized programs, which it does not by itself."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401


def export(module: Any, example_inputs: Sequence[Any] | None) -> Any:
    """`module` in evaluation mode as an ExportedProgram with the shapes of `example_inputs`. Raises InputError."""
    import torch

    if example_inputs is None:
        raise InputError("is a torch.nn.Module; give example_inputs, a tuple of tensors of the shapes to deploy.")
    # One tensor given for two inputs would be traced as one input.
    examples = tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in example_inputs)
    modes = {name: part.training for name, part in module.named_modules()}
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(module.eval(), examples)
    except Exception as error:  # torch.export's errors have no common class
        raise InputError(f"cannot be exported by torch.export ({one_line(error)}).") from None
    finally:
        for name, part in module.named_modules():
            part.training = modes[name]


@dataclass(frozen=True)
class TorchModel:
    """A loaded program: `functional` has no in-place operators; `original` is as given, with the shapes asked for."""

    functional: Any
    original: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def prepare(program: Any, shapes: Mapping[str, tuple[int, ...]]) -> TorchModel:
    """`program` with static shapes (exported again where `shapes` asks for it) and free of in-place operators.

    Raises InputError (a sentence without the path) for dynamic dimensions that remain, state that the model changes,
    and inputs or outputs that are not tensors.
    """
    _check_signature(program)
    placeholders = _user_inputs(program)
    check_overrides(shapes, {node.name: node.meta["val"].dim() for node in placeholders})
    if any(tuple(shapes[n.name]) != tuple(n.meta["val"].shape) for n in placeholders if n.name in shapes):
        program = _export_again(program, placeholders, shapes)
        placeholders = _user_inputs(program)
    inputs = tuple(_spec(node.name, node.meta["val"]) for node in placeholders)
    functional = _functional(program)
    _check_signature(functional)  # only here do in-place changes of a buffer or an input show as such
    nodes = _user_outputs(functional)
    names = unique(node.name for node in nodes)
    outputs = tuple(_spec(name, node.meta["val"]) for name, node in zip(names, nodes, strict=True))
    return TorchModel(functional, program, inputs, outputs)


def fingerprint(program: Any) -> str:
    """SHA-256 of the program's graph and weights (an archive's own bytes contain a time and are not repeatable)."""
    digest = hashlib.sha256(str(program.graph).encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(-1).numpy(force=True).tobytes())
    return digest.hexdigest()


def _check_archive(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise InputError("is a compressed zip file; torch.export.save writes an uncompressed one.")
        if archive.testzip() is not None:
            raise InputError("is a damaged torch.export archive (a checksum differs); copy or save it again.")
        models = [name for name in members if name.startswith("models/") and name.endswith(".json")]
        if models != ["models/model.json"]:
            raise InputError("is a zip file, but not one of torch.export.save; export the model that way.")
        if any(name.startswith("data/aotinductor") for name in members):
            raise InputError("contains compiled code (AOTInductor); save the program with torch.export.save instead.")
        for kind in ("weights", "constants"):
            if f"data/{kind}/model.pt" in members:
                raise InputError("has weights in the format of an old torch; save it again with torch 2.9 or newer.")
            config = json.loads(archive.read(members[f"data/{kind}/model_{kind}_config.json"]))
            for name, entry in config["config"].items():
                _check_payload(name, entry, members.get(f"data/{kind}/{entry['path_name']}"))
        _check_program(json.loads(archive.read(members["models/model.json"])))


def _check_payload(name: str, entry: Mapping[str, Any], info: zipfile.ZipInfo | None) -> None:
    if entry["use_pickle"] or not entry["path_name"].startswith(("weight_", "tensor_")):
        raise InputError(f"stores '{name}' as a Python object, which could run code; only plain tensors are loaded.")
    if info is None:
        raise InputError(f"is a damaged torch.export archive ('{name}' is missing); save it again.")
    sizes, stored = [size["as_int"] for size in entry["tensor_meta"]["sizes"]], info.file_size
    # A view may repeat stored elements, so more may be declared than is stored, but not without bound.
    if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_TENSOR_BYTES or (stored == 0 and math.prod(sizes)):
        raise InputError(f"declares weight '{name}' of shape {sizes}, but stores {stored} bytes; the file is damaged.")


def _check_program(program: Any) -> None:
    """No text in the program may be something that loading or running it would evaluate as code."""
    for key, value in _walk(program):
        if key == "target" and isinstance(value, str) and not _SAFE_TARGET.fullmatch(value):
            raise InputError(f"uses operator '{value}', which is not one of PyTorch's own; only those are loaded.")
        if key == "expr_str" and not _SAFE_EXPRESSION.fullmatch(str(value)):
            raise InputError(f"has a symbolic size '{str(value)[:80]}' that is not arithmetic.")
        if isinstance(value, str) and "_spec" in key and re.search("__enum__|defaultdict", value):
            raise InputError("takes or returns Python objects that are not tensors, tuples, lists or dictionaries.")


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    stack = [(key, value)]
    while stack:
        key, value = stack.pop()
        yield key, value
        if isinstance(value, dict):
            stack.extend(value.items())
        elif isinstance(value, list):
            stack.extend((key, item) for item in value)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """torch.load restricted to tensors, also where torch.export would fall back to unrestricted unpickling."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of torch's: what matters is in the exception."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _functional(program: Any) -> Any:
    try:
        with _quiet():
            return program.run_decompositions({})
    except Exception as error:  # torch.export's errors have no common class
        raise InputError(f"cannot be made free of in-place operators ({one_line(error)}).") from None


def _check_signature(program: Any) -> None:
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise InputError(
                f"changes its own state or an input ('{spec.target or spec.arg.name}'); a deployed model is a pure "
                "function of its inputs, so export it in evaluation mode without such writes."
            )
        if not isinstance(spec.arg, TensorArgument):
            raise InputError(f"returns something that is not a tensor ({spec.arg!r}); return tensors only.")
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, TensorArgument):
            raise InputError(f"takes an input that is not a tensor ('{spec.arg.name}'); make it part of the module.")
        if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
            raise InputError(f"uses a Python or C++ object ('{spec.arg.name}'); only tensors can be deployed.")


def _user_inputs(program: Any) -> list[Any]:
    wanted = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]


def _user_outputs(program: Any) -> list[Any]:
    return list(next(node for node in program.graph.nodes if node.op == "output").args[0])


def _dims(value: Any) -> list[Dim]:
    dims: list[Dim] = []
    for size in value.shape:
        known = size if isinstance(size, int) else size.node.maybe_as_int()
        dims.append(str(size) if known is None else int(known))
    return dims


def _spec(name: str, value: Any) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"has a tensor '{name}' of type {dtype}; allowed are {', '.join(DTYPES)}.")
    return TensorSpec(name, static_shape(name, _dims(value)), dtype)


def _export_again(program: Any, placeholders: Sequence[Any], shapes: Mapping[str, tuple[int, ...]]) -> Any:
    import torch

    values = [node.meta["val"] for node in placeholders]
    fixed = [shapes.get(n.name) or static_shape(n.name, _dims(v)) for n, v in zip(placeholders, values, strict=True)]
    examples = [torch.zeros(shape, dtype=value.dtype) for shape, value in zip(fixed, values, strict=True)]
    args, kwargs = torch.utils._pytree.tree_unflatten(examples, program.call_spec.in_spec)
    try:
        with _quiet(), torch.no_grad():
            module = program.module(check_guards=False)
            module(*args, **kwargs)  # without guards, only running it shows whether the sizes fit each other
            return torch.export.export(module, args, kwargs)
    except Exception as error:  # torch.export's errors have no common class
        wanted = ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise InputError(f"does not accept the shapes --shape gives ({wanted}): {one_line(error)}.") from None
