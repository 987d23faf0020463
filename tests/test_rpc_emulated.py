"""Two emulated aarch64 boards at a tracker, with TVM's real runtime: outputs, tuning, a board that is killed."""

import threading
from dataclasses import replace

import arm64_userland
import numpy as np
import pytest
from rpc_farm import KEY, server, tracker, wait_for_boards
from ssh_boards import TINY
from tuning_support import calling, product

from deploy import pipeline, shell
from deploy.artifact import Artifact
from deploy.device import RunPlan
from deploy.reference import Reference, sample_inputs
from deploy.target_parts import DeviceSpec
from deploy.targets import load_target
from deploy.tuning.board_runner import BoardBench

COMPILER = "aarch64-linux-gnu-gcc"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.tvm,
    pytest.mark.skipif(bool(arm64_userland.missing()), reason=arm64_userland.missing() or "it is there"),
    pytest.mark.skipif(shell.which(COMPILER) is None, reason=f"{COMPILER} is not installed"),
]
PLAN = RunPlan(warmup_s=0, seconds=0.01, min_samples=1, max_samples=2, max_rounds=1)


@pytest.fixture(scope="module")
def lab():
    command = arm64_userland.command("-m", "deploy.cli")
    with tracker() as tracking:
        more = ("--tracker", str(tracking.place), "--key", KEY, "--run-with", arm64_userland.QEMU)
        with server(*more, command=command) as first, server(*more, command=command) as second:
            wait_for_boards(tracking.place, 2)
            yield tracking, [first, second]


@pytest.fixture
def target(lab):
    options = (("tracker", str(lab[0].place)), ("key", KEY), ("timeout", 20.0))
    return replace(load_target("cortex-a76"), device=DeviceSpec("rpc", options))


@pytest.mark.skipif(not TINY.is_dir(), reason=f"there are no models in {TINY}")
@pytest.mark.parametrize("model", ["kws_dscnn_int8", "ic_resnet8_int8"])
def test_integers_are_equal_byte_for_byte(target, model, tmp_path):
    source = pipeline.load_model(TINY / f"{model}.tflite")
    inputs = sample_inputs(source, 2, 1)
    pipeline.build(source, target, out=tmp_path / "out")
    measured = pipeline.measure_artifact(Artifact.open(tmp_path / "out"), target, pipeline.Samples(inputs), PLAN)
    for sample, found in zip(inputs, measured.outputs, strict=True):
        for ours, theirs in zip(found, Reference(source, target.rounding).run(sample), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_candidates_while_a_board_is_killed(target, lab, tmp_path):
    bench = BoardBench.open(target, tmp_path)
    threading.Timer(1.0, lab[1][0].kill_server).start()
    found = list(bench.measure([product(size) for size in range(8, 40, 2)] + [calling("abort")]))
    assert [bool(measured.seconds) for measured in found] == [True] * 16 + [False]
    assert found[-1].reason == "crashed: killed by SIGABRT"
