"""Operator counts and multiply-accumulates."""

import pytest
import torch
from built import SHARED, torch_source
from torch import nn

from deploy import model, operators
from deploy.relax_import import import_model

pytestmark = pytest.mark.tvm


def count(module, *examples):
    return operators.count(import_model(torch_source(module, *examples)).mod)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is not there")
@pytest.mark.parametrize(
    ("name", "macs"),
    [("ic_resnet8_f32", 12_501_632), ("vww_mobilenetv1_f32", 7_489_664), ("ad_autoencoder_f32", 264_192)],
)
def test_known_models(name, macs):
    source = model.load(SHARED / "models" / "mlperf-tiny" / f"{name}.tflite")
    assert operators.count(import_model(source).mod)[1] == macs


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3), (1, 3, 9, 7), 7 * 5 * 8 * 3 * 9),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 8, 8), 2 * 4 * 4 * 8 * 3 * 9),
        (nn.Conv2d(8, 16, 3, groups=4), (1, 8, 5, 5), 3 * 3 * 16 * 2 * 9),
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 5, 5), 3 * 3 * 8 * 9),
        (nn.Conv1d(4, 6, 5), (1, 4, 10), 6 * 6 * 4 * 5),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3), 2 * 2 * 2 * 3 * 2 * 8),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (1, 4, 5, 5), 4 * 5 * 5 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 4 * 5 * 5 * 3 * 9),
        (nn.Linear(10, 7), (3, 10), 3 * 10 * 7),
        (nn.Linear(10, 7), (2, 3, 10), 6 * 10 * 7),
        (nn.ReLU(), (3, 10), 0),
    ],
    ids=str,
)
def test_multiply_accumulates(module, shape, macs):
    assert count(module, torch.rand(shape))[1] == macs


def test_batched_product_of_two_inputs():
    assert count(lambda _, a, b: a @ b, torch.rand(4, 3, 5), torch.rand(4, 5, 2))[1] == 4 * 3 * 5 * 2


def test_operators_are_counted_by_name():
    counts, _ = count(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()), torch.rand(1, 3, 9, 9)
    )
    assert {name: counts[name] for name in ("nn.conv2d", "nn.relu")} == {"nn.conv2d": 2, "nn.relu": 2}
