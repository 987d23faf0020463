"""What an imported model consists of: operator counts and multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from math import prod

from tvm import relax
from tvm.ir import Call, IRModule, Op

CONVOLUTIONS = {"relax.nn.conv1d": "O", "relax.nn.conv2d": "O", "relax.nn.conv3d": "O"}
TRANSPOSED = {"relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose", "relax.nn.conv3d_transpose"}


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape)


def _macs(call: Call) -> int:
    """Multiply-accumulates of one operator; a padded border counts like the rest, as is usual."""
    name = str(call.op.name)
    if name == "relax.matmul":
        return prod(_shape(call)) * _shape(call.args[0])[-1]
    if name in CONVOLUTIONS or name in TRANSPOSED:
        weight, layout, groups = _shape(call.args[1]), str(call.attrs.kernel_layout), int(call.attrs.groups)
        spatial = prod(size for size, axis in zip(weight, layout, strict=True) if axis not in "OI")
        if name in TRANSPOSED:  # every input element is multiplied with the kernel of each output channel of its group
            return prod(_shape(call.args[0])) * spatial * (prod(weight) // spatial) // _input_channels(call)
        return prod(_shape(call)) * spatial * (_input_channels(call) // groups)
    return 0


def _input_channels(call: Call) -> int:
    return _shape(call.args[0])[str(call.attrs.data_layout).index("C")]


def count(mod: IRModule) -> tuple[dict[str, int], int]:
    """Operators of `main` by name, and its multiply-accumulates for one inference."""
    counts: Counter[str] = Counter()
    macs = 0
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, Call) and isinstance(value.op, Op):
                counts[str(value.op.name).removeprefix("relax.")] += 1
                macs += _macs(value)
    return dict(sorted(counts.items())), macs
