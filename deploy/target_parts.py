"""The parts a target is made of: toolchain, device, power and TVM's own options; `target_memory` has its memories."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from deploy import fields, host
from deploy.errors import InputError
from deploy.fields import Option, Options, Table
from deploy.yaml_source import Node, Plain

ARTIFACTS = ("shared-library", "firmware")
DETECT = "detect"

# What TVM 0.27 takes in a target dict of the two code generators used here; TVM itself rejects any other key.
_CODE_OPTIONS: Table = {"keys": "texts", "device": "text", "model": "text", "libs": "texts", "mcpu": "text"}
TVM: dict[str, Table] = {
    "llvm": {
        **_CODE_OPTIONS,
        "mattr": "texts",
        "mtriple": "text",
        "mfloat-abi": "text",
        "mabi": "text",
        "num-cores": "count",
        "vector-width": "count",
        "opt-level": "whole",
        "cl-opt": "texts",
        "jit": "text",
        "fast-math": "flag",
        "fast-math-nnan": "flag",
        "fast-math-ninf": "flag",
        "fast-math-nsz": "flag",
        "fast-math-arcp": "flag",
        "fast-math-contract": "flag",
        "fast-math-reassoc": "flag",
    },
    "c": {
        **_CODE_OPTIONS,
        "mtriple": "text",
        "march": "text",
        "workspace-byte-alignment": "count",
        "constants-byte-alignment": "count",
    },
}
DEVICES: dict[str, Table] = {
    "local": {},
    "qemu": {
        "machine": "text",
        "cpu": "text",
        "program": "text",
        "arguments": "texts",
        "tick": "time",
        "timeout": "time",
    },
    "rpc": {
        "tracker": "text",
        "key": "text",
        "host": "text",
        "port": "count",
        "config": "text",
        "timeout": "time",
    },
    "serial": {
        "port": "text",
        "baud": "count",
        "board": "texts",
        "flash": "texts",
        "reset": "texts",
        "timeout": "time",
        "emulated": "flag",
        "tick": "time",
    },
    "ssh": {
        "host": "text",
        "port": "count",
        "user": "text",
        "identity": "text",
        "config": "text",
        "directory": "text",
        "run_with": "texts",
        "emulated": "flag",
        "timeout": "time",
    },
    "replay": {"recording": "text"},
}
_ANY: Table = {"duration": "time", "accuracy": "percent"}
_METER: Table = {"voltage": "voltage", "wiring": "text", **_ANY}
POWER: dict[str, Table] = {
    "none": {},
    "estimate": {"active": "power", "idle": "power"},
    "rapl": {"root": "text", **_ANY},
    "hwmon": {"root": "text", "rails": "texts", "wiring": "text", **_ANY},
    "auto": {"root": "text", "rails": "texts", "active": "power", "idle": "power", "duration": "time"},
    "csv": {"command": "texts", "file": "text", "clock": "text", "columns": "texts", **_METER},
    "ppk2": {"port": "text", "mode": "text", "mark": "text", **_METER},
    "lpm01a": {"port": "text", "rate": "frequency", **_METER},
    "scpi": {"address": "text", "queries": "texts", "setup": "texts", "rails": "texts", **_METER},
}
# What belongs to one laboratory: allowed in a user's own files, kept out of the shipped targets.
LAB_KEYS = frozenset(
    {"tracker", "host", "port", "user", "identity", "config", "recording", "root", "address", "command", "file"}
)
_DEVICES_OF = {"shared-library": ("local", "qemu", "rpc", "ssh", "replay"), "firmware": ("qemu", "serial", "replay")}
_TOOLCHAIN: Table = {"cc": "text", "cflags": "texts", "ldflags": "texts"}


@dataclass(frozen=True)
class Toolchain:
    """The C compiler that builds and links the library, and its flags."""

    cc: str = "cc"
    cflags: tuple[str, ...] = ("-O2",)
    ldflags: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Kinded:
    """A kind and its options; `get` returns one of them or a default."""

    kind: str
    options: Options = field(default=())

    def get(self, key: str, default: Option | None = None) -> Option | None:
        """Return the option `key` in base units, or `default` when it is not given."""
        return dict(self.options).get(key, default)


@dataclass(frozen=True)
class DeviceSpec(_Kinded):
    """How the device is reached: local, qemu, rpc, serial, ssh or replay, with the options of DEVICES[kind]."""

    def __post_init__(self) -> None:
        _check_options("device", self, DEVICES)


@dataclass(frozen=True)
class PowerSpec(_Kinded):
    """Where power readings come from, with the options of POWER[kind].

    "auto" tries RAPL, then hwmon, then the estimate that `active` states (if it does); "estimate" takes `active` (and
    `idle`) at their word, and every reading says so. `root` is where sysfs is mounted, `rails` are the hwmon sensors to
    add up.
    """

    def __post_init__(self) -> None:
        _check_options("power", self, POWER)
        if self.kind == "estimate" and self.active is None:
            raise InputError('power of kind estimate needs "active", such as {kind: estimate, active: 120 mW}')
        if self.get("duration") == 0:
            raise InputError('power: "duration" must be more than zero: it is how long the device is watched')
        if self.idle is not None and (self.active is None or self.idle > self.active):
            raise InputError('power: "idle" needs an "active" that is not less than it')

    @property
    def active(self) -> float | None:
        """Return the stated power in watts while the model runs, if any."""
        return cast("float | None", self.get("active"))

    @property
    def rails(self) -> tuple[str, ...]:
        """Return the hwmon sensors to add up; none named means the only one there is."""
        return cast("tuple[str, ...]", self.get("rails") or ())

    @property
    def idle(self) -> float | None:
        """Return the stated power in watts while nothing runs, if any."""
        return cast("float | None", self.get("idle"))


def check_device(artifact: str, device: DeviceSpec) -> None:
    """Raise InputError when a device of this kind cannot run the artifact, or there is no such artifact."""
    if artifact not in ARTIFACTS:
        raise InputError(f'artifact "{artifact}" is not one of {", ".join(ARTIFACTS)}')
    allowed = _DEVICES_OF[artifact]
    if device.kind not in allowed:
        kinds = ", ".join(allowed)
        raise InputError(f'a device of kind "{device.kind}" cannot run the artifact "{artifact}"; allowed: {kinds}')


def checked_tvm(options: Options) -> Options:
    """Return TVM's options in the table's order; InputError for a kind or an option that TVM does not take."""
    kind = str(dict(options).get("kind"))
    rest = tuple((key, value) for key, value in options if key != "kind")
    _check_options("tvm", _Kinded(kind, rest), TVM)
    return (("kind", kind), *in_order(rest, TVM[kind]))


def parse_tvm(node: Node) -> Options:
    """Return TVM's target dict as pairs, `mcpu: detect` replaced with this machine's CPU and extensions."""
    entries = node.mapping("tvm")
    kind = _kind(node, "tvm", tuple(TVM))
    options = _with_kind(node, "tvm", kind, TVM[kind])
    for attribute in cast("tuple[str, ...]", options.get("mattr", ())):
        if attribute[0] not in "+-":
            raise entries["mattr"].error(f'mattr of tvm: "{attribute}" must start with + or -')
    if options.get("mcpu") == DETECT:
        if kind != "llvm":
            raise entries["mcpu"].error("mcpu: detect needs kind: llvm; name the CPU")
        mcpu, extensions = host.detect_cpu()
        given = cast("tuple[str, ...]", options.get("mattr", ()))
        options["mcpu"] = mcpu
        if extensions or given:
            options["mattr"] = (*extensions, *given)
    return (("kind", kind), *options.items())


def parse_toolchain(node: Node) -> Toolchain:
    """Return `{cc: arm-none-eabi-gcc, cflags: [...], ldflags: [...]}` as Toolchain."""
    values = dict(fields.read(node, "toolchain", _TOOLCHAIN))
    default = Toolchain()
    return Toolchain(
        cast(str, values.get("cc", default.cc)),
        cast("tuple[str, ...]", values.get("cflags", default.cflags)),
        cast("tuple[str, ...]", values.get("ldflags", default.ldflags)),
    )


def parse_device(node: Node) -> DeviceSpec:
    """Return `{kind: qemu, machine: mps2-an500}` as DeviceSpec."""
    kind = _kind(node, "device", tuple(DEVICES))
    options = tuple(_with_kind(node, "device", kind, DEVICES[kind]).items())
    return node.placing(lambda: DeviceSpec(kind, options))


def parse_power(node: Node) -> PowerSpec:
    """Return `{kind: estimate, active: 120 mW}` as PowerSpec."""
    kind = _kind(node, "power", tuple(POWER))
    options = tuple(_with_kind(node, "power", kind, POWER[kind]).items())
    return node.placing(lambda: PowerSpec(kind, options))


def plain_tvm(options: Options) -> dict[str, Plain]:
    """Return the plain data that `parse_tvm` reads."""
    kind = str(dict(options)["kind"])
    return {"kind": kind, **fields.write(options[1:], TVM[kind])}


def plain_toolchain(toolchain: Toolchain) -> dict[str, Plain]:
    """Return the plain data that `parse_toolchain` reads."""
    return {"cc": toolchain.cc, "cflags": list(toolchain.cflags), "ldflags": list(toolchain.ldflags)}


def plain_device(device: DeviceSpec) -> dict[str, Plain]:
    """Return the plain data that `parse_device` reads."""
    return {"kind": device.kind, **fields.write(device.options, DEVICES[device.kind])}


def plain_power(power: PowerSpec) -> dict[str, Plain]:
    """Return the plain data that `parse_power` reads."""
    return {"kind": power.kind, **fields.write(power.options, POWER[power.kind])}


def _kind(node: Node, what: str, allowed: tuple[str, ...]) -> str:
    entries = node.mapping(what)
    if "kind" not in entries:
        raise node.error(f'{what} has no "kind"; write one of {", ".join(allowed)}')
    return entries["kind"].choice(f"kind of {what}", allowed)


def _with_kind(node: Node, what: str, kind: str, table: Table) -> dict[str, Option]:
    options = dict(fields.read(node, f"{what} of kind {kind}", {"kind": "text", **table}))
    del options["kind"]
    return options


def _check_options(what: str, part: _Kinded, tables: dict[str, Table]) -> None:
    if part.kind not in tables:
        raise InputError(f'unknown kind "{part.kind}" of {what}; allowed: {", ".join(tables)}')
    for key, _ in part.options:
        if key not in tables[part.kind]:
            allowed = ", ".join(tables[part.kind]) or "none"
            raise InputError(f'unknown option "{key}" of {what} of kind {part.kind}; allowed: {allowed}')
    # So that equal options compare equal.
    object.__setattr__(part, "options", in_order(part.options, tables[part.kind]))


def in_order(options: Options, table: Table) -> Options:
    """Return `options` in the table's order."""
    order = list(table)
    return tuple(sorted(options, key=lambda pair: order.index(pair[0])))
