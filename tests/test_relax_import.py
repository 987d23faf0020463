"""Import into Relax: the ends are the source's, weights are constants, the meaning is the source framework's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import onnx_models, tflite_models, torch_models

from deploy.errors import InputError
from deploy.model import SourceModel, from_object, load
from deploy.reference import Reference, expose_intermediates, sample_inputs
from deploy.relax_import import RelaxModel, import_model
from deploy.verify import compare, first_failure

tvm = pytest.importorskip("tvm")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the MLPerf Tiny models are not beside the project")

IDS = torch.zeros(1, 8, dtype=torch.int64)
ROWS = torch.zeros(2, 3)


def tflite(tmp_path: Path, data: bytes) -> SourceModel:
    file = tmp_path / "net.tflite"
    file.write_bytes(data)
    return load(file)


def evaluate(model: RelaxModel, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Outputs of the imported module, compiled by TVM without tuning and run by its virtual machine."""
    from tvm import relax

    module = relax.get_pipeline("zero")(model.mod)
    machine = relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    outputs = machine["main"](*[tvm.runtime.tensor(value) for value in inputs])
    return [outputs.numpy()] if hasattr(outputs, "numpy") else [output.numpy() for output in outputs]


def assert_same_meaning(source: SourceModel) -> None:
    """Every intermediate tensor and output as the source framework computes it."""
    exposed = expose_intermediates(source)
    inputs = sample_inputs(exposed, 1, seed=1)[0]
    outputs = evaluate(import_model(exposed), inputs)
    result = compare([spec.name for spec in exposed.outputs], Reference(exposed).run(inputs), outputs)
    assert first_failure(result) is None


def binding_values(model: RelaxModel) -> list[Any]:
    return [binding.value for block in model.mod["main"].body.blocks for binding in block.bindings]


def operators(model: RelaxModel) -> list[str]:
    return [value.op.name for value in binding_values(model) if hasattr(value, "op")]


# --- form


def test_onnx_becomes_plain_relax() -> None:
    model = import_model(from_object(onnx_models.conv_net(1), "net"))
    main = model.mod["main"]
    assert [param.name for param in main.params] == ["input_1"]
    assert model.inputs[0].name == "input.1"
    assert dict(main.attrs) == {"global_symbol": "main"}
    # onnxslim folds the batch norm and the computed shape
    assert operators(model) == [
        f"relax.{name}" for name in ("nn.conv2d", "reshape", "add", "nn.relu", "nn.max_pool2d", "reshape", "matmul")
    ]


def test_tflite_becomes_plain_relax(tmp_path: Path) -> None:
    model = import_model(tflite(tmp_path, tflite_models.conv_net(second_output=True)))
    main = model.mod["main"]
    assert [param.name for param in main.params] == ["x_0"]
    assert dict(main.attrs) == {"global_symbol": "main"}
    assert operators(model).count("relax.nn.conv2d") == 2
    assert [spec.name for spec in model.outputs] == ["y", "logits"]
    assert [tuple(map(int, field.shape.values)) for field in main.ret_ty.fields] == [(1, 5), (1, 5)]


def test_inputs_keep_their_order_types_and_get_c_names() -> None:
    model = import_model(from_object(onnx_models.subtract(), "net"))
    assert [param.name for param in model.mod["main"].params] == ["b", "a", "unused"]
    assert [str(param.ty.dtype) for param in model.mod["main"].params] == ["int32"] * 3
    assert [(spec.name, spec.dtype) for spec in model.outputs] == [("d", "int32"), ("less", "bool")]


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    import_model(from_object(onnx_models.conv_net(1), "net"))
    assert capfd.readouterr() == ("", "")


# --- meaning, tensor by tensor


@pytest.mark.tvm
@pytest.mark.parametrize(
    "make",
    [
        lambda: from_object(onnx_models.conv_net(), "conv", shapes={"input.1": (2, 3, 8, 8)}),
        lambda: from_object(onnx_models.attention(), "attention", shapes={"x": (1, 6, 16)}),
        lambda: from_object(onnx_models.subtract(), "subtract"),
        lambda: from_object(onnx_models.quantized(), "quantized"),
        lambda: from_object(torch_models.transformer_block(), "transformer", (IDS,)),
        lambda: from_object(torch_models.TwoInputs(), "two", (ROWS, ROWS)),
        lambda: from_object(torch_models.HalfNet(), "half", (torch.zeros(1, 3, 8, 8, dtype=torch.float16),)),
    ],
    ids=["conv", "attention", "subtract", "quantized", "transformer", "two", "half"],
)
def test_meaning(make: Any) -> None:
    assert_same_meaning(make())


@pytest.mark.tvm
@pytest.mark.parametrize("make", [tflite_models.conv_net, tflite_models.same_names, tflite_models.int8_dense])
def test_meaning_of_tflite(tmp_path: Path, make: Any) -> None:
    assert_same_meaning(tflite(tmp_path, make()))


@pytest.mark.tvm
@pytest.mark.slow
@pytest.mark.parametrize("make", [torch_models.resnet18, torch_models.mobilenet_v2])
def test_meaning_of_convolutional_networks(make: Any) -> None:
    assert_same_meaning(from_object(make(), "net", (torch.zeros(1, 3, 64, 64),)))


@pytest.mark.tvm
def test_matrix_products_keep_their_type() -> None:
    class Product(torch.nn.Module):
        def forward(self, x: torch.Tensor, i: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            return x @ x.mT, i @ i, torch.addmm(x[0], x[0], x[1], alpha=2, beta=3)

    source = from_object(
        Product(), "p", (torch.zeros(2, 3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.int32))
    )
    assert [spec.dtype for spec in source.outputs] == ["float64", "int32", "float64"]
    assert_same_meaning(source)


@needs_shared
@pytest.mark.parametrize("file", ["ic_resnet8_f32", "vww_mobilenetv1_f32", "ad_autoencoder_f32", "kws_dscnn_int8"])
def test_mlperf_tiny_imports(file: str) -> None:
    model = import_model(load(SHARED / f"{file}.tflite"))
    assert len(model.mod["main"].params) == 1
    assert "relax.matmul" in operators(model)


@needs_shared
@pytest.mark.tvm
def test_mlperf_tiny_autoencoder_means_the_same() -> None:
    source = load(SHARED / "ad_autoencoder_f32.tflite")
    frames = np.fromfile(SHARED / "ad_real_input_640xN_f32.bin", np.float32).reshape(-1, 1, 640)
    result = compare(["y"], Reference(source).run([frames[0]]), evaluate(import_model(source), [frames[0]]))
    assert first_failure(result) is None


# --- what cannot be imported


def message_for(source: SourceModel) -> str:
    with pytest.raises(InputError) as caught:
        import_model(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_unsupported_operators_at_once_onnx() -> None:
    message = message_for(from_object(onnx_models.unsupported(), "odd"))
    assert "Model 'odd'" in message
    assert "Bernoulli (in coin, coin2); my.ops.Relu (in stranger)" in message
    assert "fine" not in message


def test_all_unsupported_operators_at_once_tflite(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    message = message_for(tflite(tmp_path, tflite_models.unsupported()))
    assert "CUSTOM Wobble (in a, d); SKIP_GRAM (in e)" in message
    assert capfd.readouterr() == ("", "")


def test_all_unsupported_operators_at_once_torch() -> None:
    message = message_for(from_object(torch_models.Unsupported(), "odd", (torch.zeros(3, 3),)))
    assert re.search(r"_linalg_det\.default \(in \w+\); special_bessel_j0\.default \(in \w+, \w+\)", message)


def test_tflite_weights_quantized_alone(tmp_path: Path) -> None:
    model = tflite_models.dynamic_range(tflite_models.Builtin.BATCH_MATMUL)
    assert "BATCH_MATMUL (in y)" in message_for(tflite(tmp_path, model))


def test_a_failing_operator_is_named() -> None:
    proto = onnx_models.model(
        [onnx_models.node("CumSum", ["x", "axis"], ["y"], name="running")],
        [onnx_models.value("x", [2, 3]), onnx_models.value("axis", [], onnx_models.TensorProto.INT32)],
        [onnx_models.value("y", [2, 3])],
        {},
    )
    message = message_for(from_object(proto, "odd"))
    assert message.startswith("CumSum (node 'running') of model 'odd' cannot be imported by TVM's onnx frontend: ")
