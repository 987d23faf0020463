"""Loading: three formats, static shapes, and what is said about files that are wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from models import onnx_models, tflite_models, torch_models

from deploy import model_tflite
from deploy.errors import InputError
from deploy.model import TensorSpec, c_identifier, from_object, load
from deploy.model_spec import unique
from deploy.reference import Reference, sample_inputs

ZEROS = torch.zeros(2, 3)


def archive(program: object) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def two_inputs(dynamic: bool = False) -> object:
    shapes = {"left": {0: torch.export.Dim("rows")}, "right": {0: torch.export.Dim("rows")}} if dynamic else None
    return torch.export.export(torch_models.TwoInputs().eval(), (ZEROS, ZEROS.clone()), dynamic_shapes=shapes)


FILES = {
    "net.onnx": lambda: onnx_models.conv_net(1).SerializeToString(),
    "net.tflite": tflite_models.conv_net,
    "net.pt2": lambda: archive(two_inputs()),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, make in FILES.items():
        (folder / name).write_bytes(make())
    return folder


def refused(path: Path, data: bytes | None = None, **arguments: object) -> str:
    """The one sentence said about a file."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(path, **arguments)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.endswith(".")
    return message


# --- what is loaded


def test_onnx_is_simplified_and_keeps_what_was_given(tmp_path: Path) -> None:
    file = tmp_path / "my-net v2.onnx"
    file.write_bytes(onnx_models.conv_net("N").SerializeToString())
    source = load(file, {"input.1": (3, 3, 8, 8)})
    assert (source.name, source.c_name, source.format, source.path) == ("my-net v2", "my_net_v2", "onnx", str(file))
    assert source.inputs == (TensorSpec("input.1", (3, 3, 8, 8), "float32"),)
    assert source.outputs == (TensorSpec("y", (3, 5), "float32"),)
    simplified = [node.op_type for node in source.payload.graph.node]
    assert "Shape" not in simplified
    assert "Shape" in [node.op_type for node in source.original.graph.node]


def test_tflite(files: Path) -> None:
    source = load(files / "net.tflite")
    assert source.inputs == (TensorSpec("x:0", (1, 8, 8, 3), "float32"),)
    assert source.outputs == (TensorSpec("y", (1, 5), "float32"),)
    assert isinstance(source.payload, bytes)
    assert model_tflite.load(source.payload, {})[0] == source.payload  # writing anew changes nothing any more


def test_quantization_is_kept(tmp_path: Path) -> None:
    (tmp_path / "q.tflite").write_bytes(tflite_models.int8_dense())
    source = load(tmp_path / "q.tflite")
    assert source.inputs == (TensorSpec("x", (1, 4), "int8", float(np.float32(0.05)), 3),)
    assert source.outputs == (TensorSpec("y", (1, 3), "int8", float(np.float32(0.04)), -5),)


def test_torch_archive(files: Path) -> None:
    source = load(files / "net.pt2")
    assert source.inputs == (TensorSpec("left", (2, 3), "float32"), TensorSpec("right", (2, 3), "float32"))
    assert [spec.shape for spec in source.outputs] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("name", FILES)
def test_content_decides_not_the_suffix(files: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / "model.bin"
    other.write_bytes((files / name).read_bytes())
    by_suffix, by_content = load(files / name), load(other)
    assert (by_content.format, by_content.sha256) == (by_suffix.format, by_suffix.sha256)


def test_module_keeps_its_mode() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout(0.5)).train()
    module[0].eval()
    source = from_object(module, "class", (ZEROS,))
    assert source.c_name == "m_class"
    assert [part.training for part in module.modules()] == [True, False, True]
    assert "dropout" not in str(source.outputs)
    first, second = (Reference(source).run([np.ones((2, 3), np.float32)])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_one_example_tensor_for_two_inputs() -> None:
    source = from_object(torch_models.TwoInputs(), "two", (ZEROS, ZEROS))
    left, right = np.full((2, 3), 2, np.float32), np.full((2, 3), 0.5, np.float32)
    np.testing.assert_array_equal(Reference(source).run([left, right])[1], np.full((2, 3), 3, np.float32))


def test_from_object_takes_all_kinds_and_changes_none() -> None:
    proto = onnx_models.conv_net("N")
    before = proto.SerializeToString()
    assert from_object(proto, "n", shapes={"input.1": (1, 3, 8, 8)}).format == "onnx"
    assert proto.SerializeToString() == before
    program = two_inputs()
    assert from_object(program, "n").sha256 == from_object(two_inputs(), "n").sha256
    with pytest.raises(InputError, match=r"'n' is a builtins.dict; give an onnx.ModelProto"):
        from_object({}, "n")
    with pytest.raises(InputError, match="give example_inputs"):
        from_object(torch_models.TwoInputs(), "n")


# --- dynamic shapes


def test_dynamic_onnx(tmp_path: Path) -> None:
    data = onnx_models.attention().SerializeToString()
    message = refused(tmp_path / "a.onnx", data)
    assert "Input 'x' has a dynamic dimension 0 ('batch')" in message
    assert "--shape 'x=1,length,16' with a number for each name" in message
    assert load(tmp_path / "a.onnx", {"x": (2, 6, 16)}).outputs[1].shape == (2, 2, 6, 6)


def test_output_that_depends_on_values(tmp_path: Path) -> None:
    message = refused(tmp_path / "n.onnx", onnx_models.data_dependent().SerializeToString())
    assert "output 'y' whose dimension 1 ('n') depends on the values" in message


def test_dynamic_torch(tmp_path: Path) -> None:
    message = refused(tmp_path / "d.pt2", archive(two_inputs(dynamic=True)))
    assert "Input 'left' has a dynamic dimension 0 ('s" in message
    assert "--shape 'left=1,3'" in message
    source = load(tmp_path / "d.pt2", {"left": (4, 3), "right": (4, 3)})
    assert [spec.shape for spec in source.inputs + source.outputs] == [(4, 3)] * 4
    both = [np.full((4, 3), 2, np.float32), np.full((4, 3), 0.5, np.float32)]
    np.testing.assert_array_equal(Reference(source).run(both)[1], np.full((4, 3), 3, np.float32))
    assert "does not accept" in refused(tmp_path / "d.pt2", shapes={"left": (4, 3), "right": (5, 3)})


def test_dynamic_tflite(tmp_path: Path) -> None:
    batch = tmp_path / "batch.tflite"
    batch.write_bytes(tflite_models.conv_net(signature=(-1, 8, 8, 3)))
    assert load(batch).inputs[0].shape == (1, 8, 8, 3)  # what the interpreter runs too
    message = refused(tmp_path / "h.tflite", tflite_models.conv_net(signature=(-1, -1, 8, 3)))
    assert "Input 'x:0' has a dynamic dimension 1, and ahead-of-time" in message
    assert "--shape 'x:0=1,1,8,3'" in message
    assert load(tmp_path / "h.tflite", {"x:0": (1, 8, 8, 3)}).inputs[0].shape == (1, 8, 8, 3)
    assert "converted for [1, 8, 8, 3]" in refused(tmp_path / "h.tflite", shapes={"x:0": (2, 8, 8, 3)})


@pytest.mark.parametrize("name", FILES)
def test_shape_flag_mistakes(files: Path, name: str) -> None:
    file = files / name
    known = load(file).inputs[0]
    assert f"its inputs are '{known.name}'" in refused(file, shapes={"nope": (1,)})
    assert f"2 dimensions (1x1), but it has {len(known.shape)}" in refused(file, shapes={known.name: (1, 1)}) or (
        len(known.shape) == 2
    )
    assert "at least 1" in refused(file, shapes={known.name: (0,) * len(known.shape)})


# --- files that are wrong


def test_no_such_file_folder_empty_unreadable(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "missing.onnx")
    assert "is a folder" in refused(tmp_path)
    assert "is not a regular file" in refused(Path("/dev/zero"))
    assert "is empty" in refused(tmp_path / "empty.tflite", b"")
    locked = tmp_path / "locked.onnx"
    locked.write_bytes(b"x")
    locked.chmod(0)
    if not os.access(locked, os.R_OK):
        assert "cannot be read: Permission denied" in refused(locked)
    (tmp_path / "loop.onnx").symlink_to(tmp_path / "loop.onnx")
    assert "cannot be read" in refused(tmp_path / "loop.onnx")


def test_other_formats(tmp_path: Path) -> None:
    assert "convert it to TFLite" in refused(tmp_path / "keras.h5", b"\x89HDF\r\n\x1a\n" + bytes(64))
    assert "Python pickle" in refused(tmp_path / "weights.bin", b"\x80\x02" + bytes(64))
    assert "is not an ONNX model" in refused(tmp_path / "text.onnx", b"hello, world\n")
    assert "is not a TFLite file" in refused(tmp_path / "text.tflite", b"hello, world\n")
    buffer = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, buffer)
    assert "not one of torch.export.save" in refused(tmp_path / "state.pt2", buffer.getvalue())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated(files: Path, tmp_path: Path, name: str, part: float) -> None:
    data = (files / name).read_bytes()
    refused(tmp_path / name, data[: max(1, int(len(data) * part))])


@pytest.mark.parametrize("name", ["m.onnx", "m.tflite", "m.pt2", "m"])
def test_random_bytes(tmp_path: Path, name: str) -> None:
    random = np.random.default_rng(5)
    for size in (1, 7, 64, 5000):
        refused(tmp_path / name, random.bytes(size))
        refused(tmp_path / name, b"\x1c\0\0\0TFL3" + random.bytes(size))
        refused(tmp_path / name, b"PK\x03\x04" + random.bytes(size))


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` with a few bytes changed."""
    byte = st.one_of(st.sampled_from([0, 1, 127, 128, 255]), st.integers(0, 255))
    change = st.tuples(st.integers(0, len(data) - 1), byte)

    def apply(changes: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for position, byte in changes:
            changed[position] = byte
        return bytes(changed)

    return st.lists(change, min_size=1, max_size=6).map(apply)


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_refused_or_run(files: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name

    @hypothesis_settings(max_examples=60 if name.endswith("pt2") else 200, database=None)
    @given(mutations((files / name).read_bytes()))
    def check(data: bytes) -> None:
        file.write_bytes(data)
        try:
            source = load(file)
            outputs = Reference(source).run(sample_inputs(source, 1, 0)[0])
        except InputError:
            return
        assert [output.shape for output in outputs] == [spec.shape for spec in source.outputs]

    check()


# --- small files that ask for much, or for what is not theirs


def test_huge_declared_constant(tmp_path: Path) -> None:
    data = onnx_models.huge_constant().SerializeToString()
    assert len(data) < 1024
    assert "takes 2.0 GiB; a tensor is smaller than 2 GiB" in refused(tmp_path / "h.onnx", data)
    data = onnx_models.huge_constant((1000,)).SerializeToString()
    assert "declares 4000 bytes for constant 'w', but stores 4" in refused(tmp_path / "h.onnx", data)
    assert "6.0 GiB" in refused(tmp_path / "f.onnx", onnx_models.huge_fill().SerializeToString())


def test_huge_declared_tflite_tensor(tmp_path: Path) -> None:
    model = model_tflite.parse(tflite_models.conv_net())
    model.subgraphs[0].tensors[0].shape = np.array([1, 40000, 40000, 3], np.int32)
    assert "a tensor is smaller than 2 GiB" in refused(tmp_path / "h.tflite", tflite_models.pack(model))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/etc/hostname", "only files inside the model's own folder"),
        ("../secret.bin", "only files inside the model's own folder"),
        ("sub/../../secret.bin", "only files inside the model's own folder"),
        ("", "only files inside the model's own folder"),
        ("link.bin", "a link that leads out"),
        ("linked/secret.bin", "a link that leads out"),
        ("missing.bin", "is missing from"),
        ("short.bin", "is too short: 16 bytes"),
        (".", "only files inside the model's own folder"),
        ("sub", "is missing from"),
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, expected: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (folder / "short.bin").write_bytes(bytes(15))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    assert expected in refused(folder / "m.onnx", onnx_models.external(location).SerializeToString())


def test_external_data_is_read_and_counts_for_the_hash(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "m.onnx"
    file.write_bytes(onnx_models.external("sub/w.bin", offset=4).SerializeToString())
    values = np.arange(5, dtype=np.float32)
    (tmp_path / "sub" / "w.bin").write_bytes(values.tobytes())
    source = load(file)
    np.testing.assert_array_equal(Reference(source).run([np.zeros(4, np.float32)])[0], values[1:])
    (tmp_path / "sub" / "w.bin").write_bytes((values + 1).tobytes())
    assert load(file).sha256 != source.sha256
    assert "16 bytes are declared" in refused(file, onnx_models.external("sub/w.bin", length=8).SerializeToString())


def rewritten(data: bytes, change: object) -> bytes:
    """A .pt2 archive with its members' contents changed: change(name, bytes) -> bytes or None to drop it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            content = change(info.filename.split("/", 1)[1], old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return buffer.getvalue()


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_an_archive_cannot_run_code(files: Path, tmp_path: Path) -> None:
    data, mark = (files / "net.pt2").read_bytes(), tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)

    def inputs(name: str, content: bytes) -> bytes:
        return buffer.getvalue() if name == "data/sample_inputs/model.pt" else content

    def constant(name: str, content: bytes) -> bytes:
        if name != "data/constants/model_constants_config.json":
            return content
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"c": entry}}).encode()

    def program(old: bytes, new: bytes) -> object:
        return lambda name, content: content.replace(old, new) if name == "models/model.json" else content

    refused(tmp_path / "a.pt2", rewritten(data, inputs))
    assert "could run code" in refused(tmp_path / "b.pt2", rewritten(data, constant))
    target = program(b"torch.ops.aten.sub.Tensor", b"torch.hub.load")
    assert "uses operator 'torch.hub.load'" in refused(tmp_path / "c.pt2", rewritten(data, target))
    size = program(b'{"as_int": 2}', b'{"as_expr": {"expr_str": "__import__(\'os\').mkdir(\'x\')", "hint": null}}')
    assert "is not arithmetic" in refused(tmp_path / "d.pt2", rewritten(data, size))
    enum = program(b'\\"context\\": \\"null\\"', b'\\"context\\": \\"{\\\\\\"__enum__\\\\\\": 1}\\"')
    assert "Python objects" in refused(tmp_path / "e.pt2", rewritten(data, enum))
    assert not mark.exists()


def test_model_with_state_is_refused() -> None:
    with pytest.raises(InputError, match=r"changes its own state or an input \('count'\)"):
        from_object(torch_models.Counter(), "counter", (torch.zeros(1),))


def test_onnx_that_is_no_valid_model(tmp_path: Path) -> None:
    proto = onnx_models.subtract()
    proto.graph.node[0].input[0] = "nowhere"
    assert "is not a valid ONNX model" in refused(tmp_path / "m.onnx", proto.SerializeToString())
    assert "no graph in it" in refused(tmp_path / "m.onnx", onnx.ModelProto(ir_version=8).SerializeToString())


# --- names and specifications


@given(st.text(max_size=20))
def test_c_identifier_is_one(text: str) -> None:
    name = c_identifier(text)
    assert name.isidentifier()
    assert name.isascii()
    assert name[0] != "_"
    assert c_identifier(name) == name


def test_c_identifier_avoids_keywords() -> None:
    assert [c_identifier(word) for word in ("int", "2d", "a.b-c", "", "lambda", "é")] == [
        "m_int",
        "m_2d",
        "a_b_c",
        "m",
        "m_lambda",
        "m",
    ]


@given(st.lists(st.sampled_from(["a", "a_2", "a_3", "b"]), max_size=8))
def test_unique_names(names: list[str]) -> None:
    result = unique(names)
    assert len(set(result)) == len(names)
    for position, name in enumerate(names):
        assert result[position] == name or name in names[:position]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"name": ""}, "no name"),
        ({"dtype": "complex64"}, "allowed are"),
        ({"shape": (1, 0)}, "at least 1"),
        ({"shape": (1 << 16, 1 << 16)}, "smaller than 2 GiB"),
        ({"scale": 0.5}, "only one of scale and zero point"),
        ({"scale": float("nan"), "zero_point": 0}, "positive number"),
    ],
)
def test_tensor_spec_validates_itself(change: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        dataclasses.replace(TensorSpec("x", (1, 2), "float32"), **change)
