"""Which compiler builds for a target: the named one, zig in its place, or an error that names both."""

import importlib.util
import sys
from dataclasses import replace

import pytest

from deploy import shell
from deploy.errors import ToolError
from deploy.target_parts import Toolchain
from deploy.targets import load_target
from deploy.toolchain import compiler, runtime_sources, zig_triple

TRIPLES = {
    "aarch64": ("aarch64-linux-gnu", "aarch64-linux-musl"),
    "jetson-orin": ("aarch64-linux-gnu", "aarch64-linux-musl"),
    "armv7-a": ("arm-linux-gnueabihf", "arm-linux-musleabihf"),
    "riscv64": ("riscv64-linux-gnu", "riscv64-linux-musl"),
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """An empty folder that is all of PATH, on a machine without the package ziglang."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return tmp_path


def program(folder, name):
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_the_named_compiler_is_taken_where_it_is(path):
    program(path, "aarch64-linux-gnu-gcc")
    program(path, "zig")
    assert compiler(load_target("aarch64")) == ["aarch64-linux-gnu-gcc"]
    assert runtime_sources(load_target("aarch64")) == []


@pytest.mark.parametrize("name", TRIPLES)
def test_zig_takes_the_place_of_a_cross_compiler(path, monkeypatch, name):
    target = load_target(name)
    assert (zig_triple(target), zig_triple(target, static=True)) == TRIPLES[name]
    program(path, "zig")
    assert compiler(target)[:4] == ["zig", "cc", "-target", TRIPLES[name][0]]
    assert compiler(target, static=True)[3] == TRIPLES[name][1]
    (path / "zig").unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "ziglang" or None)
    assert compiler(target)[:4] == [sys.executable, "-m", "ziglang", "cc"]
    assert len(runtime_sources(target)) == (name == "armv7-a")


def test_where_there_is_neither_both_are_named(path):
    words = r"the program arm-linux-gnueabihf-gcc or zig.*apt install gcc-arm-linux-gnueabihf.*pip install ziglang"
    with pytest.raises(ToolError, match=words):
        compiler(load_target("armv7-a"))


def test_nothing_takes_the_place_of_a_compiler_that_somebody_chose(path):
    program(path, "zig")
    for cc in ("cc", "/opt/bin/aarch64-linux-gnu-gcc", "arm-none-eabi-gcc", "my-cc"):
        assert compiler(replace(load_target("aarch64"), toolchain=Toolchain(cc))) == [cc]


def test_a_vendor_in_the_triple_and_none_at_all(path):
    target = load_target("aarch64")

    def with_triple(triple):
        options = tuple((key, value) for key, value in target.tvm_options if key != "mtriple")
        return replace(target, tvm_options=(*options, ("mtriple", triple)) if triple else options)

    assert zig_triple(with_triple("aarch64-unknown-linux-gnu")) == "aarch64-linux-gnu"
    for triple in ("", "aarch64-none-elf", "aarch64"):
        with pytest.raises(ToolError, match="zig cannot stand in for it unless mtriple"):
            zig_triple(with_triple(triple))


@pytest.mark.slow
def test_zig_builds_programs(tmp_path):
    if importlib.util.find_spec("ziglang") is None and shell.which("zig") is None:
        pytest.skip("zig is not installed")
    target = load_target("armv7-a")
    chosen = replace(target, toolchain=Toolchain(f"{target.toolchain.cc}-0"))  # one that is not there
    called = "extern int __divsi3(int, int);\nextern unsigned __udivsi3(unsigned, unsigned);\n"
    (tmp_path / "a.c").write_text(f"{called}int main(int n) {{ return __divsi3(7, n) + (int)__udivsi3(5, n) - 12; }}\n")
    command = [*compiler(chosen, static=True), "-static", "-w", "a.c", *runtime_sources(chosen), "-o", "a"]
    shell.run(command, timeout_s=600, cwd=tmp_path)
    if shell.which("qemu-arm-static") is not None:
        assert shell.run(["qemu-arm-static", tmp_path / "a"], timeout_s=20, check=False).returncode == 0
