"""What a run found out, as a table for people, Markdown, or JSON for scripts (documented in report.schema.json)."""

from deploy.report.firmware import Firmware, Layer
from deploy.report.json_report import parse_json, render_json
from deploy.report.judge import judged, readings
from deploy.report.markdown import render_markdown
from deploy.report.model import (
    SCHEMA_VERSION,
    Accuracy,
    FloatForm,
    Latency,
    ModelFacts,
    Overall,
    Report,
    Sizes,
    TargetFacts,
    TensorDifference,
    TuningFacts,
    Verification,
)
from deploy.report.text import render_text

__all__ = [
    "SCHEMA_VERSION",
    "Accuracy",
    "Firmware",
    "FloatForm",
    "Latency",
    "Layer",
    "ModelFacts",
    "Overall",
    "Report",
    "Sizes",
    "TargetFacts",
    "TensorDifference",
    "TuningFacts",
    "Verification",
    "judged",
    "parse_json",
    "readings",
    "render_json",
    "render_markdown",
    "render_text",
]
