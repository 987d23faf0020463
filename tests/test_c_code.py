"""Kernels as C99: exact numbers, nothing of TVM's, and what a strict compiler accepts."""

import ctypes

import numpy as np
import pytest
import torch
from built import build, host, torch_source
from firmware_support import ARM
from torch import nn
from tvm import te, tirx
from tvm.target import Target as TvmTarget

from deploy import compile as compiling
from deploy import pipeline, reference, shell
from deploy.device.protocol import RunPlan
from deploy.errors import InputError
from deploy.kernels.c_code import c_file
from deploy.kernels.plain import to_plain
from deploy.progress import Silent
from deploy.targets import in_portable_c, load_target

pytestmark = pytest.mark.tvm
C = TvmTarget({"kind": "c"})


def compiled(folder, compute, *inputs):
    """The C text of a computation, and what it gives for arrays, strictly compiled for this machine."""
    places = [te.placeholder(array.shape, array.dtype.name, f"p{index}") for index, array in enumerate(inputs)]
    result = compute(*places)
    func = te.create_prim_func([*places, result])
    text = c_file([to_plain(func, "kernel", C)], {"kernel": len(inputs)}, "a test")
    (folder / "kernel.c").write_text(text)
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsanitize=shift", "-fPIC", "-shared"]
    trap = "-fsanitize-undefined-trap-on-error"
    shell.run(["cc", *strict, trap, "kernel.c", "-lm", "-o", "kernel.so"], timeout_s=60, cwd=folder)
    output = np.zeros([int(d) for d in result.shape], str(result.dtype))
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, output)]
    assert ctypes.CDLL(str(folder / "kernel.so")).kernel(*pointers) == 0
    return text, output


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_exact(tmp_path, dtype):
    numbers = [0.1, -1 / 3, 1.23456789e-30, 3.4028234e38, float("inf"), float("-inf"), -0.0, 16777217.0]

    def sums(x):
        def value(i):
            result = tirx.const(0.0, dtype)
            for index, number in enumerate(numbers):
                result = tirx.Select(i == index, x[i] * tirx.const(number, dtype), result)
            return result

        return te.compute(x.shape, value)

    x = np.full(len(numbers), 1, dtype)
    _, found = compiled(tmp_path, sums, x)
    np.testing.assert_array_equal(found, np.array(numbers, dtype))


def test_nothing_is_left_of_tvm_and_inputs_are_const(tmp_path):
    x = np.arange(-4, 4, dtype=np.int32)
    text, found = compiled(tmp_path, lambda x: te.compute(x.shape, lambda i: (x[i] << tirx.const(3, "int32")) - 1), x)
    np.testing.assert_array_equal(found, x * 8 - 1)
    assert "int32_t kernel(const int32_t* p0_ptr, int32_t* " in text
    assert not {word for word in ("tvm/", "TVM_DLL", "TVM_EXPORTS", "ffi", "__cplusplus") if word in text}


@pytest.mark.parametrize("name", ["host", pytest.param("cortex-m4-mps2", marks=ARM)])
def test_a_float_model_in_c(name):
    """With the mathematics of the C library; other kernels give what LLVM's do."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.GELU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(16, 5), nn.Softmax(-1)]
    source = torch_source(nn.Sequential(*layers), torch.rand(1, 2, 6, 6))
    target = in_portable_c(host() if name == "host" else load_target(name))
    samples = pipeline.Samples(reference.sample_inputs(source, 2, seed=1))
    artifact = build(source, target)
    plan = RunPlan(warmup_s=0.0, seconds=0.01, min_samples=1)
    found = pipeline.measure_artifact(artifact, target, samples, plan)
    assert pipeline.verify_outputs(source, samples, found.outputs, target)[0].passed
    assert "expf(" in (artifact.path / "src" / "kernels.c").read_text()
    assert artifact.facts["target"]["tvm"]["kind"] == "c"


def test_c_is_not_tuned(tmp_path):
    source = torch_source(nn.Linear(4, 3), torch.rand(1, 4))
    with pytest.raises(InputError, match="in C are not tuned: another compiler decides; use `--trials 0`"):
        pipeline.tune(source, in_portable_c(host()), 4, Silent(), tmp_path)
    assert compiling.lower_for(source, in_portable_c(host())).kernels
