"""The report as Markdown, for pull requests and CI summaries."""

from __future__ import annotations

import re
from collections.abc import Sequence

from deploy.report.model import Report
from deploy.report.words import facts, reasons, rows, tensor_rows, visible, warnings

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, ending in a newline."""
    title = f"# {_escaped(report.model.name)} on {_escaped(report.target.name)}: {report.verdict.value}"
    found = [(f"**{label}**", _escaped(text)) for label, text in (*facts(report), ("Artifact", report.artifact))]
    notes = "\n".join(f"> **Warning:** {_escaped(sentence)}" for sentence in warnings(report))
    parts = [title, notes, _budgets(report), _table(("", ""), found)]
    if report.verification is not None and report.verification.tensors:
        header = ("Tensor", "Type", "Differing", "Largest abs", "Largest rel")
        lines = [tuple(map(_escaped, row)) for row in tensor_rows(report.verification)]
        parts.append("## Output\n\n" + _table(header, lines, right=(2, 3, 4)))
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts.append(_escaped(f"{report.created} with {versions}") if versions else _escaped(report.created))
    return "\n\n".join(part for part in parts if part) + "\n"


def _budgets(report: Report) -> str:
    if not report.checks:
        return ""
    lines = [
        (*map(_escaped, (row.name, row.limit, row.value, row.how)), f"**{row.verdict.value}**") for row in rows(report)
    ]
    table = _table(("Budget", "Limit", "Value", "How", "Verdict"), lines, right=(1, 2))
    notes = "\n".join(f"- {_escaped(reason)}" for reason in reasons(report))
    return f"{table}\n\n{notes}" if notes else table


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    rule = ["---:" if index in right else "---" for index in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *lines))


def _escaped(text: str) -> str:
    """Return `text` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", visible(text))
