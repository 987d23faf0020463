"""Arguments → pipeline → report → exit code. The only module that prints: stdout is the report, stderr everything else.

Exit codes: 0 every budget met and output verified; 1 a budget missed, not measured or too noisy, or output wrong;
2 wrong input; 3 a tool or device failed.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import DeployError, InputError
from deploy.progress import Progress, open_progress

if TYPE_CHECKING:
    from deploy.report import Report
    from deploy.target import Target

INTERRUPTED = 130  # what a shell gives for a program ended by Ctrl-C
COMMANDS = """\
commands:
  run       tune, build, verify, measure and judge a model: all steps at once
  tune      measure schedules for a model's kernels and keep them in the log
  build     compile a model into an artifact
  measure   run an artifact on its device: outputs, latency, memory, power, energy
  check     judge an artifact's last measurement against a target's budgets
  report    show an artifact's last report
  targets   list targets, show or check one
  logs      what the tuning log holds
"""


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, sizes = text.rpartition("=")
    if not equals or not name or not re.fullmatch(r"\d+(,\d+)*", sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=1,3,224,224")
    return name, tuple(int(size) for size in sizes.split(","))


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an .onnx, .tflite or .pt2 file")
    parser.add_argument("--shape", type=_shape, action="append", default=[], metavar="NAME=1,3,224,224",
                        help="fix the shape of an input that has dynamic dimensions; may be repeated")  # fmt: skip


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="name of a target (see `tvm-deploy targets`) or its YAML file")
    parser.add_argument("--threads", type=_count, help="threads of the library, in place of the target's")
    parser.add_argument("--boards", type=Path, help="YAML of your own boards: addresses and meters")
    parser.add_argument("--device", help="name of the board in --boards to use")


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=_count, help="schedules to have on record, in place of the target's number")
    parser.add_argument("--logs", type=Path, default=Path("tuning_logs"), help="folder of the tuning log")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, help=".npz or .npy with real inputs, and `labels` to judge accuracy")
    parser.add_argument("--seed", type=_count, default=0, help="of the inputs made up where there are none")


def _add_output(parser: argparse.ArgumentParser) -> None:
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print the report as JSON (see report.schema.json)")
    style.add_argument("--markdown", action="store_true", help="print the report as Markdown")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(
        prog="tvm-deploy",
        description="From a trained model and a device's YAML to a tuned, verified, measured library.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main_parser.add_argument("-v", "--verbose", action="store_true", help="show tracebacks of errors")
    main_parser.add_argument("-q", "--quiet", action="store_true", help="no progress on stderr")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="command")

    run = commands.add_parser("run", help="all steps at once")
    tune = commands.add_parser("tune", help="measure schedules")
    build = commands.add_parser("build", help="compile a model")
    for one in (run, tune, build):
        _add_model(one)
        _add_target(one)
        _add_tuning(one)
    for one in (run, build):
        one.add_argument("--out", type=Path, help="folder of the artifact (default: artifacts/MODEL-TARGET)")
    measure = commands.add_parser("measure", help="run an artifact on its device")
    measure.add_argument("artifact", type=Path)
    measure.add_argument("--model", type=Path, help="the source model, to verify the outputs against")
    measure.add_argument("--shape", type=_shape, action="append", default=[], help=argparse.SUPPRESS)
    _add_target(measure)
    for one in (run, measure):
        _add_inputs(one)
        one.add_argument("--trace", action="store_true", help="where outputs differ, look for the first wrong tensor")
    check = commands.add_parser("check", help="judge the last measurement")
    check.add_argument("artifact", type=Path)
    _add_target(check)
    report = commands.add_parser("report", help="show the last report")
    report.add_argument("artifact", type=Path)
    for one in (run, measure, check, report):
        _add_output(one)
    _add_targets(commands.add_parser("targets", help="list targets, show or check one"))
    _add_logs(commands.add_parser("logs", help="what the tuning log holds"))
    return main_parser


def _add_targets(targets: argparse.ArgumentParser) -> None:
    actions = targets.add_subparsers(dest="action", metavar="action")
    actions.add_parser("list", help="all targets (the default)")
    actions.add_parser("show", help="print one, resolved").add_argument("name")
    actions.add_parser("check", help="validate a YAML file").add_argument("file", type=Path)


def _add_logs(logs: argparse.ArgumentParser) -> None:
    logs.add_argument("--logs", type=Path, default=Path("tuning_logs"), help="folder of the tuning log")
    actions = logs.add_subparsers(dest="action", metavar="action")
    actions.add_parser("list", help="one line for each target and fingerprint (the default)")
    actions.add_parser("show", help="the kernels of a target, with their best times").add_argument("target")


def _out(text: str) -> None:
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def _progress(args: argparse.Namespace) -> Progress:
    return open_progress(sys.stderr, quiet=args.quiet)


def _target(args: argparse.Namespace) -> Target:
    from dataclasses import replace

    from deploy.targets import load_target

    target = load_target(args.target)
    if args.threads is not None:
        target = replace(target, threads=args.threads)
    if args.device and not args.boards:
        raise InputError("--device names a board of a file; give that file with --boards")
    if args.boards:
        from deploy.boards import load_boards
        from deploy.units import did_you_mean

        boards = load_boards(args.boards)
        if args.device not in boards:
            wanted = f"--device {args.device}{did_you_mean(args.device, boards)}" if args.device else "no --device"
            raise InputError(f"{args.boards} has the boards {', '.join(boards)}; {wanted} was given")
        target = boards[args.device].apply(target)
    return target


def _show(args: argparse.Namespace, report: Report) -> int:
    from deploy.report import render_json, render_markdown, render_text

    if args.json:
        _out(render_json(report))
    elif args.markdown:
        _out(render_markdown(report))
    else:
        color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        width = os.get_terminal_size().columns if sys.stdout.isatty() else 100
        _out(render_text(report, width, color, sys.stdout.encoding or "ascii"))
    return report.exit_code


def _default_out(model: str, target: Target) -> Path:
    return Path("artifacts") / f"{model}-{target.name}"


def _trials(args: argparse.Namespace, target: Target) -> int:
    return target.trials if args.trials is None else int(args.trials)


def _run(args: argparse.Namespace) -> int:
    from deploy import pipeline

    target = _target(args)
    pipeline.check_runnable(target)
    source = pipeline.load_model(args.model, dict(args.shape))
    samples = pipeline.samples_for(source, args.inputs, args.seed)
    out = args.out or _default_out(source.name, target)
    with _progress(args) as progress:
        tuning = None
        if trials := _trials(args, target):
            tuning = pipeline.tune(source, target, trials, progress, args.logs)
        artifact = pipeline.build(source, target, out=out, progress=progress, logs=args.logs)
        report = pipeline.evaluate(artifact, source, target, samples, progress, tuning, trace=args.trace)
    return _show(args, report)


def _tune(args: argparse.Namespace) -> int:
    from deploy import pipeline

    target = _target(args)
    source = pipeline.load_model(args.model, dict(args.shape))
    with _progress(args) as progress:
        facts = pipeline.tune(source, target, _trials(args, target), progress, args.logs)
    _out(f"{facts.tuned} of {facts.tasks} kernels have a tuned schedule; {facts.trials} candidates measured now")
    return 0


def _build(args: argparse.Namespace) -> int:
    from deploy import pipeline

    target = _target(args)
    source = pipeline.load_model(args.model, dict(args.shape))
    out = args.out or _default_out(source.name, target)
    with _progress(args) as progress:
        artifact = pipeline.build(source, target, out=out, trials=args.trials or 0, progress=progress, logs=args.logs)
    _out(str(artifact.path))
    return 0


def _measure(args: argparse.Namespace) -> int:
    from deploy import pipeline
    from deploy.artifact import Artifact

    target, artifact = _target(args), Artifact.open(args.artifact)
    artifact.check_files()
    pipeline.check_target(target, artifact)
    source = None
    if args.model is not None:
        source = pipeline.load_model(args.model, dict(args.shape))
        pipeline.check_same(source, artifact)
    samples = pipeline.samples_for(source or artifact, args.inputs, args.seed)
    with _progress(args) as progress:
        report = pipeline.evaluate(artifact, source, target, samples, progress, trace=args.trace)
    return _show(args, report)


def _check(args: argparse.Namespace) -> int:
    from deploy import pipeline
    from deploy.artifact import Artifact

    return _show(args, pipeline.judged_again(Artifact.open(args.artifact), _target(args)))


def _report(args: argparse.Namespace) -> int:
    from deploy import pipeline
    from deploy.artifact import Artifact

    return _show(args, pipeline.saved_report(Artifact.open(args.artifact)))


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
    from deploy.tuning import listing

    _out(listing.render_kernels(args.logs, args.target) if args.action == "show" else listing.render_logs(args.logs))
    return 0


HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "tune": _tune,
    "build": _build,
    "measure": _measure,
    "check": _check,
    "report": _report,
    "targets": _targets,
    "logs": _logs,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    args = parser().parse_args(arguments)
    try:
        code = HANDLERS[args.command](args)
        sys.stdout.flush()
        return code
    except DeployError as error:
        if args.verbose:
            traceback.print_exc()
        sys.stderr.write(f"tvm-deploy: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("tvm-deploy: interrupted; what was measured is in the tuning log, run again to go on\n")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the report went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
