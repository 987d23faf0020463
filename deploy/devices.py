"""Which device runs a target's libraries: the one table of kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deploy.device.local import local_device
from deploy.device.protocol import Device
from deploy.device.qemu import QemuDevice
from deploy.device.rpc import RpcDevice
from deploy.device.serial import SerialDevice
from deploy.device.ssh import SshDevice
from deploy.errors import InputError
from deploy.target import Target

DEVICES: Mapping[str, Callable[[Target], Device]] = {
    "local": local_device,
    "qemu": QemuDevice,
    "rpc": RpcDevice,
    "serial": SerialDevice,
    "ssh": SshDevice,
}


def open_device(target: Target) -> Device:
    """The device that a target's libraries run on. Raises InputError for a kind that this version cannot drive."""
    return DEVICES[_driven(target)](target)


def _driven(target: Target) -> str:
    kind = target.device.kind
    if kind in DEVICES:
        return kind
    raise InputError(
        f"target {target.name} runs on a device of kind {kind}, which this version cannot drive; "
        f"`tvm-deploy build` compiles for it, and kinds that it drives are {', '.join(DEVICES)}"
    )
