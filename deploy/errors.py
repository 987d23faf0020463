"""What can go wrong, by who has to act.

DeployError
├── InputError    you must change the model, the YAML or a flag (exit code 2)
├── ToolError     a compiler, TVM or another program on this machine failed (exit code 3)
└── DeviceError   the device, its link or its meter failed; trying again may help (exit code 3)

Outcomes that are expected (a missed budget, a wrong output, a failed tuning candidate) are values
in a result, never exceptions.
"""

from __future__ import annotations


class DeployError(Exception):
    """Base of all errors shown to a user as one sentence, without a traceback."""

    exit_code = 3


class InputError(DeployError):
    """The request itself is wrong. Fix: change the model, the YAML or the flag that the message names."""

    exit_code = 2


class ToolError(DeployError):
    """A program this machine runs failed or is missing. Fix: install or repair the tool that the message names."""


class DeviceError(DeployError):
    """The device, its link or its meter failed. Fix: check the board or permission the message names, then retry."""
