"""The source framework's own answer, inputs for it, and its intermediate tensors."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import onnx_models, tflite_models, torch_models
from models import tflite_quantized as q

from deploy.errors import InputError
from deploy.model import SourceModel, from_object, load
from deploy.reference import Reference, expose_intermediates, load_inputs, sample_inputs

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the MLPerf Tiny models are not beside the project")
ROWS = torch.zeros(2, 3)
IDS = torch.zeros(1, 8, dtype=torch.int64)


def tflite(tmp_path: Path, data: bytes) -> SourceModel:
    file = tmp_path / "net.tflite"
    file.write_bytes(data)
    return load(file)


def source_of(kind: str, tmp_path: Path) -> SourceModel:
    if kind.startswith("onnx"):
        if kind == "onnx-attention":
            return from_object(onnx_models.attention(), "net", shapes={"x": (1, 6, 16)})
        return from_object(onnx_models.conv_net(1) if kind == "onnx-conv" else onnx_models.quantized(), "net")
    if kind == "torch-two":
        return from_object(torch_models.TwoInputs(), "net", (ROWS, ROWS))
    if kind == "torch-transformer":
        return from_object(torch_models.transformer_block(), "net", (IDS,))
    return tflite(
        tmp_path, tflite_models.conv_net(second_output=True) if kind == "tflite" else tflite_models.int8_dense()
    )


KINDS = ["onnx-conv", "onnx-attention", "onnx-quantized", "tflite", "tflite-int8", "torch-two", "torch-transformer"]


# --- running


def test_onnx_runs_what_was_given() -> None:
    source = from_object(onnx_models.subtract(), "net")
    b, a = np.full((2, 3), 7, np.int32), np.full((2, 3), 2, np.int32)
    difference, less = Reference(source).run([b, a, b])
    np.testing.assert_array_equal(difference, np.full((2, 3), 5))
    np.testing.assert_array_equal(less, np.ones((2, 3), bool))


def test_torch_is_the_module_itself() -> None:
    module = torch_models.transformer_block()
    source = from_object(module, "net", (IDS,))
    ids = torch.arange(8).reshape(1, 8)
    outputs = Reference(source).run([ids.numpy()])
    for output, expected in zip(outputs, module(ids), strict=True):
        np.testing.assert_allclose(output, expected.detach().numpy(), rtol=0, atol=1e-6)


def test_torch_inputs_by_keyword_and_threads_restored(tmp_path: Path) -> None:
    program = torch.export.export(torch_models.TwoInputs(), (), {"right": ROWS + 1, "left": ROWS})
    source = from_object(program, "net")
    values = {"left": np.full((2, 3), 5, np.float32), "right": np.full((2, 3), 1, np.float32)}
    threads = torch.get_num_threads()
    outputs = Reference(source).run([values[spec.name] for spec in source.inputs])
    np.testing.assert_array_equal(outputs[1], np.full((2, 3), 9, np.float32))
    assert torch.get_num_threads() == threads


def test_int8_tflite_follows_the_specification(tmp_path: Path) -> None:
    source = tflite(tmp_path, tflite_models.int8_dense())
    (output,) = Reference(source).run([np.array([[3, 23, -17, 103]], np.int8)])
    real = 0.05 * (np.array([3, 23, -17, 103]) - 3) @ (0.02 * np.arange(-6, 6).reshape(3, 4)).T + 0.001 * np.array(
        [10, -20, 30]
    )
    np.testing.assert_array_equal(output, [np.round(real / 0.04).astype(int) - 5])


@needs_shared
@pytest.mark.parametrize("name", ["kws_dscnn_int8", "ad_autoencoder_int8", "ic_resnet8_int8"])
def test_int8_models_agree_with_their_golden_outputs(name: str) -> None:
    source = load(SHARED / f"{name}.tflite")
    golden = SHARED / f"{name}_golden.npz"
    sets = load_inputs(golden, source)
    reference = Reference(source)
    expected = np.load(golden)["litert_reference"]
    assert len(sets) == len(expected) == 24
    for inputs, output in zip(sets, expected, strict=True):
        np.testing.assert_array_equal(reference.run(inputs)[0].reshape(output.shape), output)


def test_inputs_are_checked() -> None:
    reference = Reference(from_object(onnx_models.conv_net(1), "net"))
    with pytest.raises(InputError, match="takes 1 inputs, not 0"):
        reference.run([])
    with pytest.raises(InputError, match=r"is float64 of shape \[1, 3, 8, 8\]; the model takes float32"):
        reference.run([np.zeros((1, 3, 8, 8))])
    with pytest.raises(InputError, match=r"shape \[1, 3, 8\]; the model takes float32 of shape \[1, 3, 8, 8\]"):
        reference.run([np.zeros((1, 3, 8), np.float32)])


def test_a_framework_that_refuses_is_quoted() -> None:
    with pytest.raises(InputError, match="ONNX Runtime cannot load model 'odd': "):
        Reference(from_object(onnx_models.unsupported(), "odd"))


# --- the other rounding of TFLite


def test_double_rounding_is_tflite_micro_s(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro", reason="TFLite Micro is not installed")
    net = q.Net(0)
    x = net.input(1, 7, 7, 5)
    net.transpose_conv(net.conv(x, 6, 3), 4, 3, 2, padding=1)
    source = tflite(tmp_path, net.pack())
    single, double = Reference(source), Reference(source, "double")
    assert (single.name.split()[0], double.name.split()[:2]) == ("LiteRT", ["TFLite", "Micro"])
    for seed in range(3):  # each run starts afresh, and gives arrays of its own
        inputs = net.data(seed)
        outputs, again = double.run(inputs), double.run(inputs)
        for spec, expected, one, other in zip(source.outputs, single.run(inputs), outputs, again, strict=True):
            assert (one.shape, one.dtype.name) == (spec.shape, spec.dtype)
            assert np.abs(one.astype(int) - expected).max() <= 1
            np.testing.assert_array_equal(one, other)
            assert not np.shares_memory(one, other)


def test_double_rounding_reaches_intermediate_tensors(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro", reason="TFLite Micro is not installed")
    net = q.Net(0)
    net.dense(net.dense(net.input(4, 33), 17), 5)
    net.outputs = net.outputs[-1:]
    source = tflite(tmp_path, net.pack())
    exposed = expose_intermediates(source)
    before, after = (Reference(one, "double").run(net.data(1)) for one in (source, exposed))
    np.testing.assert_array_equal(before[0], after[0])
    assert [value.shape for value in after] == [(4, 5), (4, 17)]


def test_the_rounding_is_of_quantized_tflite_models_only(tmp_path: Path) -> None:
    for source, name in ((tflite(tmp_path, tflite_models.conv_net()), "LiteRT"),
                         (from_object(onnx_models.quantized(), "net"), "ONNX Runtime")):  # fmt: skip
        assert Reference(source, "double").name.startswith(name)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tflite(tmp_path, tflite_models.int8_dense())
    monkeypatch.setitem(sys.modules, "tflite_micro", None)  # how Python itself notes that a module is not there
    with pytest.raises(InputError, match=r"'net'.* TFLite Micro.* pip install tflite-micro .*: single"):
        Reference(source, "double")
    assert Reference(source).run([np.zeros((1, 4), np.int8)])


def test_what_tflite_micro_does_not_have_is_quoted(tmp_path: Path) -> None:
    pytest.importorskip("tflite_micro", reason="TFLite Micro is not installed")
    net = q.Net(0)
    net.unary(tflite_models.Builtin.RELU_N1_TO_1, net.input(2, 3))
    with pytest.raises(InputError, match="TFLite Micro cannot load model 'net': "):
        Reference(tflite(tmp_path, net.pack()), "double")


# --- intermediate tensors


@pytest.mark.parametrize("kind", KINDS)
def test_exposing_changes_no_output(kind: str, tmp_path: Path) -> None:
    source = source_of(kind, tmp_path)
    exposed = expose_intermediates(source)
    count = len(source.outputs)
    assert exposed.outputs[:count] == source.outputs
    inputs = sample_inputs(source, 1, seed=3)[0]
    before, after = Reference(source).run(inputs), Reference(exposed).run(inputs)
    assert len(after) == len(exposed.outputs)
    for expected, output in zip(before, after, strict=False):
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 if expected.dtype.kind == "f" else 0)
    for spec, value in zip(exposed.outputs, after, strict=True):
        assert (value.shape, value.dtype.name) == (spec.shape, spec.dtype)


def added(kind: str, tmp_path: Path) -> list[str]:
    source = source_of(kind, tmp_path)
    return [spec.name for spec in expose_intermediates(source).outputs[len(source.outputs) :]]


def test_intermediates_are_in_order_and_without_constants(tmp_path: Path) -> None:
    assert added("tflite", tmp_path) == ["conv", "depthwise", "pool", "flat"]
    assert added("onnx-quantized", tmp_path)[-3:] == ["c", "r", "rq"]
    assert "wd" not in added("onnx-quantized", tmp_path)  # dequantized weights
    assert added("tflite-int8", tmp_path) == []


def test_a_value_is_seen_before_it_is_overwritten() -> None:
    exposed = expose_intermediates(from_object(torch_models.TwoInputs(), "net", (ROWS, ROWS)))
    left, right = np.full((2, 3), 1, np.float32), np.full((2, 3), 2, np.float32)
    values = dict(zip((spec.name for spec in exposed.outputs), Reference(exposed).run([left, right]), strict=True))
    np.testing.assert_array_equal(values["mul_1"], np.full((2, 3), -9, np.float32))
    np.testing.assert_array_equal(values["relu"], np.zeros((2, 3), np.float32))


# --- inputs


def test_samples_fit_their_type(tmp_path: Path) -> None:
    (floats,) = sample_inputs(from_object(onnx_models.conv_net(1), "net"), 1, 0)[0]
    assert floats.dtype == np.float32
    assert floats.min() < 0 < floats.max()
    (ids,) = sample_inputs(from_object(torch_models.transformer_block(), "net", (IDS,)), 1, 0)[0]
    assert ids.dtype == np.int64
    assert ids.min() >= 0
    quantized = np.stack([s[0] for s in sample_inputs(tflite(tmp_path, tflite_models.int8_dense()), 500, 0)])
    assert quantized.dtype == np.int8
    assert (quantized.min(), quantized.max()) == (-128, 127)


def test_samples_repeat_with_their_seed() -> None:
    source = from_object(torch_models.TwoInputs(), "net", (ROWS, ROWS))
    first, again, other = (sample_inputs(source, 3, seed) for seed in (1, 1, 2))
    assert [len(inputs) for inputs in first] == [2, 2, 2]
    for left, right, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(left[0], right[0])
        assert not np.array_equal(left[0], left[1])
        assert not np.array_equal(left[0], different[0])


def test_inputs_from_files(tmp_path: Path) -> None:
    one = from_object(onnx_models.conv_net(1), "one")
    image = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "batched.npy", image)
    np.save(tmp_path / "stacked.npy", image[:, None])
    np.save(tmp_path / "single.npy", image[:1])
    np.savez(tmp_path / "named.npz", **{"input.1": image, "labels": np.arange(5)})
    np.savez(tmp_path / "inputs.npz", inputs=image, expected=np.zeros(5))
    np.savez(tmp_path / "any.npz", whatever=image)
    for name, count in {
        "batched.npy": 5,
        "stacked.npy": 5,
        "single.npy": 1,
        "named.npz": 5,
        "inputs.npz": 5,
        "any.npz": 5,
    }.items():
        sets = load_inputs(tmp_path / name, one)
        assert len(sets) == count
        np.testing.assert_array_equal(sets[-1][0], image[count - 1 : count])
    two = from_object(torch_models.TwoInputs(), "two", (ROWS, ROWS))
    np.savez(tmp_path / "two.npz", right=np.ones((4, 2, 3), np.float32), left=np.zeros((4, 2, 3), np.float32))
    sets = load_inputs(tmp_path / "two.npz", two)
    assert [float(value.max()) for value in sets[3]] == [0.0, 1.0]


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("missing.npz", None, "do not exist"),
        ("inputs.csv", b"1,2", "are not a NumPy file"),
        ("broken.npz", b"PK\x03\x04" + bytes(40), "cannot be read"),
        ("empty.npy", b"", "cannot be read"),
        ("cut.npz", npz(left=np.zeros((2, 3)))[:60], "cannot be read"),
        (
            "huge.npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1024), }".ljust(117)
            + b"\n",
            "cannot be read",
        ),
        ("objects.npz", npz(left=np.array([{}], object)), "cannot be read"),
        ("lacks.npz", npz(left=np.zeros((2, 3), np.float32)), "lack 'right'; the file has 'left'"),
        (
            "type.npz",
            npz(left=np.zeros((2, 3)), right=np.zeros((2, 3))),
            r"'left' is float64, but the model takes float32",
        ),
        (
            "shape.npz",
            npz(left=np.zeros((3, 2), "f"), right=np.zeros((2, 3), "f")),
            r"\[3, 2\]; it must be \[2, 3\], or \[samples, 2, 3\]",
        ),
        (
            "counts.npz",
            npz(left=np.zeros((2, 2, 3), "f"), right=np.zeros((3, 2, 3), "f")),
            "2 for 'left', 3 for 'right'",
        ),
        ("none.npz", npz(left=np.zeros((0, 2, 3), "f"), right=np.zeros((0, 2, 3), "f")), "at least one"),
    ],
)
def test_wrong_input_files(tmp_path: Path, name: str, data: bytes | None, expected: str) -> None:
    file = tmp_path / name
    if data is not None:
        file.write_bytes(data)
    source = from_object(torch_models.TwoInputs(), "two", (ROWS, ROWS))
    with pytest.raises(InputError, match=expected) as caught:
        load_inputs(file, source)
    assert str(file) in str(caught.value)


def test_one_array_for_two_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros((2, 3), np.float32))
    source = from_object(torch_models.TwoInputs(), "two", (ROWS, ROWS))
    with pytest.raises(InputError, match=r"has 2 inputs; save an .npz with the arrays 'left', 'right'"):
        load_inputs(tmp_path / "one.npy", source)
