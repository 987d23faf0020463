"""The steps in order, called from Python: models that are objects, and every decision between the steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from built import SHARED
from models import onnx_models, torch_models
from models import tflite_quantized as q

import deploy
from deploy import evidence, model, pipeline, reference
from deploy.artifact import Artifact
from deploy.budget import Budget, Limit, Verdict
from deploy.device import RunPlan
from deploy.errors import InputError
from deploy.progress import Silent
from deploy.report import Overall, judged
from deploy.stopping import Stopping
from deploy.target import missing_features
from deploy.target_parts import DeviceSpec
from deploy.targets import load_target
from deploy.tuning import log_edit

pytestmark = pytest.mark.tvm

QUICK = RunPlan(warmup_s=0, seconds=0.05, min_samples=10, max_samples=100, max_rounds=1)


@pytest.fixture(scope="module")
def host():
    return load_target("host")


@pytest.fixture(scope="module")
def source(conv_onnx):
    return pipeline.load_model(conv_onnx)


@pytest.fixture
def samples(source):
    return pipeline.samples_for(source, None, seed=3)


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.events = []

    def update(self, event):
        self.events.append(event)


# --- objects ---


def objects():
    module = torch_models.mobilenet_v2(0.25, 4)
    image = (torch.randn(1, 3, 32, 32),)
    yield "module", module, image
    yield "program", torch.export.export(module, image), None
    yield "onnx", onnx_models.attention(1, 6), None
    yield "block", torch_models.transformer_block(), (torch.arange(8)[None] % 5,)


@pytest.mark.parametrize("name", ["module", "program", "onnx", "block"])
def test_a_model_in_python_is_built_and_called(name, host, tmp_path):
    given, examples = next(rest for first, *rest in objects() if first == name)
    found = model.from_object(given, name, examples)
    recorder = Recorder()
    artifact = pipeline.build(found, host, out=tmp_path / name, progress=recorder)
    assert [event.stage for event in recorder.events] == ["compile"]
    loaded = deploy.load(artifact.path)
    for inputs in reference.sample_inputs(found, 2, seed=5):
        expected = reference.Reference(found).run(inputs)
        outputs = loaded(*inputs)
        for got, want in zip(outputs if isinstance(outputs, tuple) else (outputs,), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_names_do_for_model_and_target(conv_onnx, tmp_path):
    artifact = pipeline.build(str(conv_onnx), "host", out=tmp_path / "out")
    assert artifact.path == tmp_path / "out"
    opened = Artifact.open(artifact.path)
    assert (opened.name, opened.inputs, opened.outputs) == ("conv", artifact.inputs, artifact.outputs)


def test_a_dynamic_batch_is_fixed_by_shapes(host, tmp_path):
    import onnx

    onnx.save(onnx_models.conv_net("N"), tmp_path / "dynamic.onnx")
    shapes = {"input.1": (2, 3, 8, 8)}
    artifact = pipeline.build(tmp_path / "dynamic.onnx", host, out=tmp_path / "out", shapes=shapes)
    assert deploy.load(artifact.path)(np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 5)


def test_building_twice_gives_the_same(source, host, deployed, tmp_path):
    """The library, its header and the plan depend on the model, the target and the records, and on nothing else."""
    again = pipeline.build(source, host, out=tmp_path / "again")
    first = Artifact.open(deployed[0])
    assert again.facts["files"] == first.facts["files"]
    assert again.facts["memory_plan"] == first.facts["memory_plan"]


# --- measuring and verifying ---


def test_outputs_are_compared_sample_by_sample(source, host, samples):
    right = [reference.Reference(source).run(sample) for sample in samples.inputs]
    facts, accuracy = pipeline.verify_outputs(source, samples, right, host)
    assert (facts.passed, facts.samples, facts.first_mismatch, accuracy) == (True, 4, None, None)
    assert facts.tensors[0].count == 4 * 5
    assert facts.tensors[0].differing == 0
    wrong = [[array.copy() for array in outputs] for outputs in right]
    wrong[2][0][0, 4] += 1
    facts, _ = pipeline.verify_outputs(source, samples, wrong, host)
    assert (facts.passed, facts.first_mismatch, facts.tensors[0].differing) == (False, "y", 1)
    assert facts.tensors[0].largest_abs == pytest.approx(1, rel=1e-3)


def test_nan_is_a_wrong_output(source, host, samples):
    wrong = [reference.Reference(source).run(sample) for sample in samples.inputs]
    wrong[0][0][0, 0] = np.nan
    facts, _ = pipeline.verify_outputs(source, samples, wrong, host)
    assert not facts.passed


def test_wrong_answers_cost_accuracy(source, host, samples, deployed):
    right = [reference.Reference(source).run(sample) for sample in samples.inputs]
    labels = np.array([outputs[0].argmax() for outputs in right])
    wrong = [[-outputs[0]] for outputs in right[:1]] + right[1:]
    verified = pipeline.verify_outputs(source, replace(samples, labels=labels), wrong, host)
    assert (verified[1].reference, verified[1].device, verified[1].samples) == (1.0, 0.75, 4)
    measured = pipeline.measure_artifact(Artifact.open(deployed[0]), host, samples, QUICK)
    report = evidence.make_report(Artifact.open(deployed[0]), host, None, verified, measured)
    assert report.verdict is Overall.WRONG_OUTPUT
    for most, verdict in ((0.25, Verdict.PASS), (0.2, Verdict.MISS)):
        checks = judged(report, Budget((Limit("accuracy_drop", None, most),))).checks
        assert [check.verdict for check in checks] == [verdict]


def test_no_wrong_tensor_is_found_where_all_are_right(source, host, samples, tmp_path):
    assert pipeline.first_wrong_tensor(source, host, samples, tmp_path) is None


def test_the_first_wrong_tensor_comes_first(source, host, samples, tmp_path):
    """A tolerance that nothing but exact equality satisfies: rounding makes the first computed tensor wrong."""
    exact = replace(host, tolerances=(("float32", 0.0),))
    found = pipeline.first_wrong_tensor(source, exact, samples, tmp_path)
    exposed = reference.expose_intermediates(source)
    inner = [spec.name for spec in exposed.outputs[1:]]
    assert found in inner[:2]


def test_measurement_is_of_this_artifact(deployed, host, samples):
    artifact = Artifact.open(deployed[0])
    measured = pipeline.measure_artifact(artifact, host, samples, QUICK)
    assert (measured.how, len(measured.outputs), measured.energy) == ("measured", 4, None)
    assert measured.arena_bytes == artifact.arena_bytes
    assert measured.library_bytes == artifact.facts["sizes"]["library_bytes"]


# --- quantized models ---


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory):
    """An int8 network in which a few results, inner ones too, differ between the two roundings."""
    net = q.Net(0)
    net.dense(net.dense(net.input(64, 33), 17, fusedActivationFunction=q.Activation.RELU), 5)
    net.outputs = net.outputs[-1:]
    file = tmp_path_factory.mktemp("int8") / "two.tflite"
    file.write_bytes(net.pack())
    return pipeline.load_model(file)


AD = SHARED / "models" / "mlperf-tiny" / "ad_autoencoder_int8.tflite"
needs_ad = pytest.mark.skipif(not AD.exists(), reason="the MLPerf Tiny models are not beside the project")


@pytest.mark.parametrize("given", ["two layers", pytest.param(AD, id="ad", marks=needs_ad)])
def test_each_rounding_is_verified_against_its_own_reference(given, two_layers, host, tmp_path):
    pytest.importorskip("tflite_micro", reason="TFLite Micro is not installed")
    source = two_layers if given == "two layers" else pipeline.load_model(given)
    samples, verdicts = pipeline.samples_for(source, None), {}
    targets = {rounding: replace(host, rounding=rounding) for rounding in ("single", "double")}
    for built, target in targets.items():
        artifact = pipeline.build(source, target, out=tmp_path / built)
        assert artifact.facts["integer"]["rounding"] == built
        assert f"rounding: {built}, as " in evidence.explain(artifact)
        outputs = pipeline.measure_artifact(artifact, target, samples, QUICK).outputs
        for read, other in targets.items():
            facts, _ = pipeline.verify_outputs(source, samples, outputs, other)
            verdicts[built, read] = facts.passed
            assert facts.reference.startswith({"single": "LiteRT", "double": "TFLite Micro"}[read])
        if source is two_layers:  # of which the single inner tensor differs, in the first sample
            assert pipeline.first_wrong_tensor(source, target, samples, tmp_path) is None
    same = {pair: pair[0] == pair[1] for pair in verdicts}
    assert verdicts == same, "equal to its own reference, and not to the other"


def test_an_artifact_of_the_other_rounding_is_not_this_target_s(two_layers, host, source, tmp_path, deployed):
    artifact = pipeline.build(two_layers, host, out=tmp_path / "out")
    double = replace(host, rounding="double")
    assert double.fingerprint() == host.fingerprint(), "both find the same tuning records"
    evidence.check_target(host, artifact)
    with pytest.raises(InputError, match="was built with 'rounding: single', target host has 'rounding: double'"):
        evidence.check_target(double, artifact)
    evidence.check_target(double, Artifact.open(deployed[0]))  # a float model has none


def test_the_float_form_is_built_and_measured_like_the_model(two_layers, host, tmp_path):
    form = pipeline.measure_float_form(two_layers, host, pipeline.samples_for(two_layers, None), tmp_path / "logs")
    assert (form.latency.how, form.tuned, form.reason) == ("measured", 0, "")
    assert form.kernels >= 2
    assert len(form.latency.samples_s) >= pipeline.FLOAT_PLAN.min_samples
    assert list(tmp_path.iterdir()) == [], "nothing is left of it"


def test_a_float_form_that_does_not_run_says_why(two_layers, host, samples, tmp_path):
    form = pipeline.measure_float_form(two_layers, foreign_to_this_cpu(host), samples, tmp_path)
    assert (form.latency, form.kernels) == (None, 0)
    assert form.reason.startswith("this CPU lacks ")


# --- what is refused ---


def foreign_to_this_cpu(host):
    """A target for a CPU that this one cannot stand in for: no CPU has AMD's XOP and Intel's AMX."""
    options = [(("kind", "llvm"), ("mcpu", mcpu)) for mcpu in ("bdver4", "sapphirerapids")]
    targets = [replace(host, name="far", tvm_options=given) for given in options]
    return next(target for target in targets if missing_features(target))


def test_code_for_another_cpu_is_not_run_here(host, conv_onnx, deployed, samples, tmp_path):
    foreign = foreign_to_this_cpu(host)
    for step in (
        lambda: pipeline.check_runnable(foreign),
        lambda: pipeline.tune(pipeline.load_model(conv_onnx), foreign, 4, Silent(), tmp_path / "logs"),
        lambda: pipeline.measure_artifact(Artifact.open(deployed[0]), foreign, samples),
    ):
        with pytest.raises(InputError, match=r"^this CPU lacks \w+.* which code for target far uses; "):
            step()
    assert not (tmp_path / "logs").exists()
    pipeline.build(conv_onnx, foreign, out=tmp_path / "out")  # compiling for it is fine


def test_devices_that_cannot_be_driven_yet_are_named(host):
    remote = replace(host, device=DeviceSpec("replay", (("recording", "pi"),)))
    with pytest.raises(InputError, match=r"host runs on a device of kind replay, which this version cannot drive"):
        pipeline.open_device(remote)


def test_artifact_and_model_must_be_of_one_another(deployed, source, host):
    artifact = Artifact.open(deployed[0])
    evidence.check_same(source, artifact)
    evidence.check_target(host, artifact)
    other = model.from_object(onnx_models.subtract(), "other")
    with pytest.raises(InputError, match="was built from another model than other; build it again"):
        evidence.check_same(other, artifact)
    with pytest.raises(InputError, match=r"was built for host \(\w+\), not for host \(\w+\); name that target"):
        evidence.check_target(replace(host, threads=2), artifact)


def test_real_inputs_are_told_from_made_up_ones(source, tmp_path):
    made_up = pipeline.samples_for(source, None)
    assert (made_up.real, made_up.labels, len(made_up.inputs)) == (False, None, 4)
    file = tmp_path / "inputs.npz"
    np.savez(file, inputs=np.zeros((3, 3, 8, 8), np.float32), labels=np.arange(3))
    real = pipeline.samples_for(source, file)
    assert (real.real, list(real.labels), len(real.inputs)) == (True, [0, 1, 2], 3)


def test_the_log_is_where_it_is_said(host, source, tmp_path):
    facts = pipeline.tune(source, host, 6, Silent(), tmp_path / "logs")
    assert 6 <= facts.trials <= 12
    assert 1 <= facts.tuned <= facts.tasks
    assert any(Path(tmp_path / "logs" / "host").rglob("log.jsonl"))
    assert pipeline.tune(source, host, 6, Silent(), tmp_path / "logs").trials == 0


def test_kernels_that_come_tuned_are_tuned_again_only_if_asked(host, source, tmp_path):
    few = replace(host, tuning=Stopping(6))
    pipeline.tune(source, few, 4, Silent(), tmp_path / "logs")
    log_edit.export(tmp_path / "logs", "host", tmp_path / "shipped")
    facts = pipeline.tune(source, few, None, Silent(), tmp_path / "shipped")
    assert (facts.trials, facts.tuned) == (0, facts.tasks)
    assert pipeline.tune(source, few, None, Silent(), tmp_path / "logs").trials > 0  # an unfinished run goes on
    assert pipeline.tune(source, few, 20, Silent(), tmp_path / "shipped").trials > 0
