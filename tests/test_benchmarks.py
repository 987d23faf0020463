"""The benchmark programs: their arithmetic, and every peer on a model that is made here."""

import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import cortex_m
import numpy as np
import onnx
import peers
import pytest
import rounds
import x86
from firmware_support import ARM
from hypothesis import given
from hypothesis import strategies as st
from models import tflite_quantized
from onnx import TensorProto, helper, numpy_helper
from peers import PEERS, LiteRT, OnnxRuntime, OpenVino, Prepared, Unavailable
from rich.console import Console

from deploy.errors import InputError
from deploy.reference import Reference, sample_inputs

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT.parent / "shared" / "models" / "mlperf-tiny"
OPTIONS = Namespace(target="host", threads=1, trials=8, rounds=2, turn_ms=1, json=True)
TINY_INT8 = ("ad_autoencoder", "ic_resnet8", "kws_dscnn", "sww", "vww_mobilenetv1")
needs_tiny = pytest.mark.skipif(not TINY.is_dir(), reason="the MLPerf Tiny models are not beside this checkout")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    """A convolution with a ReLU, large enough that 16-bit floats would show."""
    random = np.random.default_rng(1)
    weights = numpy_helper.from_array(random.standard_normal((8, 3, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    shapes = {"x": [1, 3, 12, 10], "y": [1, 8, 12, 10]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "conv", values[:1], values[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "conv.onnx"
    onnx.save(model, path)
    return path


def prepare(peer, path):
    """The peer with the model, its inputs and what the model's own framework computes; skips without its package."""
    from deploy import model

    source = model.load(path)
    inputs = sample_inputs(source, 1, seed=0)[0]
    try:
        return peer.prepare(path, inputs, 1), Reference(source).run(inputs)
    except Unavailable as reason:
        if "not installed" in str(reason):
            pytest.skip(str(reason))
        raise


@pytest.mark.parametrize("peer", [OnnxRuntime(), OpenVino()], ids=lambda peer: peer.name)
def test_a_peer_computes_an_onnx_model(peer, onnx_model):
    prepared, reference = prepare(peer, onnx_model)
    prepared.run()
    assert peers.disagreement(prepared.outputs(), reference) == ""


@needs_tiny
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
@pytest.mark.parametrize("name", ["ic_resnet8_f32", "ad_autoencoder_f32"])
def test_a_peer_computes_a_tflite_model(peer, name):
    prepared, reference = prepare(peer, TINY / f"{name}.tflite")
    prepared.run()
    assert peers.disagreement(prepared.outputs(), reference) == ""


def test_a_peer_that_cannot_read_the_format_says_so(onnx_model):
    ready, missing = x86.prepare_peers([LiteRT()], onnx_model, [], 1)
    assert ready == {}
    assert missing == {"LiteRT": "reads .tflite only"}


def test_a_peer_that_is_not_installed_says_how_to_install_it(onnx_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    _, missing = x86.prepare_peers([OpenVino()], onnx_model, [], 1)
    assert missing == {"OpenVINO": "openvino is not installed: pip install '.[bench]'"}


def test_a_damaged_tflite_is_a_reason_and_not_a_crash(tmp_path):
    path = tmp_path / "broken.tflite"
    path.write_bytes(b"\x18\0\0\0TFL3" + bytes(64))
    pytest.importorskip("tflite2onnx", reason="tflite2onnx is not installed")
    with pytest.raises(Unavailable, match="cannot convert"):
        OnnxRuntime().prepare(path, [], 1)


def test_disagreement_sees_what_a_fast_wrong_result_looks_like():
    exact = np.linspace(-50, 50, 1000, dtype=np.float32).reshape(1, 10, 10, 10)
    half = exact.astype(np.float16).astype(np.float32)
    assert peers.disagreement([exact], [exact]) == ""
    assert peers.disagreement([exact * (1 + 1e-6)], [exact]) == ""
    assert "differs by" in peers.disagreement([half], [exact])
    assert "differs by nan" in peers.disagreement([exact * np.nan], [exact])
    assert "differs by" in peers.disagreement([exact.transpose(0, 2, 1, 3)], [exact])
    assert "shape" in peers.disagreement([exact[:, :5]], [exact])
    assert "0 outputs instead of 1" in peers.disagreement([], [exact])


def test_a_wrong_contender_stops_the_benchmark():
    good = Prepared(lambda: None, lambda: [np.zeros(3, np.float32)])
    bad = Prepared(lambda: None, lambda: [np.ones(3, np.float32)])
    with pytest.raises(x86.WrongOutput, match="tuned computes net wrongly: output 0 differs by 1"):
        x86.verify("net", {"LiteRT": good, "tuned": bad}, [np.zeros(3, np.float32)])


def test_rounds_time_every_contender_in_every_round():
    ran = []
    calls = {"a": lambda: ran.append("a"), "b": lambda: sum(range(20_000))}
    found = rounds.time_in_rounds(calls, rounds=4, turn_s=0.002)
    assert {name: len(values) for name, values in found.items()} == {"a": 4, "b": 4}
    assert 0 < rounds.middle(found["a"]) < rounds.middle(found["b"])
    assert "a" in ran


@given(st.lists(st.text(), min_size=1, max_size=6, unique=True), st.integers(0, 100))
def test_every_round_is_a_permutation(names, number):
    assert sorted(rounds.turn_order(names, number)) == sorted(names)


def test_every_contender_comes_first_in_some_round():
    assert {rounds.turn_order(list("abcde"), number)[0] for number in range(10)} == set("abcde")


def test_integers_may_differ_by_so_many_steps():
    one, other = np.array([10], np.int8), np.array([60], np.int8)
    assert peers.disagreement([other], [one], 50) == ""
    assert "differs by 50" in peers.disagreement([other], [one], 49)
    assert "differs by 50" in peers.disagreement([other], [one])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_geomean_lies_between_the_ratios_and_ignores_missing_ones(ratios):
    mean = rounds.geomean([None, *ratios])
    assert mean == pytest.approx(math.exp(sum(map(math.log, ratios)) / len(ratios)))
    assert min(ratios) * (1 - 1e-9) <= mean <= max(ratios) * (1 + 1e-9)


def test_without_a_peer_there_is_no_ratio():
    assert rounds.geomean([None]) is None
    assert rounds.ratio_to_best(1.0, []) is None
    assert rounds.ratio_to_best(3.0, [4.0, 2.0]) == 1.5


def test_pinned_keeps_to_as_many_cores_and_gives_them_back():
    before = os.sched_getaffinity(0)
    with rounds.pinned(1):
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match="give a number from 1 to"), rounds.pinned(len(before) + 1):
        pass


def results():
    fast = {"LiteRT": [40.0, 42.0, 41.0], "OpenVINO": [20.0, 20.5, 19.5], "untuned": [40.0] * 3, "tuned": [10.0] * 3}
    return [
        x86.ModelResult("one", fast, {"ONNX Runtime": "no"}),
        x86.ModelResult("two", {"LiteRT": [10.0], "untuned": [5.0], "tuned": [20.0]}, {}),
        x86.ModelResult("alone", {"untuned": [5.0], "tuned": [4.0]}, {}),
    ]


def test_json_has_medians_rounds_ratios_and_their_geometric_means():
    summary = json.loads(json.dumps(x86.as_json(results(), OPTIONS)))
    one = summary["models"]["one"]
    assert one["median_us"] == {"LiteRT": 41.0, "OpenVINO": 20.0, "untuned": 40.0, "tuned": 10.0}
    assert one["rounds_us"]["LiteRT"] == [40.0, 42.0, 41.0]
    assert one["best_peer"] == "OpenVINO"
    assert one["ratio"] == {"untuned": 2.0, "tuned": 0.5}
    assert one["missing"] == {"ONNX Runtime": "no"}
    assert summary["models"]["alone"]["ratio"] == {"untuned": None, "tuned": None}
    assert summary["geomean"] == {"untuned": 1.0, "tuned": 1.0}
    assert summary["versions"]["ONNX Runtime"] == peers.version("onnxruntime")
    assert summary["cpu"]
    assert summary["threads"] == 1


def test_the_table_shows_medians_ratios_and_who_is_missing():
    console = Console(width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(x86.table(results()))
    for line in x86.closing_lines(results(), x86.as_json(results(), OPTIONS)):
        console.print(line, markup=False)
    text = console.export_text()
    row = next(line for line in text.splitlines() if line.startswith("│ one"))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["one", "41.00", "n/a", "20.00", "40.00", "10.00", "2.000", "0.500"]
    assert "untuned 1.000, tuned 1.000" in text
    assert "one: ONNX Runtime n/a: no" in text


def test_the_cpu_is_named_by_itself_and_by_llvm(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert x86.cpu_name(info).startswith("Some CPU @ 2 GHz (")
    assert x86.cpu_name(tmp_path / "none").startswith("unknown CPU (")


def test_models_are_found_by_path_and_unknown_ones_are_named(onnx_model):
    assert x86.model_paths([str(onnx_model)]) == [onnx_model]
    with pytest.raises(InputError, match='no model "resnet"'):
        x86.model_paths(["resnet"])


@needs_tiny
def test_models_are_found_by_name_and_the_tiny_ones_are_the_default():
    assert x86.model_paths(["ic_resnet8_int8"]) == [TINY / "ic_resnet8_int8.tflite"]
    found = [path.stem for path in x86.model_paths([])]
    assert found[:3] == ["ad_autoencoder_f32", "ic_resnet8_f32", "vww_mobilenetv1_f32"]
    assert found[3:] == [f"{name}_int8" for name in TINY_INT8]


@pytest.mark.parametrize("flags", [["--threads", "0"], ["--trials", "-1"], ["--rounds", "x"]])
def test_a_wrong_number_is_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        x86.main(flags)
    assert flags[0] in capsys.readouterr().err


def test_an_unknown_model_ends_with_exit_code_2(capsys):
    assert x86.main(["--models", "nowhere.onnx"]) == 2
    captured = capsys.readouterr()
    assert 'no model "nowhere.onnx"' in captured.err
    assert captured.out == ""


@pytest.mark.tvm
@pytest.mark.slow
def test_the_whole_comparison_ends_with_one_json_object(onnx_model):
    command = [sys.executable, "benchmarks/x86.py", "--models", onnx_model, "--rounds", "2", "--turn-ms", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    (found,) = summary["models"].values()
    assert {"ONNX Runtime", "untuned", "tuned"} <= found["median_us"].keys()
    assert all(len(values) == 2 for values in found["rounds_us"].values())
    assert summary["geomean"]["tuned"] == pytest.approx(found["ratio"]["tuned"])
    assert "Geometric mean" in done.stderr


@pytest.fixture
def small_int8(tmp_path):
    """A quantized model that the micro-kernels compute."""
    net = tflite_quantized.Net(5)
    x = net.input(1, 6, 6, 4)
    net.outputs = [net.conv(net.depthwise(x, 1, 3), 8, 1)]
    path = tmp_path / "small.tflite"
    path.write_bytes(net.pack())
    return path


@ARM
@pytest.mark.tvm
def test_microcontrollers_are_counted_beside_their_peer(small_int8, monkeypatch, capsys):
    monkeypatch.setitem(cortex_m.PEER, ("small", "cortex-m4-mps2"), (100_000, 5_000))
    code = cortex_m.main(["--models", str(small_int8), "--targets", "cortex-m4-mps2", "--inputs", "1", "--json"])
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)["rows"]
    assert code == 0
    assert row["ratio"] == row["instructions"] / 100_000
    assert 5_000 < row["instructions"] < 50_000
    assert row["ram_bytes"] == row["arena_bytes"] + 6 * 6 * 4 + 6 * 6 * 8
    assert "TFLM + CMSIS-NN" in printed.err


def test_a_model_that_does_not_fit_is_no_row(small_int8, capsys):
    code = cortex_m.main(["--models", "nothing.tflite", "--targets", "cortex-m4-mps2"])
    assert code == 1
    assert "does not exist" in capsys.readouterr().out


def test_the_geometric_mean_of_ratios():
    assert rounds.geomean([0.5, 2.0]) == pytest.approx(1.0)
    assert rounds.geomean([]) is None
