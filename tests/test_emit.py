"""The emitted C: it compiles without a warning whatever the names are, shows what it should and needs nothing."""

import re
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from built import assert_correct, build, host, new_folder, torch_source
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from deploy import model, shell
from deploy.aot.emit import C_TYPES, Layout, comment, literal
from deploy.aot.emit_header import header
from deploy.aot.plan import Plan
from deploy.graph import Graph, Tensor
from deploy.model_spec import DTYPES, TensorSpec, c_identifier

pytestmark = pytest.mark.tvm

STRICT = ["-Wall", "-Wextra", "-Wconversion", "-Wcast-qual", "-Wshadow", "-Wstrict-prototypes", "-pedantic", "-Werror"]


def onnx_source(inputs, outputs, name="net"):
    """Output i is the sum of the inputs times i + 1, with any names."""
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in (*inputs, *outputs)}
    constants = [onnx.numpy_helper.from_array(np.full(1, i + 1, np.float32), f"factor{i}") for i in range(len(outputs))]
    nodes = [helper.make_node("Sum", list(inputs), ["the_sum"])]
    nodes += [helper.make_node("Mul", ["the_sum", f"factor{i}"], [n]) for i, n in enumerate(outputs)]
    ends = [values[n] for n in inputs], [values[n] for n in outputs]
    graph = helper.make_graph(nodes, "g", *ends, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.from_object(proto, name)


@cache
def network():
    """Every kind of address: constants, activations, workspaces, copies, aliases, several inputs and outputs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.dense = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x, y):
            features = self.conv(x).relu()
            return self.dense(features.mean((2, 3))), x, features.reshape(8, -1).softmax(-1), y > 0

    source = torch_source(Net(), torch.rand(1, 3, 32, 32), torch.zeros(5, dtype=torch.int32), name="kinds")
    artifact = build(source)
    assert_correct(source, artifact)
    return artifact


NAMES = {
    "unicode": ("модель 网络 é", ["вход", "入力"], ["выход"]),
    "keywords": ("int", ["while", "class"], ["static", "xor", "template"]),
    "digits": ("3d-net", ["0", "1.5"], ["2"]),
    "ends a comment": ('*/ int x; /* ??/ "\\n" \\', ["*/", '"; }'], ["/*", "\\"]),
    "our own": ("tvm_deploy", ["arena", "arena_bytes", "status"], ["base", "memcpy", "i"]),
    "macros": ("linux", ["NULL", "linux", "unix"], ["INT32_MAX", "TVM_DEPLOY_OK", "size_t"]),
    "functions": ("printf", ["printf", "main", "exp"], ["y0", "stderr", "index"]),
    "differ in case": ("Net", ["x", "X"], ["Y", "y"]),
    "become equal": ("net", ["a.b", "a/b", "a b"], ["a_b", "a_b_2"]),
    "kernel": ("net", ["net_run", "net_weights"], ["net_k_fused_add_multiply", "net_call"]),
    "bidirectional": ("a\u202eb\u2066c\nd\te", ["\u202ex", "y\u200b"], ["z\x07"]),
    "long": ("n" * 200, ["i" * 300, "i" * 299 + "j"], ["o" * 300]),
}


@pytest.mark.parametrize("case", NAMES)
def test_any_name_compiles_and_runs(case):
    name, inputs, outputs = NAMES[case]
    source = onnx_source(inputs, outputs, name)
    artifact = build(source)
    assert_correct(source, artifact, count=1)
    check_strictly(artifact)
    assert [spec.name for spec in artifact.inputs] == [spec.name for spec in source.inputs]


def check_strictly(artifact):
    """All C files and the header in C++ pass the strictest warnings; the example builds and runs."""
    folder = artifact.path
    c11 = ["cc", "-std=c11", *STRICT]
    shell.run([*c11, "-I..", "-c", "model.c", "-o", "/dev/null"], timeout_s=60, cwd=folder / "src")
    gnu = ["cc", "-Wall", "-Wextra", "-Werror"]
    example = new_folder() / "example"
    linked = ["-L.", "-lmodel", f"-Wl,-rpath,{folder}", "-o", str(example)]
    for command in (c11, gnu):
        shell.run([*command, "model_example.c", *linked], timeout_s=60, cwd=folder)
    if shell.which("g++"):
        warnings = [flag for flag in STRICT if flag != "-Wstrict-prototypes"]
        shell.run(["g++", *warnings, "-x", "c++", "-c", "model.h", "-o", "/dev/null"], timeout_s=60, cwd=folder)
    clean = ["env", "-i", str(example)]
    return shell.run(clean, timeout_s=60, cwd="/").stdout


def test_every_kind_of_address_compiles_strictly():
    printed = check_strictly(network())
    assert len(printed.splitlines()) == 4 + 10 + 10 + 5


def test_the_example_prints_what_the_model_computes():
    class Counted(nn.Module):
        def forward(self, x):
            return x + torch.arange(4.0) * 1.5

    printed = check_strictly(build(torch_source(Counted(), torch.rand(4), name="counted")))
    assert [line.split(" = ")[1] for line in printed.splitlines()] == ["0", "1.5", "3", "4.5"]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_library_shows_five_symbols_and_needs_only_the_c_library(threads):
    module = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Softmax(1))
    artifact = build(torch_source(module, torch.rand(1, 3, 32, 32), name="tiny"), host(threads))
    listed = shell.run(["nm", "-D", artifact.library], timeout_s=60).stdout.splitlines()
    shown = {line.split()[-1] for line in listed if " U " not in line and " w " not in line}
    assert shown == {"tiny_run", "tiny_call", "tiny_describe", "tiny_status_text", "__tvm_ffi_tiny"}
    missing = {line.split()[-1] for line in listed if " U " in line}
    assert all("@GLIBC" in name for name in missing), missing
    weak = {line.split()[-1] for line in listed if " w " in line}
    ours = "TVMFFIErrorSetRaisedFromCStr"
    usual = {"__cxa_finalize", "__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    assert {name.partition("@")[0] for name in weak} - usual == {ours}
    needed = re.findall(r"NEEDED.*\[(.*)\]", shell.run(["readelf", "-d", artifact.library], timeout_s=60).stdout)
    assert {name.partition(".")[0] for name in needed} <= {"libc", "libm", "libpthread"}


def test_the_header_says_what_a_caller_has_to_know():
    text = (network().path / "model.h").read_text()
    assert re.search(r"input \w+\[1\]\[3\]\[32\]\[32\] float32", text)
    assert re.search(r"output \w+\[5\] bool", text)
    assert f"#define KINDS_ARENA_BYTES {network().arena_bytes}u" in text
    assert "int32_t kinds_run(const float *" in text


def test_the_call_sequence_names_every_kernel():
    text = (network().path / "src" / "model.c").read_text()
    for number, name in enumerate(network().facts["calls"]):
        assert f"/* {number}: {name} -> " in text


def layout(**changes):
    tensors = {"x": Tensor("x", (2,), "int8", "input"), "y": Tensor("y", (), "int8", "output")}
    specs = (TensorSpec("x", (2,), "int8", np.float32(0.1), np.int64(-3)),), (TensorSpec("y", (), "int8", 0.5, 0),)
    graph = Graph(tensors, (), ("x",), ("y",))
    values = {"prefix": "m", "name": "m", "target": "t", "graph": graph, "plan": Plan({}, 0, 0)}
    return Layout(
        **{**values, "weight_offsets": {}, "weight_bytes": 0, "threads": 1, **changes},
        inputs=specs[0],
        outputs=specs[1],
    )


def test_scales_and_scalars_are_told():
    text = header(layout())
    assert " *   input x[2] int8, scale 0.10000000149011612, zero point -3" in text
    assert " *   output y (one number) int8, scale 0.5, zero point 0" in text


@given(st.text())
def test_comments_and_literals_stay_what_they_are(text):
    shown = comment(text)
    assert not any(bad in shown for bad in ("*/", "/*", "\\", "\n", "??"))
    quoted = literal(text)
    assert re.fullmatch(r'"([ -~])*"', quoted)
    decoded = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), quoted[1:-1].encode())
    assert decoded == text.encode("utf-8", "replace")


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True), st.text(max_size=5))
def test_identifiers_differ_in_more_than_case(names, prefix):
    tensors = {n: Tensor(n, (1,), "int8", "input") for n in names}
    prefix = c_identifier(prefix)
    ends = layout(prefix=prefix, graph=Graph(tensors, (), tuple(names), ())).ends
    assert len({end.lower() for end in ends.values()}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z]\w*", end) for end in ends.values())


def test_every_type_has_a_c_type():
    assert C_TYPES.keys() == DTYPES.keys()
