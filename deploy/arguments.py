"""The command line: what can be asked for. Building the parser costs nothing but argparse."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HELP = {
    "run": "tune, build, verify, measure and judge a model: all steps at once",
    "tune": "measure schedules for a model's kernels and keep them in the log",
    "build": "compile a model into an artifact",
    "measure": "run an artifact on its device: outputs, latency, memory, power, energy",
    "check": "judge an artifact's last measurement against a target's budgets",
    "report": "show an artifact's last report",
    "export": "make a project of an artifact, for another build system",
    "targets": "list targets, show or check one",
    "logs": "what the tuning log holds",
    "board": "serve this board over RPC, or run the tracker that boards register with",
    "boards": "the boards of a tracker: free or busy, temperature, governor, last failure",
}
EXPORTS = ("cmake", "zephyr", "arduino", "platformio", "mlf")  # as deploy.firmware.export, which is not loaded for it
EXIT_CODES = """\
exit codes: 0 every budget met and output verified; 1 a budget missed, not measured or too noisy, or output wrong;
            2 wrong input; 3 a tool or the device failed
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


def _time(text: str) -> float:
    from deploy import units
    from deploy.errors import InputError

    try:
        return units.parse(text, "time")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _trace_file(text: str) -> Path:
    from deploy.errors import InputError
    from deploy.power import picture

    try:
        picture.check(Path(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an .onnx, .tflite or .pt2 file")
    parser.add_argument("--shape", type=_shape, action="append", default=[], metavar="NAME=1,3,224,224",
                        help="fix the shape of an input that has dynamic dimensions; may be repeated")  # fmt: skip


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, help="the source model, to verify the outputs against")
    parser.add_argument("--power", type=_trace_file, metavar="OUT.svg",
                        help="write what the power meter saw, inferences shaded: .svg, .png, or .csv")  # fmt: skip
    parser.add_argument("--shape", type=_shape, action="append", default=[], help=argparse.SUPPRESS)


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", required=True, help="name of a target (see `tvm-deploy targets`) or its YAML file")
    parser.add_argument("--threads", type=_count, help="threads of the library, in place of the target's")
    parser.add_argument("--boards", type=Path, help="YAML of your own boards: addresses and meters")
    parser.add_argument("--device", help="name of the board in --boards, or ssh://USER@HOST:PORT or rpc://TRACKER:PORT/KEY")


def _add_tuning(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", type=_count, help="schedules to have on record, in place of the target's number")
    parser.add_argument("--time", type=_time, metavar="30min", help="end tuning after this long")
    parser.add_argument("--patience", type=_count, metavar="N", help="end tuning after N rounds without a gain")
    parser.add_argument("--until", choices=("trials", "budget"),
                        help="budget: end tuning as soon as the latency budget is met")  # fmt: skip
    parser.add_argument("--logs", type=Path, default=Path("tuning_logs"), help="folder of the tuning log")


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--inputs", type=Path, help=".npz or .npy with real inputs, and `labels` to judge accuracy")
    parser.add_argument("--seed", type=_count, default=0, help="of the inputs made up where there are none")
    parser.add_argument("--trace", action="store_true", help="where outputs differ, look for the first wrong tensor")


def _add_output(parser: argparse.ArgumentParser) -> None:
    style = parser.add_mutually_exclusive_group()
    style.add_argument("--json", action="store_true", help="print the report as JSON (see report.schema.json)")
    style.add_argument("--markdown", action="store_true", help="print the report as Markdown")


def _add_talk(parser: argparse.ArgumentParser, default: object) -> None:
    parser.add_argument("-v", "--verbose", action="store_true", default=default, help="show tracebacks of errors")
    parser.add_argument("-q", "--quiet", action="store_true", default=default, help="no progress on stderr")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(
        prog="tvm-deploy",
        description="From a trained model and a device's YAML to a tuned, verified, measured library.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_talk(main_parser, False)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="command")
    make = {name: commands.add_parser(name, help=words) for name, words in HELP.items()}
    for name in ("run", "tune", "build"):
        _add_model(make[name])
        _add_target(make[name])
        _add_tuning(make[name])
    for name in ("run", "tune"):
        make[name].add_argument("--builders", metavar="dask://HOST:PORT", help="compile candidates there, not here")
    for name in ("run", "build"):
        make[name].add_argument("--out", type=Path, help="folder of the artifact (default: artifacts/MODEL-TARGET)")
        make[name].add_argument("--emit", choices=("objects", "c"), default="objects",
                                help="kernels as objects for the target, or as C99 for any compiler")  # fmt: skip
    for name in ("measure", "check", "report", "export"):
        make[name].add_argument("artifact", type=Path, help="folder that `run` or `build` made")
    make["run"].add_argument("--no-compare-float", action="store_true",
                             help="do not compare a quantized model's latency with its float form's")  # fmt: skip
    _add_source(make["measure"])
    _add_explain(make["build"])
    _add_export(make["export"])
    _add_target(make["measure"])
    for name in ("run", "measure"):
        _add_inputs(make[name])
    _add_target(make["check"])
    for name in ("run", "measure", "check", "report"):
        _add_output(make[name])
    _add_targets(make["targets"])
    _add_logs(make["logs"])
    _add_board(make["board"], make["boards"])
    for one in make.values():
        _add_talk(one, argparse.SUPPRESS)  # before or after the command; there it must not undo what stood before
    return main_parser


def _add_explain(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "--explain", action="store_true", help="show what a quantized model computes in integers, and what in float"
    )


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--as", dest="format", required=True, choices=EXPORTS, help="kind of the project")
    export.add_argument("--out", type=Path, help="folder of the project (default: ARTIFACT-KIND)")


def _add_targets(targets: argparse.ArgumentParser) -> None:
    actions = targets.add_subparsers(dest="action", metavar="action")
    actions.add_parser("list", help="all targets (the default)")
    actions.add_parser("show", help="print one, resolved").add_argument("name")
    actions.add_parser("check", help="validate a YAML file").add_argument("file", type=Path)


def _positive(text: str) -> int:
    if (number := _count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


LOG_ACTIONS = {
    "list": "one line for each target and fingerprint (the default)",
    "show": "the kernels of a target, with their best times",
    "best": "the fastest record of each kernel of a target, as lines of JSON",
    "merge": "add the records of other logs",
    "export": "write the best records of a target to another folder, to commit or to ship",
    "prune": "drop slow and failed candidates, or logs that are not used any more",
    "verify": "look for damaged lines",
    "transfer": "propose one target's best schedules to another, whose next tuning run measures them first",
    "plot": "draw a target's tuning curves",
}


def _add_logs(logs: argparse.ArgumentParser) -> None:
    actions = logs.add_subparsers(dest="action", metavar="action")
    make = {name: actions.add_parser(name, help=words) for name, words in LOG_ACTIONS.items()}
    for name in ("show", "best", "export", "prune", "plot"):
        make[name].add_argument("target")
    make["merge"].add_argument("sources", type=Path, nargs="+", metavar="source",
                               help="folder of logs, as --logs names it, or of one log in it")  # fmt: skip
    make["export"].add_argument("out", type=Path, help="folder of logs, such as tuning_logs; what it has counts too")
    make["export"].add_argument("--top", type=_positive, default=1, help="candidates of each kernel (default: 1)")
    make["prune"].add_argument("--top", type=_positive, help="candidates of each kernel that stay")
    make["prune"].add_argument("--stale", action="store_true", help="drop other fingerprints and TVM versions")
    make["verify"].add_argument("target", nargs="?")
    make["verify"].add_argument("--repair", action="store_true", help="take damaged lines out")
    make["transfer"].add_argument("source", metavar="from", help="target whose log has them")
    make["transfer"].add_argument("to", help="name of a target, or its YAML file")
    make["transfer"].add_argument("--top", type=_positive, default=4, help="candidates of each kernel (default: 4)")
    make["transfer"].add_argument("--threads", type=_positive, help="threads of the library of the target `to`")
    make["plot"].add_argument("--out", type=Path, help=".svg or .png (default: TARGET.svg)")
    logs.add_argument("--logs", type=Path, default=Path("tuning_logs"), help="folder of the tuning log")
    for one in make.values():  # before or after the action, as with -v
        one.add_argument("--logs", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _add_board(board: argparse.ArgumentParser, boards: argparse.ArgumentParser) -> None:
    boards.add_argument("--tracker", default="127.0.0.1", metavar="HOST:PORT", help="default: this machine's")
    actions = board.add_subparsers(dest="action", metavar="action", required=True)
    serve = actions.add_parser("serve", help="run programs that are sent to this board, until Ctrl-C")
    serve.add_argument("--tracker", metavar="HOST:PORT", help="register there (port 9190 if none is given)")
    serve.add_argument("--key", help="kind of this board, such as rpi4, by which it is asked for")
    serve.add_argument("--port", type=_count, default=9090, help="to listen at (default: 9090; 0: any that is free)")
    serve.add_argument("--advertise", metavar="HOST:PORT", help="where it is reached instead, as through a tunnel")
    serve.add_argument("--emulated", action="store_true", help="readings are of an emulator and will be called so")
    serve.add_argument("--run-with", default="", metavar="COMMAND", help="what to put in front of programs")
    serve.add_argument("--session-limit", type=_time, default=3600.0, metavar="1h",
                       help="longest session, after which it is ended")  # fmt: skip
    serve.add_argument("--sysfs", type=Path, default=Path("/sys"), help=argparse.SUPPRESS)
    tracker = actions.add_parser("tracker", help="keep the list of boards, until Ctrl-C")
    tracker.add_argument("--port", type=_count, default=9190, help="to listen at (default: 9190; 0: any that is free)")
    for one in (serve, tracker):
        one.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine only")
        one.add_argument("--i-understand-this-is-remote-code-execution", dest="exposed", action="store_true",
                         help="with --bind: whoever reaches that address may run any program here")  # fmt: skip
        _add_talk(one, argparse.SUPPRESS)
