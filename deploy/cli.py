"""Arguments → pipeline → report → exit code. The only module that prints: stdout is the report, stderr everything else.

Exit codes: 0 every budget met and output verified; 1 a budget missed, not measured or too noisy, or output wrong;
2 wrong input; 3 a tool or device failed.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.arguments import parser
from deploy.errors import DeployError, InputError, ToolError
from deploy.progress import Progress, open_progress

if TYPE_CHECKING:
    from deploy.artifact import Artifact
    from deploy.report import Report
    from deploy.target import Target

INTERRUPTED = 130  # what a shell gives for a program ended by Ctrl-C
def _out(text: str) -> None:
    """Print; a reader that went away (`| head`) does not change the outcome of the command."""
    try:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again when it ends
        if not isinstance(error, BrokenPipeError):
            raise ToolError(f"cannot write the report to stdout: {error.strerror}") from error


def _progress(args: argparse.Namespace) -> Progress:
    return open_progress(sys.stderr, quiet=args.quiet)


def _note_stale(args: argparse.Namespace, target: Target) -> None:
    """Say once where tuning was done before, but for another fingerprint or TVM version."""
    from deploy.tuning.current import stale_note

    if not args.quiet and (note := stale_note(target, args.logs)):
        sys.stderr.write(f"tvm-deploy: note: {note}\n")


def _target(args: argparse.Namespace) -> Target:
    from dataclasses import replace

    from deploy.targets import in_portable_c, load_target

    target = load_target(args.target)
    if args.threads is not None:
        target = replace(target, threads=args.threads)
    if getattr(args, "emit", None) == "c":
        target = in_portable_c(target)
    target = _with_stopping(args, target)
    if args.device and "://" in args.device:
        from deploy.boards import board_at

        return board_at(args.device).apply(target)
    if args.device and not args.boards:
        raise InputError(
            "--device names a board of a file; give that file with --boards, or an address such as ssh://pi@raspberrypi"
        )
    if args.boards:
        from deploy.boards import load_boards
        from deploy.units import did_you_mean

        boards = load_boards(args.boards)
        if args.device not in boards:
            wanted = f"--device {args.device}{did_you_mean(args.device, boards)}" if args.device else "no --device"
            raise InputError(f"{args.boards} has the boards {', '.join(boards)}; {wanted} was given")
        target = boards[args.device].apply(target)
    return target


def _with_stopping(args: argparse.Namespace, target: Target) -> Target:
    """The target, with what the command line says of when tuning ends."""
    from dataclasses import replace

    names = {"trials": "trials", "time": "time_s", "patience": "patience", "until": "until"}
    given = {name: getattr(args, flag, None) for flag, name in names.items()}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(target, tuning=replace(target.tuning, **changes)) if changes else target


def _as_built(target: Target, artifact: Artifact) -> Target:
    """The target in C, where that is how the artifact was made."""
    from deploy.targets import in_portable_c

    return in_portable_c(target) if artifact.facts["target"]["tvm"]["kind"] == "c" else target


def _show(args: argparse.Namespace, report: Report) -> int:
    from deploy.report import render_json, render_markdown, render_text

    if args.json:
        _out(render_json(report))
    elif args.markdown:
        _out(render_markdown(report))
    else:
        terminal = sys.stdout.isatty()
        color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size().columns if terminal else 100
        _out(render_text(report, width, color, sys.stdout.encoding or "ascii"))
    return report.exit_code


def _place(args: argparse.Namespace, model: str, target: Target) -> Path:
    """The artifact's folder, looked at before the work that it is for."""
    from deploy import files
    from deploy.artifact import MANIFEST

    out = Path(args.out or Path("artifacts") / f"{model}-{target.name}")
    files.check_directory(out, marker=MANIFEST)
    return out


def _run(args: argparse.Namespace) -> int:
    from deploy import pipeline

    target = _target(args)
    pipeline.check_runnable(target)
    source = pipeline.load_model(args.model, dict(args.shape))
    pipeline.check_reference(source, target)
    samples = pipeline.samples_for(source, args.inputs, args.seed)
    out = _place(args, source.name, target)
    _note_stale(args, target)
    with _progress(args) as progress:
        tuning = None
        if target.tuning.trials:
            tuning = pipeline.tune(source, target, args.trials, progress, args.logs, args.builders)
        artifact = pipeline.build(source, target, out=out, progress=progress, logs=args.logs)
        report = pipeline.evaluate(
            artifact, source, target, samples, progress, tuning,
            trace=args.trace, float_logs=None if args.no_compare_float else args.logs,
        )  # fmt: skip
    return _show(args, report)


def _tune(args: argparse.Namespace) -> int:
    from deploy import pipeline

    target = _target(args)
    source = pipeline.load_model(args.model, dict(args.shape))
    _note_stale(args, target)
    with _progress(args) as progress:
        facts = pipeline.tune(source, target, args.trials, progress, args.logs, args.builders)
    _out(f"{facts.tuned} of {facts.tasks} kernels have a tuned schedule; {facts.trials} candidates measured now")
    return 0


def _build(args: argparse.Namespace) -> int:
    from deploy import evidence, pipeline

    target = _target(args)
    source = pipeline.load_model(args.model, dict(args.shape))
    out = _place(args, source.name, target)
    _note_stale(args, target)
    with _progress(args) as progress:
        artifact = pipeline.build(source, target, out=out, trials=args.trials or 0, progress=progress, logs=args.logs)
    if args.explain:
        _out(evidence.explain(artifact))
    _out(str(artifact.path))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from deploy import evidence, pipeline
    from deploy.artifact import Artifact
    from deploy.power import picture

    artifact = Artifact.open(args.artifact)
    target = _as_built(_target(args), artifact)
    artifact.check_files()
    evidence.check_target(target, artifact)
    source = None
    if args.model is not None:
        source = pipeline.load_model(args.model, dict(args.shape))
        evidence.check_same(source, artifact)
        pipeline.check_reference(source, target)
    samples = pipeline.samples_for(source or artifact, args.inputs, args.seed)
    with _progress(args) as progress:
        report = pipeline.evaluate(artifact, source, target, samples, progress, trace=args.trace)
    code = _show(args, report)
    picture.draw(report.power, args.power)
    return code


def _check(args: argparse.Namespace) -> int:
    from deploy import evidence
    from deploy.artifact import Artifact

    artifact = Artifact.open(args.artifact)
    return _show(args, evidence.judged_again(artifact, _as_built(_target(args), artifact)))


def _report(args: argparse.Namespace) -> int:
    from deploy import evidence
    from deploy.artifact import Artifact

    return _show(args, evidence.saved_report(Artifact.open(args.artifact)))


def _export(args: argparse.Namespace) -> int:
    from deploy.artifact import Artifact
    from deploy.firmware.export import export

    artifact: Artifact = Artifact.open(args.artifact)
    place = artifact.path.resolve()
    _out(str(export(artifact, args.format, args.out or place.with_name(f"{place.name}-{args.format}"))))
    return 0


def _targets(args: argparse.Namespace) -> int:
    from deploy.target import render
    from deploy.targets import list_targets, load_target, load_target_file, search_directories

    if args.action == "show":
        _out(render(load_target(args.name)))
        return 0
    if args.action == "check":
        target = load_target_file(args.file, search_directories())
        _out(f"{args.file}: target {target.name} is valid")
        return 0
    infos = list_targets()
    width = max((len(info.name) for info in infos), default=0)
    for info in infos:
        _out(f"{info.name:{width}}  {info.problem or info.description}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    from deploy import logs_command

    text, code = logs_command.run(args)
    if text:
        _out(text)
    return code


def _board(args: argparse.Namespace) -> int:
    from deploy import board_command

    if text := board_command.run(args, lambda words: print(f"tvm-deploy: {words}", file=sys.stderr, flush=True)):
        _out(text)
    return 0


HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "tune": _tune,
    "build": _build,
    "measure": _measure,
    "check": _check,
    "report": _report,
    "export": _export,
    "targets": _targets,
    "logs": _logs,
    "board": _board,
    "boards": _board,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that cannot show a name still gets the report
    try:
        return HANDLERS[args.command](args)
    except KeyboardInterrupt:
        sys.stderr.write("tvm-deploy: interrupted; what was measured is in the tuning log, run again to go on\n")
        return INTERRUPTED
    except Exception as error:
        if args.verbose:
            traceback.print_exc()
        sys.stderr.write(f"tvm-deploy: {_sentence(error)}\n")
        return error.exit_code if isinstance(error, DeployError) else ToolError.exit_code


def _sentence(error: Exception) -> str:
    """What to tell of an error; one that nobody foresaw is a bug of this program or a failure of the system."""
    if isinstance(error, DeployError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{place}{error.strerror.lower()}; -v shows where that happened"
    words = " ".join(str(error).split())[:200]
    return f"internal error: {type(error).__name__}: {words}; please report it with what -v shows"


if __name__ == "__main__":
    sys.exit(main())
