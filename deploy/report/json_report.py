"""The report as JSON for scripts; report.schema.json beside this file documents every field.

Within a schema version fields may be added, never removed or changed in meaning: readers ignore those they do not know.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from deploy.errors import InputError
from deploy.power import EnergyReading
from deploy.report.codec import from_plain, to_plain
from deploy.report.firmware import Firmware
from deploy.report.model import SCHEMA_VERSION, Report

SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
_DERIVED: dict[type, tuple[str, ...]] = {
    Report: ("verdict", "exit_code", "speedup", "warnings"),
    EnergyReading: ("complete", "watts"),
    Firmware: ("flash_bytes", "ram_bytes"),
}
_BROKEN_NUMBERS = re.compile(r"\[\n\s*([-+.\deE,\s]*?)\n\s*\]")


def render_json(report: Report) -> str:
    """Return the report as one JSON object in ASCII, ending in a newline; infinite and nan are strings."""
    text = json.dumps(_plain(report), indent=2, allow_nan=False)
    return _BROKEN_NUMBERS.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text) + "\n"


def parse_json(text: str, source: str = "the report") -> Report:
    """Return the report that `render_json` wrote. Raises InputError, naming `source` and the field that is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not JSON ({error}): give a report written with --json") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise InputError(f"{source} is not a tvm-deploy report (no schema_version): give one written with --json")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{source} has schema version {version}, this program reads {SCHEMA_VERSION}: use the version that wrote it"
        )
    try:
        report: Report = from_plain(Report, data, "report")
    except ValueError as error:
        raise InputError(f"{source} is damaged: {error}") from None
    if (given := data.get("verdict", report.verdict.value)) != report.verdict.value:
        raise InputError(f"{source} is damaged: its verdict is {given!r}, its checks say {report.verdict.value}")
    return report


def _plain(report: Report) -> dict[str, Any]:
    """The report as dicts and lists; the version and the verdict come first, where people and scripts look."""
    data: dict[str, Any] = to_plain(report, _DERIVED)
    first = ("schema_version", "verdict", "exit_code")
    return {name: data[name] for name in (*first, *(name for name in data if name not in first))}
