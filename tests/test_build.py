"""From a model to a folder: what is in it, that it is the same every time, and that a failure leaves nothing."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from built import build, host, new_folder, torch_source
from torch import nn

import deploy.compile as compiling
from deploy.aot import build as aot
from deploy.artifact import MANIFEST, Artifact
from deploy.errors import InputError, ToolError
from deploy.target_parts import Toolchain

pytestmark = pytest.mark.tvm


@cache
def source():
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 4, 1))
    return torch_source(module, torch.rand(1, 3, 16, 16))


@cache
def artifact():
    return build(source())


def test_the_folder_holds_what_its_description_says():
    files = {str(p.relative_to(artifact().path)) for p in artifact().path.rglob("*") if p.is_file()}
    inside = {"model.c", "tvm_ffi.c", "weights.S", "weights.bin", "exports.map", "kernels.o"}
    assert files == {"model.h", "tvm_deploy.h", "libmodel.so", "model_example.c", "arena.svg", MANIFEST} | {
        f"src/{n}" for n in inside
    }


def test_the_manifest_describes_the_build():
    facts = Artifact.open(artifact().path).facts
    assert facts == json.loads(json.dumps({"schema_version": 1, **artifact().facts}))
    assert facts["macs"] == 16 * 16 * 20 * 27 + 8 * 8 * 4 * 20
    assert facts["sizes"]["weight_bytes"] == (artifact().path / "src" / "weights.bin").stat().st_size
    assert facts["sizes"]["library_bytes"] == artifact().library.stat().st_size
    assert facts["kernels"] == {"count": len(set(facts["calls"])), "tuned": []}
    ends = {offset + size for offset, size in facts["memory_plan"].values()}
    assert max(ends) <= facts["sizes"]["arena_bytes"]


def test_a_manifest_comes_back_as_it_was():
    opened = Artifact.open(artifact().path)
    assert opened.inputs == source().inputs
    assert opened.outputs == source().outputs
    assert opened.prefix == source().c_name
    assert opened.arena_bytes == artifact().arena_bytes
    opened.check_files()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_build_twice_is_the_same_bytes(threads):
    first, second = (build(source(), host(threads)).path for _ in range(2))
    for name in ("libmodel.so", MANIFEST):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_changed_files_are_found(change):
    built = build(source())
    path = built.path / "src" / "model.c"
    if change == "remove":
        path.unlink()
    else:
        path.write_text("int x;\n")
    with pytest.raises(InputError, match=r"src/model.c changed since the build; build the artifact again"):
        built.check_files()


def test_a_program_built_in_the_folder_is_no_change():
    built = build(source())
    (built.path / "model_example").write_bytes(b"a program")
    built.check_files()


def test_facts_can_be_added():
    added = build(source()).with_facts(verification={"ok": True})
    assert Artifact.open(added.path).facts["verification"] == {"ok": True}
    added.check_files()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no artifact: it has no manifest.json"),
        ("{", "cannot be read: .*; build the artifact again"),
        ("[]", "has schema_version None, this program reads 1"),
        ("[" * 100_000, "cannot be read"),
        ('{"schema_version": 1, "name": "x"}', "lacks prefix, library"),
        ('{"schema_version": 99}', "has schema_version 99, this program reads 1; build it again"),
        ("\udcff", "cannot be read"),
    ],
)
def test_what_is_no_artifact_is_said(tmp_path, text, message):
    if text is not None:
        (tmp_path / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message):
        Artifact.open(tmp_path)


@pytest.mark.parametrize(
    ("toolchain", "message"),
    [
        (Toolchain(cc="no-such-compiler"), "no-such-compiler was not found"),
        (Toolchain(cc="false"), "failed: exit status 1"),
        (Toolchain(cflags=("-fno-such-flag",)), "no-such-flag"),
        (Toolchain(ldflags=("-lno-such-library",)), "no-such-library"),
    ],
    ids=["missing", "fails", "compile flag", "link flag"],
)
def test_a_failing_compiler_leaves_nothing(toolchain, message):
    folder = new_folder()
    target = replace(host(), toolchain=toolchain)
    with pytest.raises(ToolError, match=message):
        compiling.build(source(), target, folder / "artifact")
    assert list(folder.iterdir()) == []


def test_a_failing_build_keeps_the_old_artifact():
    built = build(source())
    before = built.library.read_bytes()
    with pytest.raises(ToolError):
        compiling.build(source(), replace(host(), toolchain=Toolchain(cc="false")), built.path)
    assert built.library.read_bytes() == before
    built.check_files()
    assert len(list(built.path.parent.iterdir())) == 1


def test_a_wrong_memory_plan_stops_the_build(monkeypatch):
    monkeypatch.setattr(aot, "plan", lambda tensors, *_: aot.Plan({t.name: 0 for t in tensors}, 1, 0))
    problem = r"\w+ ends at \d+, beyond the arena of 1 bytes"
    with pytest.raises(ToolError, match=rf"the memory plan is wrong, which is a bug of tvm-deploy: {problem}"):
        build(source())


def test_an_unusable_kernel_is_named(monkeypatch):
    def fails(func, name, target):
        raise RuntimeError("internal check failed")

    monkeypatch.setattr(aot, "to_plain", fails)
    with pytest.raises(ToolError, match=r"TVM cannot compile kernel \w+ of model 'net': internal check failed"):
        build(source())


def test_tuned_schedules_are_used_and_told():
    from deploy.kernels.default import default_schedule
    from deploy.kernels.for_target import machine_for

    class Found:
        def find(self, func):
            return default_schedule(func, machine_for(host())) if "conv2d" not in str(func.attrs) else None

    model = compiling.lower_for(source(), host())
    scheduled = compiling.schedule_all(model, host(), Found())
    assert set(scheduled.tuned) == set(scheduled.kernels) == set(model.kernels)


def test_a_model_without_activations_needs_no_arena():
    built = build(torch_source(lambda _, x: x + 1, torch.rand(3)))
    assert built.arena_bytes == 0
    assert "0u" in (built.path / "model.h").read_text()


def test_weights_that_are_equal_are_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
            self.b.load_state_dict(self.a.state_dict())

        def forward(self, x):
            return self.b(self.a(x).relu())

    assert build(torch_source(Twice(), torch.rand(1, 64))).facts["sizes"]["weight_bytes"] == 64 * 64 * 4 + 64 * 4
