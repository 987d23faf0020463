"""Compiled models and kernels that tests share; everything is really compiled and really run."""

import ctypes
import itertools
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deploy import compile as compiling
from deploy import model, reference, runtime, shell, verify
from deploy.kernels.plain import build_object, to_plain
from deploy.targets import load_target

SHARED = Path(__file__).resolve().parents[2] / "shared"
_FOLDER = tempfile.TemporaryDirectory(prefix="tvm-deploy-tests-")
_numbers = itertools.count()


def new_folder() -> Path:
    """A folder of its own that lives as long as the test run."""
    folder = Path(_FOLDER.name) / str(next(_numbers))
    folder.mkdir()
    return folder


@cache
def host(threads=1):
    """This machine as a target."""
    return replace(load_target("host"), threads=threads)


class Function(nn.Module):
    """A function of (module, *inputs) as a torch module; keyword arguments become parameters and submodules."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def torch_source(module, *examples, name="net"):
    """The SourceModel of a torch module or of a function of (module, *inputs)."""
    return model.from_object((module if isinstance(module, nn.Module) else Function(module)).eval(), name, examples)


def build(source, target=None):
    """The artifact of a model, in a folder of its own."""
    return compiling.build(source, target or host(), new_folder() / "artifact")


def assert_correct(source, artifact, count=2):
    """The artifact's outputs are those of the source framework, within the default tolerances."""
    loaded, expected = runtime.Model(artifact.path), reference.Reference(source)
    for inputs in reference.sample_inputs(source, count, seed=1):
        outputs = loaded(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        compared = verify.compare([s.name for s in source.outputs], expected.run(inputs), outputs)
        assert verify.first_failure(compared) is None


def deployed(module, *examples, target=None, name="net"):
    """Build a torch module and check what it computes; the artifact."""
    source = torch_source(module, *examples, name=name)
    artifact = build(source, target)
    assert_correct(source, artifact)
    return artifact


class Kernels:
    """Scheduled PrimFuncs compiled to one library; call(name, *inputs) gives the outputs' values."""

    def __init__(self, scheduled, target=None):
        from tvm.target import Target

        folder, target = new_folder(), target or host()
        tvm_target = Target(target.tvm)
        self.plain = {name: to_plain(func, name, tvm_target) for name, func in scheduled.items()}
        self.params = {
            name: [(tuple(int(d) for d in b.ty.shape), str(b.ty.dtype)) for b in func.params]
            for name, func in scheduled.items()
        }
        build_object(list(self.plain.values()), tvm_target, str(folder / "kernels.o"))
        objects = ["kernels.o"]
        if target.threads > 1:
            pool = Path(compiling.__file__).parent / "aot" / "c" / "pool.c"
            flags = ["-O2", "-fPIC", "-c", f"-DPOOL_THREADS={target.threads}"]
            shell.run(["cc", *flags, pool, "-o", "pool.o"], timeout_s=60, cwd=folder)
            objects.append("pool.o")
        linked = ["cc", "-shared", *objects, "-lm", "-lpthread", "-o", "kernels.so"]
        shell.run(linked, timeout_s=60, cwd=folder)
        self.library = ctypes.CDLL(str(folder / "kernels.so"))

    def call(self, name, *inputs, outputs=1):
        """Run kernel `name`; its last `outputs` parameters are returned. Memory is aligned to its elements only."""
        params = self.params[name]
        arrays = [_unaligned(np.asarray(x), dtype) for x, (_, dtype) in zip(inputs, params, strict=False)]
        for (shape, dtype), array in zip(params, arrays, strict=False):
            assert array.shape == shape, (array.shape, shape, dtype)
        results = [_unaligned(np.zeros(shape), dtype) for shape, dtype in params[len(params) - outputs :]]
        spaces = [runtime.aligned_empty((n,), "uint8", 64) for n in self.plain[name].workspace_bytes]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *results, *spaces)]
        assert self.library[name](*pointers) == 0
        return results[0] if outputs == 1 else results


def _unaligned(values, dtype):
    """A copy whose first element lies on a multiple of its size, but on no larger power of two."""
    item = np.dtype(dtype).itemsize
    raw = np.zeros(values.size * item + 128, np.uint8)
    start = -raw.ctypes.data % 64 + item
    placed = raw[start : start + values.size * item].view(dtype).reshape(values.shape)
    placed[...] = values
    return placed
