"""The MLPerf Tiny models in integers: every tensor equals LiteRT's, and the results TFLite Micro's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_integer_tflite import runner

from deploy.expose import expose_intermediates
from deploy.model import SourceModel, load
from deploy.reference import Reference
from deploy.relax_import import import_model

pytest.importorskip("tvm")
from deploy.integer import to_integer

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models" / "mlperf-tiny"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MODELS.is_dir(), reason="the MLPerf Tiny models are not beside the project"),
]
FILES = {
    "ad": "ad_autoencoder_int8",
    "ic": "ic_resnet8_int8",
    "kws": "kws_dscnn_int8",
    "sww": "sww_int8",
    "vww": "vww_mobilenetv1_int8",
}
GOLDEN = {"single": "litert_reference", "double": "tflite_micro"}


def golden(name: str) -> dict[str, np.ndarray]:
    file = MODELS / f"{FILES[name]}_golden.npz"
    return dict(np.load(file)) if file.exists() else {}


def inputs(source: SourceModel, name: str, count: int) -> list[np.ndarray]:
    """The golden inputs, then smooth random ones around the zero point, which do not saturate."""
    (spec,) = source.inputs
    rng, found = np.random.default_rng(0), [value.reshape(spec.shape) for value in golden(name).get("inputs", [])]
    while len(found) < count:
        noise = rng.normal(0, 10 + 2 * (len(found) % 20), spec.shape)
        smooth = (noise + np.roll(noise, 1, 1) + np.roll(noise, -1, 1)) / 2
        found.append(np.clip(np.round(smooth + spec.zero_point), -128, 127).astype(spec.dtype))
    return found[:count]


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_is_litert_s(name):
    exposed = expose_intermediates(load(MODELS / f"{FILES[name]}.tflite"))
    integer = to_integer(import_model(exposed))
    assert integer.kept_float == ()
    reference, compiled = Reference(exposed), runner(integer.mod)
    for number, value in enumerate(inputs(exposed, name, 12 if name == "vww" else 30)):
        for spec, expected, got in zip(exposed.outputs, reference.run([value]), compiled([value]), strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"{spec.name}, input {number}")


@pytest.mark.parametrize("rounding", GOLDEN)
@pytest.mark.parametrize("name", [name for name in FILES if name != "sww"])
def test_results_are_the_golden_ones(name, rounding):
    source = load(MODELS / f"{FILES[name]}.tflite")
    compiled, stored = runner(to_integer(import_model(source), rounding).mod), golden(name)
    for value, expected in zip(inputs(source, name, 24), stored[GOLDEN[rounding]], strict=True):
        np.testing.assert_array_equal(compiled([value])[0].ravel(), expected.ravel())


@pytest.mark.parametrize("name", FILES)
def test_what_is_left(name):
    integer = to_integer(import_model(load(MODELS / f"{FILES[name]}.tflite")))
    assert not {"quantize", "dequantize", "nn.relu", "nn.softmax", "clip", "nn.avg_pool2d"} & set(integer.after)
    assert integer.after.get("nn.conv2d", 0) == integer.before.get("nn.conv2d", 0)
    assert integer.before["dequantize"] > 0
