"""The graph as data, and how it is read from a lowered module: who shares whose memory, and who is copied."""

import numpy as np
import pytest
import torch
from built import assert_correct, build, host, torch_source

from deploy import lower as lowering
from deploy.compile import lower_for
from deploy.errors import InputError, ToolError
from deploy.graph import COPY, Call, Graph, Tensor
from deploy.model_spec import TensorSpec
from deploy.runtime import Model

pytestmark = pytest.mark.tvm


def test_sizes_and_roots():
    tensors = {
        "a": Tensor("a", (2, 3), "float32", "activation"),
        "b": Tensor("b", (6,), "float32", "activation", alias_of="a"),
        "c": Tensor("c", (3, 2), "float32", "activation", alias_of="b"),
        "s": Tensor("s", (), "int64", "input"),
    }
    graph = Graph(tensors, (), ("s",), ("c",))
    assert graph.root("c") is tensors["a"]
    assert (tensors["a"].nbytes, tensors["s"].nbytes) == (24, 8)


def test_arguments_come_in_the_kernels_order():
    call = Call("k", ("a", "b"), ("c",), ("w",))
    assert call.arguments == ("a", "b", "c", "w")
    assert call.written == ("c", "w")


P = torch.tensor([1.0, 2.0, 3.0])
ENDS = {
    "an output that is an input": (lambda _, x: (x, x + 1), 1),
    "an output that is a constant": (lambda _, x: (x + 1, P.clone()), 1),
    "the same tensor twice": (lambda _, x: (lambda y: (y, y))(x.exp()), 1),
    "a reshape of an input": (lambda _, x: x.reshape(3, 1), 1),
    "a tensor and its reshape": (lambda _, x: (lambda y: (y, y.reshape(3, 1)))(x.exp()), 1),
    "an intermediate that is an output too": (lambda _, x: (lambda y: (y, y.exp() * 2))(x * 3), 0),
    "only an input": (lambda _, x: x, 1),
}


@pytest.mark.parametrize("case", ENDS)
def test_outputs(case):
    function, copies = ENDS[case]
    source = torch_source(function, torch.rand(3))
    artifact = build(source)
    assert_correct(source, artifact)
    assert len({COPY, "reshape"} & set(artifact.facts["calls"])) == copies
    assert artifact.arena_bytes == 0


def test_several_inputs_and_outputs_keep_their_order():
    examples = torch.rand(3), torch.rand(3), torch.zeros(2, dtype=torch.int32)
    source = torch_source(lambda _, a, b, c: (a - b, c * 2, b / (a + 1)), *examples)
    assert_correct(source, build(source))


def test_tensors_named_like_ours_do_not_collide():
    """Inputs and outputs that are called what unnamed tensors are called inside."""
    import onnx
    from onnx import TensorProto, helper

    names = ["t1", "c1", "t2", "t0"]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in [*names, "t3", "c2", "t4", "w0_0"]]
    nodes = [
        helper.make_node("Add", ["t1", "c1"], ["inner"]),
        helper.make_node("Softmax", ["inner"], ["t3"]),
        helper.make_node("Mul", ["t2", "t0"], ["c2"]),
        helper.make_node("Exp", ["c2"], ["t4"]),
        helper.make_node("Sub", ["t4", "t3"], ["w0_0"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:4], values[4:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    from deploy import model

    source = model.from_object(proto, "collide")
    assert_correct(source, build(source))


def test_every_operator_without_an_ahead_of_time_form_is_named():
    source = torch_source(lambda _, x: x.cumsum(-1) + x.sort()[0], torch.rand(3, 5))
    with pytest.raises(InputError, match=r"net: no ahead-of-time form for .*cumsum.*argsort|argsort.*cumsum"):
        lower_for(source, host())


def test_what_tvm_raises_is_one_sentence_with_the_operator():
    from tvm import relax

    call = relax.op.nn.relu(relax.Var("x", relax.TensorType((1,), "float32")))

    def legalize(call):
        raise RuntimeError("Traceback:\n  check failed: rank == 4")

    expected = r"^TVM cannot compile model 'm' at operator nn\.relu: .*; replace that part"
    with pytest.raises(ToolError, match=expected), lowering.explained("model 'm'"):
        legalize(call)
    with pytest.raises(ToolError, match=r"^too large$"), lowering.explained("model 'm'"):
        raise ToolError("too large")


def test_specs_are_the_sources():
    source = torch_source(lambda _, x: x + 1, torch.rand(2, 2))
    loaded = Model(build(source).path)
    assert loaded.inputs == source.inputs == (TensorSpec(source.inputs[0].name, (2, 2), "float32"),)
    assert loaded.outputs == source.outputs
    np.testing.assert_array_equal(loaded(np.ones((2, 2), np.float32)), np.full((2, 2), 2.0))
