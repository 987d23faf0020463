"""Channels last: the layout that this package's kernels compute in, for whole networks where TVM manages that."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from deploy.relax_rewrite import BINARY, array_of, op_name, per_function, shape_of

LAYOUTS = {"relax.nn.conv2d": ["NHWC", "HWIO"], "relax.nn.conv2d_transpose": ["NHWC", "HWIO"]}


@mutator
class _Constants(PyExprMutator):  # type: ignore[misc]
    """Constants in arithmetic with an image: the second operand, with four axes.

    Layout conversion takes the first operand's layout for both and does not carry a constant of fewer axes along.
    """

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = op_name(call)
        if name not in BINARY or len(shape_of(call)) != 4:
            return call
        left, right = call.args
        if array_of(left) is not None and name not in ("relax.subtract", "relax.divide"):
            left, right = right, left
        elif array_of(left) is not None and name == "relax.subtract" and array_of(right) is None:
            opposite = self.builder_.emit(relax.op.multiply(right, relax.const(-1, str(call.ty.dtype))))
            return relax.op.add(opposite, _with_four_axes(left))
        return Call(call.op, [_with_four_axes(left), _with_four_axes(right)], call.attrs, call.ty_args)


def _with_four_axes(arg: relax.Expr) -> relax.Expr:
    values = array_of(arg)
    if values is None or not 0 < values.ndim < 4:
        return arg
    four = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return relax.const(four, str(four.dtype))  # without it, int64 becomes int32


@mutator
class _EachConvolution(PyExprMutator):  # type: ignore[misc]
    """Every convolution between two transposes of its own."""

    def visit_call_(self, call: Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        attrs = call.attrs
        if op_name(call) not in LAYOUTS or attrs.data_layout != "NCHW" or attrs.out_layout not in ("", "NCHW"):
            return call
        data = self.builder_.emit(relax.op.permute_dims(call.args[0], [0, 2, 3, 1]))
        axes = [str(attrs.kernel_layout).index(axis) for axis in "HWIO"]
        weight = self.builder_.emit(relax.op.permute_dims(call.args[1], axes))
        options = {name: attrs[name] for name in ("strides", "padding", "dilation", "groups", "out_dtype")}
        operator = relax.op.nn.conv2d
        if op_name(call) == "relax.nn.conv2d_transpose":
            operator, options["output_padding"] = relax.op.nn.conv2d_transpose, attrs.output_padding
        result = operator(data, weight, **options, data_layout="NHWC", kernel_layout="HWIO", out_layout="NHWC")
        return relax.op.permute_dims(self.builder_.emit(result), [0, 3, 1, 2])


def convert_each_convolution() -> tvm.ir.transform.Pass:
    """Pass: convolutions with channels first → the same with channels last, between transposes."""
    return per_function(_EachConvolution, "ConvertEachConvolution")


def convert_layout() -> tvm.ir.transform.Pass:
    """Pass: convolutions and all that lies between them get channels last.

    TVM's pass gives up on some operators wherever they are in the model; then each convolution is converted alone.
    """

    def run(mod: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        try:
            return relax.transform.ConvertLayout(LAYOUTS)(mod)
        except Exception:  # TVM raises anything from ValueError to InternalError
            return convert_each_convolution()(mod)

    return tvm.transform.module_pass(run, opt_level=0, name="ConvertLayoutOrEach")


def rewrite_constants() -> tvm.ir.transform.Pass:
    """Pass: a constant in arithmetic with a tensor of four axes has four axes too and comes second."""
    return per_function(_Constants, "RewriteConstants")
