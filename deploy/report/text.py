"""The report as people read it in a terminal."""

from __future__ import annotations

import codecs
import io

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploy.report.model import Overall, Report
from deploy.report.words import facts, reasons, rows, tensor_rows, visible, warnings

_STYLES = {
    "PASS": "bold green",
    "MISS": "bold red",
    "WRONG OUTPUT": "bold red",
    "NOT VERIFIED": "bold yellow",
    "NOT MEASURED": "bold yellow",
    "TOO NOISY": "bold yellow",
}
_NARROWEST = 40


def render_text(report: Report, width: int = 100, color: bool = False, encoding: str = "utf-8") -> str:
    """Return the report as lines of at most `width` columns (40 or more), ending in a newline.

    Only the artifact's path may be longer: broken into lines it could not be copied.
    color: with ANSI colours. encoding: of the stream it is for; plain ASCII is used if that is not a Unicode one.
    """
    unicode = _is_unicode(encoding)
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=max(width, _NARROWEST),
        force_terminal=color,
        color_system="standard" if color else None,
        highlight=False,
        _environ={},  # neither NO_COLOR nor COLUMNS may change what the caller asked for
    )
    console.print(_facts_table(report))
    if report.verification is not None and not report.verification.passed:
        console.print(_tensor_table(report, unicode))
    if report.checks:
        console.print(_budget_table(report, unicode))
        for reason in reasons(report):
            console.print(Padding(Text(reason), (0, 0, 0, 2)))
    for sentence in warnings(report):
        console.print(Text("WARNING", style="bold yellow") + Text(f": {sentence}"))
    console.print(Text(f"\n{report.verdict.value}", style=_STYLES[report.verdict.value]) + Text(_closing(report)))
    console.print(Text("Artifact: ") + Text(visible(report.artifact)), soft_wrap=True)
    text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"
    return text if unicode else text.encode("ascii", "backslashreplace").decode("ascii")


def _facts_table(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in facts(report):
        style = "bold red" if label == "Output" and report.verdict is Overall.WRONG_OUTPUT else ""
        table.add_row(Text(label), Text(text, style=style))
    return table


def _budget_table(report: Report, unicode: bool) -> Table:
    table = _table(unicode)
    for title in ("Budget", "Limit", "Value"):
        table.add_column(title, justify="left" if title == "Budget" else "right")
    table.add_column("How", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for row in rows(report):
        verdict = Text(row.verdict.value, style=_STYLES[row.verdict.value])
        table.add_row(Text(row.name), Text(row.limit), Text(row.value), Text(row.how), verdict)
    return table


def _tensor_table(report: Report, unicode: bool) -> Table:
    table = _table(unicode)
    table.add_column("Tensor", overflow="fold")
    table.add_column("Type")
    for title in ("Differing", "Largest abs", "rel"):
        table.add_column(title, justify="right")
    if report.verification is not None:
        for row in tensor_rows(report.verification):
            table.add_row(*map(Text, row))
    return table


def _table(unicode: bool) -> Table:
    return Table(box=box.ROUNDED if unicode else box.ASCII, header_style="bold")


def _closing(report: Report) -> str:
    met = sum(row.verdict.value == "PASS" for row in rows(report))
    budgets = f"{met} of {len(report.checks)} budgets met" if report.checks else "no budgets given"
    match report.verdict:
        case Overall.NOT_VERIFIED:
            return f": {budgets}, output not verified"
        case Overall.WRONG_OUTPUT:
            return f": {budgets}, output wrong"
        case _:
            return f": {budgets}, output verified"


def _is_unicode(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name.startswith("utf")
    except LookupError:
        return False
