"""Target files: the shipped ones, finding, extending, and that a wheel brings them along."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import target, targets, yaml_source
from deploy.errors import InputError
from deploy.stopping import Stopping
from deploy.target_parts import LAB_KEYS

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "targets").glob("*.yaml"), key=lambda path: path.stem)
HEAD = "description: d\ntvm: {kind: llvm, mcpu: x86-64-v2, mtriple: x86_64-linux-gnu}\n"


def write(directory: Path, name: str, text: str) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{name}.yaml"
    path.write_text(f"name: {name}\n{text}", encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_targets_load_and_round_trip(path: Path) -> None:
    loaded = targets.load_target(path.stem)
    assert loaded == targets.load_target(str(path))
    assert target.from_text(target.render(loaded), "rendered") == loaded


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_targets_hold_no_address(path: Path) -> None:
    loaded = targets.load_target(path.stem)
    assert not LAB_KEYS & {key for key, _ in (*loaded.device.options, *loaded.power.options)}


@pytest.mark.tvm
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_tvm_accepts_shipped_targets(path: Path) -> None:
    tvm_target = pytest.importorskip("tvm.target")
    options = targets.load_target(path.stem).tvm
    accepted = tvm_target.Target(options)
    if options["kind"] == "llvm" and "mcpu" in options:
        assert options["mcpu"] in tvm_target.codegen.llvm_get_cpu_archlist(accepted)
        on = {name[1:] for name in options.get("mattr", ()) if name[0] == "+"}
        assert on <= set(tvm_target.codegen.llvm_get_cpu_features(accepted))


def test_shipped_targets_share_a_fingerprint_exactly_where_they_share_code_generation() -> None:
    named = [targets.load_target(path.stem) for path in SHIPPED if path.stem != "host"]
    code = {one.name: (one.tvm_options, one.explicit_vector_bits, one.threads) for one in named}
    assert len({one.fingerprint() for one in named}) == len(set(code.values()))
    assert code["nucleo-l4r5zi"] == code["cortex-m4-mps2"] != code["cortex-m7-mps2"]


def test_list_shows_each_target_once_and_own_ones_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [one.name for one in targets.list_targets()] == [path.stem for path in SHIPPED]
    own = write(tmp_path / "targets", "host", HEAD)
    (tmp_path / "targets" / "broken.yaml").write_text("a: [", encoding="utf-8")
    listed = {one.name: one for one in targets.list_targets()}
    assert listed["host"].description == "d"
    assert listed["host"].path.resolve() == own
    assert listed["broken"].problem.startswith("targets/broken.yaml:")
    assert targets.load_target("host").mcpu == "x86-64-v2"


def test_portable_c_is_for_the_same_device() -> None:
    given = targets.load_target("cortex-m4-mps2")
    made = targets.in_portable_c(given)
    assert made.tvm == {"kind": "c", "mcpu": "cortex-m4"}
    assert (made.architecture, made.toolchain, made.device) == (given.architecture, given.toolchain, given.device)
    assert (made.vector_bits, made.threads, made.tuning.trials) == (32, 1, 0)
    assert made.fingerprint() != given.fingerprint()
    host = targets.in_portable_c(replace(targets.load_target("host"), threads=4, tuning=Stopping(100)))
    assert (host.threads, host.tuning.trials) == (1, 0)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r'there is no target "hots"; known: .*x86-64-v2.*; did you mean "host"\?'):
        targets.load_target("hots")
    with pytest.raises(InputError, match=r"nowhere/x\.yaml: cannot be read \(No such file or directory\)"):
        targets.load_target("nowhere/x.yaml")


def test_extends_merges_replaces_and_removes(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base",
        HEAD + "clock: 1 GHz\ndevice: {kind: rpc, key: board, timeout: 3 s}\npower: {kind: auto, active: 2 W}\n"
        "budgets: {latency: {p90: 5 ms}, ram: 1 MiB, energy: 1 J}\n",
    )
    path = write(
        tmp_path,
        "child",
        "description: c\nextends: base\ntvm: {mcpu: x86-64-v3}\nclock: null\ndevice: {key: other}\n"
        "power: {kind: none}\nbudgets: {latency: 1 ms, energy: null}\n",
    )
    child = targets.load_target(str(path))
    assert child.description == "c"
    assert child.tvm == {"kind": "llvm", "mcpu": "x86-64-v3", "mtriple": "x86_64-linux-gnu", "num-cores": 1}
    assert child.clock is None
    assert dict(child.device.options) == {"key": "other", "timeout": 3.0}
    assert (child.power.kind, child.power.options) == ("none", ())
    assert [(limit.name, limit.maximum) for limit in child.budget.limits] == [
        ("latency median", 0.001),
        ("ram", 1 << 20),
    ]


def test_extends_by_path_and_of_a_shipped_target(tmp_path: Path) -> None:
    write(tmp_path / "deeper", "base", HEAD)
    assert (
        targets.load_target(str(write(tmp_path, "a", "description: c\nextends: deeper/base.yaml\n"))).mcpu
        == "x86-64-v2"
    )
    assert targets.load_target(str(write(tmp_path, "b", "description: c\nextends: x86-64-v4\n"))).mcpu == "x86-64-v4"


@pytest.mark.parametrize(
    ("extends", "message"),
    [
        ("child", "child.yaml:2: a target cannot extend itself"),
        ("middle", 'child.yaml:2: middle itself extends "base"; only one level is allowed, extend that instead'),
        ("midle", 'child.yaml:2: there is no target "midle"; known: aarch64, '),
        ("./none.yaml", "child.yaml:2:"),
        ("[a]", "child.yaml:2: extends must be text on one line, not a list"),
    ],
)
def test_wrong_extends_is_named(tmp_path: Path, extends: str, message: str) -> None:
    write(tmp_path, "base", HEAD)
    write(tmp_path, "middle", "extends: base\n" + HEAD)
    path = write(tmp_path, "child", f"extends: {extends}\n{HEAD}")
    with pytest.raises(InputError) as caught:
        targets.load_target(str(path))
    assert message in str(caught.value)


def test_an_inherited_mistake_is_placed_in_the_file_it_is_in(tmp_path: Path) -> None:
    write(tmp_path, "base", HEAD + "memory: {ram: 1}\n")
    path = write(tmp_path, "child", "description: c\nextends: base\n")
    with pytest.raises(InputError, match=r"base\.yaml:4: ram of memory"):
        targets.load_target(str(path))


def test_name_and_file_name_must_agree(tmp_path: Path) -> None:
    path = write(tmp_path, "one", HEAD)
    moved = path.rename(tmp_path / "two.yaml")
    with pytest.raises(InputError, match=r'two\.yaml:1: the name is "one" but the file is called two\.yaml'):
        targets.load_target(str(moved))


@pytest.mark.slow
def test_a_wheel_brings_the_targets_along(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "artifacts")
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignored)
    (source / "README.md").touch()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "out", "."]
    built = subprocess.run(command, cwd=source, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = (source / "out").glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    assert {f"deploy/targets_data/{path.name}" for path in SHIPPED} <= set(names)
    logs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tuning_logs").rglob("*.jsonl")}
    assert {name.replace("tuning_logs", "deploy/tuning_logs_data", 1) for name in logs} <= set(names)
    packages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*.py")}
    assert packages <= set(names)
    code = "from deploy.targets import list_targets; print(*[one.path for one in list_targets()], sep='\\n')"
    listed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(installed), "PATH": ""},
    )
    found = [Path(line) for line in listed.stdout.split("\n") if line]
    assert found == [installed / "deploy/targets_data" / path.name for path in SHIPPED]


def test_merge_keeps_places() -> None:
    base = yaml_source.parse("name: a\nclock: 1 GHz\n", "base.yaml")
    child = yaml_source.parse("name: b\n\nthreads: 2\n", "child.yaml")
    merged = targets.merge(base, child).mapping("a target")
    assert {key: node.where for key, node in merged.items()} == {
        "clock": "base.yaml:2",
        "name": "child.yaml:1",
        "threads": "child.yaml:3",
    }
