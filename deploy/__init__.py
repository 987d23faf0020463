"""Deploy a trained model to a device: tuned, compiled ahead of time, verified and measured against its budget.

`deploy.load(folder)` gives a compiled model as a Python callable; it needs NumPy, not TVM.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.runtime import Model

__all__ = ["load"]


def load(path: str | Path) -> Model:
    """Load the artifact in folder `path`. Raises InputError where it is none, ToolError where it cannot be loaded."""
    from deploy.runtime import Model

    return Model(path)
