"""Calling a compiled model: from C's point of view through ctypes, from Python, from TVM; from threads and forks."""

import ctypes
import gc
import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from built import assert_correct, build, host, new_folder, torch_source
from torch import nn

import deploy
from deploy import shell
from deploy.errors import InputError, ToolError
from deploy.runtime import DTYPE_CODES, Model, _Tensor, aligned_empty

pytestmark = pytest.mark.tvm

OK, NULL, ARENA_TOO_SMALL, ARENA_MISALIGNED, MISALIGNED, WRONG_COUNT, WRONG_DTYPE, WRONG_SHAPE = range(8)
SHAPES = ((1, 3, 32, 32), (5,)), ((1, 4, 16, 16), (5,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 4, 1))

    def forward(self, image, numbers):
        return self.net(image), numbers * 2


@cache
def artifact(threads=1):
    source = torch_source(Net(), torch.rand(SHAPES[0][0]), torch.zeros(5, dtype=torch.int64), name="net")
    built = build(source, host(threads))
    assert_correct(source, built)
    return built


@cache
def model():
    return Model(artifact().path)


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(SHAPES[0][0]).astype(np.float32), rng.integers(-9, 9, 5)


# --- C


class Call:
    """The arguments of `net_call`, all right at first; a test spoils one."""

    def __init__(self):
        self.arrays = [*data(), np.zeros(SHAPES[1][0], np.float32), np.zeros(5, np.int64)]
        self.arena = aligned_empty((artifact().arena_bytes + 64,), "uint8", 64)
        self.tensors = (_Tensor * 4)()
        for tensor, array in zip(self.tensors, self.arrays, strict=True):
            tensor.data, tensor.ndim, tensor.dtype = array.ctypes.data, array.ndim, DTYPE_CODES[str(array.dtype)]
            tensor.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.counts = [2, 2]
        self.pointer, self.nbytes = self.arena.ctypes.data, artifact().arena_bytes
        self.inputs = ctypes.addressof(self.tensors)
        self.outputs = self.inputs + 2 * ctypes.sizeof(_Tensor)

    def run(self):
        library = ctypes.CDLL(str(artifact().library))
        library.net_status_text.restype = ctypes.c_char_p
        ends = ctypes.c_void_p(self.inputs), self.counts[0], ctypes.c_void_p(self.outputs), self.counts[1]
        status = library.net_call(*ends, ctypes.c_void_p(self.pointer), ctypes.c_size_t(self.nbytes))
        return status, library.net_status_text(status).decode()


def test_a_right_call_computes():
    call = Call()
    assert call.run() == (OK, "ok")
    np.testing.assert_array_equal(call.arrays[2], model()(*data())[0])
    np.testing.assert_array_equal(call.arrays[3], data()[1] * 2)


def spoil(attribute, index=None, name=None):
    def change(call, value):
        if name is not None:
            setattr(call.tensors[index], name, value)
        elif index is not None:
            getattr(call, attribute)[index] = value
        else:
            setattr(call, attribute, value)

    return change


WRONG = {
    "no inputs": (spoil("inputs"), lambda c: None, NULL),
    "no outputs": (spoil("outputs"), lambda c: None, NULL),
    "no input data": (spoil("tensors", 1, "data"), lambda c: None, NULL),
    "no output data": (spoil("tensors", 2, "data"), lambda c: None, NULL),
    "no shape": (spoil("tensors", 0, "shape"), lambda c: None, NULL),
    "no arena": (spoil("pointer"), lambda c: None, NULL),
    "small arena": (spoil("nbytes"), lambda c: c.nbytes - 1, ARENA_TOO_SMALL),
    "empty arena": (spoil("nbytes"), lambda c: 0, ARENA_TOO_SMALL),
    "misaligned arena": (spoil("pointer"), lambda c: c.pointer + 32, ARENA_MISALIGNED),
    "misaligned input": (spoil("tensors", 0, "data"), lambda c: c.arrays[0].ctypes.data + 2, MISALIGNED),
    "misaligned output": (spoil("tensors", 3, "data"), lambda c: c.arrays[3].ctypes.data + 4, MISALIGNED),
    "one input": (spoil("counts", 0), lambda c: 1, WRONG_COUNT),
    "three outputs": (spoil("counts", 1), lambda c: 3, WRONG_COUNT),
    "a negative number of inputs": (spoil("counts", 0), lambda c: -1, WRONG_COUNT),
    "float64 for float32": (spoil("tensors", 0, "dtype"), lambda c: DTYPE_CODES["float64"], WRONG_DTYPE),
    "an unknown type": (spoil("tensors", 3, "dtype"), lambda c: 99, WRONG_DTYPE),
    "one axis too few": (spoil("tensors", 0, "ndim"), lambda c: 3, WRONG_SHAPE),
    "another size": (spoil("tensors", 2, "shape"), lambda c: (ctypes.c_int64 * 4)(1, 4, 16, 17), WRONG_SHAPE),
    "a negative size": (spoil("tensors", 1, "shape"), lambda c: (ctypes.c_int64 * 1)(-5), WRONG_SHAPE),
}


@pytest.mark.parametrize("case", WRONG)
def test_every_wrong_call_is_refused_and_computes_nothing(case):
    change, value, expected = WRONG[case]
    call = Call()
    change(call, value(call))
    status, text = call.run()
    assert status == expected
    assert text not in ("ok", "unknown status")
    assert not call.arrays[2].any()
    assert not call.arrays[3].any()


def test_run_checks_its_pointers_too():
    library, call = ctypes.CDLL(str(artifact().library)), Call()
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in call.arrays]
    rest = ctypes.c_void_p(call.pointer), ctypes.c_size_t(call.nbytes)
    assert library.net_run(*pointers, *rest) == OK
    assert library.net_run(None, *pointers[1:], *rest) == NULL
    assert library.net_run(*pointers[:3], None, *rest) == NULL
    assert library.net_run(*pointers, None, rest[1]) == NULL
    assert library.net_run(*pointers, rest[0], ctypes.c_size_t(0)) == ARENA_TOO_SMALL


def test_every_status_has_a_sentence():
    library = ctypes.CDLL(str(artifact().library))
    library.net_status_text.restype = ctypes.c_char_p
    texts = [library.net_status_text(status).decode() for status in range(9)]
    assert len(set(texts)) == 9
    assert library.net_status_text(77) == library.net_status_text(-1) == b"unknown status"


def test_tensors_need_no_more_than_their_elements_alignment():
    call = Call()
    expected = model()(*data())[0]
    for index in (0, 2):
        raw = np.zeros(call.arrays[index].nbytes + 64, np.uint8)
        start = -raw.ctypes.data % 64 + 4
        placed = raw[start : start + call.arrays[index].nbytes].view(np.float32).reshape(call.arrays[index].shape)
        placed[...] = call.arrays[index]
        call.tensors[index].data, call.arrays[index] = placed.ctypes.data, placed
    assert call.run()[0] == OK
    np.testing.assert_array_equal(call.arrays[2], expected)


def test_the_arena_is_not_overrun():
    call = Call()
    call.arena[call.nbytes :] = 0xA5
    assert call.run()[0] == OK
    assert (call.arena[call.nbytes :] == 0xA5).all()


# --- Python


def test_it_is_called_like_a_function():
    image, numbers = data()
    outputs = deploy.load(artifact().path)(image, numbers)
    with torch.no_grad():
        expected = Net().eval()(torch.from_numpy(image), torch.from_numpy(numbers))
    np.testing.assert_allclose(outputs[0], expected[0].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(outputs[1], expected[1].numpy())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (data()[:1], r"the model takes 2 arrays \(\w+, \w+\), not 1"),
        ((*data(), 1), r"the model takes 2 arrays \(\w+, \w+\), not 3"),
        ((data()[0].astype(float), data()[1]), r"\w+ is float64, the model takes float32: use .astype\('float32'\)"),
        ((data()[0], data()[1].astype(np.int32)), "is int32, the model takes int64"),
        ((data()[0][0], data()[1]), r"has shape \[3, 32, 32\], the model takes \[1, 3, 32, 32\]"),
        ((data()[0], data()[1][:4]), r"has shape \[4\], the model takes \[5\]"),
        ((None, data()[1]), "is object, the model takes float32"),
        (("text", data()[1]), "the model takes float32"),
        (([[1], [2, 3]], data()[1]), "is not an array"),
    ],
)
def test_wrong_arrays_are_input_errors(arrays, message):
    with pytest.raises(InputError, match=message):
        model()(*arrays)


def test_arrays_that_are_not_contiguous_are_taken():
    image, numbers = data()
    turned = np.ascontiguousarray(image.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0)
    assert not turned.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(model()(turned, numbers)[0], model()(image, numbers)[0])
    wide = np.repeat(numbers, 2)[::2]
    np.testing.assert_array_equal(model()(image, wide)[1], numbers * 2)


def test_outputs_of_two_calls_are_different_arrays():
    first = model()(*data(1))[0]
    kept = first.copy()
    model()(*data(2))
    np.testing.assert_array_equal(first, kept)


def test_a_prepared_call_reads_its_inputs_anew():
    prepared = model().prepare(*data())
    prepared.run()
    prepared.inputs[1][...] = 21
    prepared.run()
    assert (prepared.outputs[1] == 42).all()


def test_the_call_alone_keeps_its_memory():
    run = model().prepare(*data()).run
    gc.collect()
    spray = [np.full(data()[0].nbytes, 255, np.uint8) for _ in range(50)]  # takes the place of what was freed
    run()
    assert all((array == 255).all() for array in spray)


def test_a_prepared_call_may_run_in_another_thread():
    """Its arena is its own: another thread's calls at the same time change nothing."""
    prepared, expected = model().prepare(*data(7)), model()(*data(7))[0]
    wrong, interval = [], sys.getswitchinterval()

    def repeat():
        for _ in range(2000):
            prepared.run()
            if not np.array_equal(prepared.outputs[0], expected):
                wrong.append(prepared.outputs[0].copy())

    thread = threading.Thread(target=repeat)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        for _ in range(2000):
            model()(*data(8))
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_library_that_cannot_be_loaded_is_said():
    folder = new_folder()
    for name in ("manifest.json", "libmodel.so"):
        (folder / name).write_bytes((artifact().path / name).read_bytes())
    (folder / "libmodel.so").write_bytes(b"\x7fELF")
    with pytest.raises(ToolError, match=r"cannot load .*libmodel.so: .*; build the artifact on this kind of machine"):
        Model(folder)


def test_a_library_of_another_model_is_said():
    folder = new_folder()
    (folder / "manifest.json").write_text((artifact().path / "manifest.json").read_text().replace('"net"', '"other"'))
    (folder / "libmodel.so").write_bytes(artifact().library.read_bytes())
    with pytest.raises(ToolError, match="has no function other_call"):
        Model(folder)


def test_an_artifact_that_was_built_again_is_loaded_again():
    path = new_folder() / "artifact"
    for factor in (2, 3):
        from deploy import compile as compiling

        compiling.build(torch_source(lambda _, x, f=factor: x * f, torch.rand(4)), host(), path)
        assert Model(path)(np.ones(4, np.float32)).tolist() == [factor] * 4


# --- threads


@pytest.mark.parametrize("threads", [1, 2])
def test_only_several_threads_need_the_pool(threads):
    symbols = shell.run(["nm", artifact(threads).path / "src" / "kernels.o"], timeout_s=10).stdout
    assert ("__TVMBackendParallelLaunch" in symbols) == (threads > 1)
    assert (artifact(threads).path / "src" / "pool.c").exists() == (threads > 1)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_many_callers_at_once(threads):
    loaded = Model(artifact(threads).path)
    expected = [model()(*data(seed))[0] for seed in range(4)]
    wrong = []

    def caller(seed):
        for _ in range(60):
            if not np.array_equal(loaded(*data(seed))[0], expected[seed]):
                wrong.append(seed)

    callers = [threading.Thread(target=caller, args=(seed,)) for seed in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("threads", [2, 4])
def test_thousands_of_calls_in_a_row(threads):
    """Workers that spin, sleep and are woken again never miss a loop."""
    prepared, expected = Model(artifact(threads).path).prepare(*data()), model()(*data())[0]
    for index in range(2000):
        prepared.outputs[0][...] = 0
        prepared.run()
        assert np.array_equal(prepared.outputs[0], expected), index
        if index % 500 == 0:
            threading.Event().wait(0.01)  # longer than workers spin


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_forked_process_computes_too(threads):
    """The pool's workers do not exist in a child: it starts its own, and the parent's go on."""
    loaded, expected = Model(artifact(threads).path), model()(*data())[0]
    assert np.array_equal(loaded(*data())[0], expected)
    prepared = loaded.prepare(*data())
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            prepared.run()
            os._exit(0 if np.array_equal(prepared.outputs[0], expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert np.array_equal(loaded(*data())[0], expected)


@pytest.mark.parametrize("threads", [2, 4])
def test_a_process_ends_with_the_pool_asleep_and_after_a_fork(threads):
    program = (
        "import os, sys, numpy as np, deploy\n"
        "model = deploy.load(sys.argv[1])\n"
        "call = model.prepare(*(np.ones(s.shape, s.dtype) for s in model.inputs))\n"
        "call.run()\n"
        "if os.fork() == 0:\n"
        "    call.run()\n"
        "else:\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))\n"
    )
    root = os.path.dirname(os.path.dirname(deploy.__file__))
    shell.run([sys.executable, "-c", program, artifact(threads).path], timeout_s=30, env={"PYTHONPATH": root})


def test_the_pools_threads_take_no_signals():
    """A signal for the program must reach its own threads."""
    loaded = Model(artifact(4).path)
    loaded(*data())
    masks = []
    for task in Path("/proc/self/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        masks += [int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:")]
    assert sum(mask >> (signal.SIGINT - 1) & 1 for mask in masks) >= 3


# --- TVM


def test_tvm_calls_the_same_file():
    function = tvm.runtime.load_module(str(artifact().library))["net"]
    outputs = [
        tvm.runtime.tensor(np.zeros(shape, dtype)) for shape, dtype in zip(SHAPES[1], ("float32", "int64"), strict=True)
    ]
    function(*[tvm.runtime.tensor(array) for array in data()], *outputs)
    for ours, theirs in zip(model()(*data()), outputs, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t[:3], TypeError, "expected the model's inputs, then its outputs, as tensors"),
        (lambda t: [1, *t[1:]], TypeError, "every argument must be a tensor: the inputs, then the outputs"),
        (lambda t: [t[2], t[1], t[2], t[3]], ValueError, "a shape is not the model's"),
        (lambda t: [t[1], *t[1:]], ValueError, "an element type is not the model's"),
    ],
)
def test_tvm_gets_an_exception_with_our_words(change, error, message):
    function = tvm.runtime.load_module(str(artifact().library))["net"]
    arrays = [*data(), np.zeros(SHAPES[1][0], np.float32), np.zeros(5, np.int64)]
    with pytest.raises(error, match=message):
        function(*change([tvm.runtime.tensor(array) for array in arrays]))


def test_torch_tensors_go_through_tvm_without_a_copy_only_if_dense():
    function = tvm.runtime.load_module(str(artifact().library))["net"]
    image, numbers = map(torch.from_numpy, data())
    out, doubled = torch.zeros(SHAPES[1][0]), torch.zeros(5, dtype=torch.int64)
    function(image, numbers, out, doubled)
    np.testing.assert_array_equal(out.numpy(), model()(*data())[0])
    with pytest.raises(ValueError, match="tensors must be dense and row-major"):
        function(image.permute(0, 1, 3, 2), numbers, out, doubled)
