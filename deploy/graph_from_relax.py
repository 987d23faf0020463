"""The straight-line `main` of a lowered Relax module → Graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tvm import relax
from tvm.ir import Call as RelaxCall
from tvm.ir import GenericConst, GlobalVar, IRModule, Op

from deploy.errors import InputError
from deploy.graph import COPY, Call, Graph, Kind, Tensor
from deploy.model_spec import unique
from deploy.relax_import import RelaxModel

Value = str | tuple["Value", ...]  # a tensor's name, or a tuple of such
RESHAPES = {"relax.reshape", "relax.memory.view", "relax.flatten", "relax.expand_dims", "relax.squeeze"}


@dataclass
class _Builder:
    """What is known while walking `main` from top to bottom."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    values: dict[relax.Var, Value] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)
    ends: frozenset[str] = frozenset()  # names that belong to the model's inputs and outputs

    def fresh(self, letter: str) -> str:
        """A name for a tensor that has none of its own."""
        return unique([f"{letter}{len(self.tensors)}"], {*self.ends, *self.tensors})[0]

    def add(self, ty: relax.TensorType, kind: Kind, name: str, **extra: object) -> str:
        shape = tuple(int(d) for d in ty.shape)
        self.tensors[name] = Tensor(name, shape, str(ty.dtype), kind, **extra)  # type: ignore[arg-type]
        return name

    def value(self, expr: relax.Expr) -> Value:
        if isinstance(expr, GenericConst):
            return self.add(expr.ty, "constant", self.fresh("c"), values=expr.value.numpy())
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(item) for item in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[int(expr.index)]
        return self.values[expr]

    def tensor(self, expr: relax.Expr) -> str:
        value = self.value(expr)
        if not isinstance(value, str):
            raise TypeError(f"{expr} is a tuple where a tensor belongs")
        return value

    def root(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return tensor if tensor.alias_of is None else self.root(tensor.alias_of)

    def outputs(self, ty: relax.Type) -> tuple[str, ...]:
        parts = ty.fields if isinstance(ty, relax.TupleType) else [ty]
        return tuple(self.add(part, "activation", self.fresh("t")) for part in parts)

    def call_tir(self, call: RelaxCall) -> Value:
        kernel, arguments = call.args[0], call.args[1]
        inputs = tuple(self.tensor(arg) for arg in arguments.fields)
        outputs = self.outputs(call.ty)
        self.calls.append(Call(kernel.name_hint, inputs, outputs))
        return outputs if isinstance(call.ty, relax.TupleType) else outputs[0]

    def bind(self, var: relax.Var, expr: relax.Expr) -> None:
        if not isinstance(expr, RelaxCall):
            self.values[var] = self.value(expr)
            return
        name = str(expr.op.name) if isinstance(expr.op, Op) else str(expr.op)
        if name == "relax.call_tir" and isinstance(expr.args[0], GlobalVar):
            self.values[var] = self.call_tir(expr)
        elif name in RESHAPES:
            source = self.tensor(expr.args[0])
            self.values[var] = self.add(expr.ty, "activation", self.fresh("t"), alias_of=source)
        else:
            self.unsupported.append(f"{name.removeprefix('relax.')} ({var.name})")
            results = self.outputs(expr.ty)
            self.values[var] = results if isinstance(expr.ty, relax.TupleType) else results[0]


def _flat(value: Value) -> list[str]:
    return [value] if isinstance(value, str) else [name for item in value for name in _flat(item)]


def _deliver(builder: _Builder, results: list[str], names: list[str]) -> None:
    """Let each result live in the output of that name; one that already lives elsewhere for good is copied."""
    for result, name in zip(results, names, strict=True):
        tensor = builder.tensors[result]
        root = builder.root(result)
        builder.tensors[name] = Tensor(name, tensor.shape, tensor.dtype, "output")
        if root.kind == "activation":
            builder.tensors[root.name] = replace(root, alias_of=name)
        else:
            builder.calls.append(Call(COPY, (result,), (name,)))


def to_graph(mod: IRModule, model: RelaxModel) -> Graph:
    """Read the module's `main`.

    Raises InputError that lists every operator with no ahead-of-time form.
    """
    main = mod["main"]
    inputs = unique(spec.name for spec in model.inputs)
    outputs = unique((spec.name for spec in model.outputs), inputs)
    builder = _Builder(ends=frozenset((*inputs, *outputs)))
    for var, name in zip(main.params, inputs, strict=True):
        builder.values[var] = builder.add(var.ty, "input", name)
    for block in main.body.blocks:
        for binding in block.bindings:
            builder.bind(binding.var, binding.value)
    if builder.unsupported:
        raise InputError(
            f"{model.name}: no ahead-of-time form for {', '.join(builder.unsupported)}; "
            "replace these operators in the model, or split the model in front of them"
        )
    results = _flat(builder.value(main.body.body))
    _deliver(builder, results, outputs)
    return Graph(builder.tensors, tuple(builder.calls), tuple(inputs), tuple(outputs))
