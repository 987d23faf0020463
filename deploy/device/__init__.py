"""Devices: where a compiled model runs. All have one interface, `Device`, and pass one suite of tests.

    with LocalDevice() as device:
        run = device.run(library, "mymodel", samples, model.outputs, RunPlan(seconds=2.0))
"""

from deploy.device.local import LocalDevice
from deploy.device.protocol import Condition, Device, DeviceRun, RunPlan

__all__ = ["Condition", "Device", "DeviceRun", "LocalDevice", "RunPlan"]
