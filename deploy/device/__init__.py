"""Devices: where a compiled model runs. All have one interface, `Device`, and errors of one kind.

    with LocalDevice() as device:
        run = device.run(library, "mymodel", samples, model.outputs, RunPlan(seconds=2.0))

A board that is added later must pass the tests in tests/device_contract.py.
"""

from deploy.device.local import LocalDevice
from deploy.device.protocol import Condition, Device, DeviceRun, RunPlan

__all__ = ["Condition", "Device", "DeviceRun", "LocalDevice", "RunPlan"]
