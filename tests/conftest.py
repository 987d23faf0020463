"""What all tests share: a fixed seed, golden files, and an environment that does not leak in."""

import contextlib
import difflib
import io
import os
import random
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

GOLDEN = Path(__file__).parent / "golden"
# TEST_SEED=RANDOM explores; TEST_SEED=123 repeats what a run with that seed in its header did.
_REQUESTED = os.environ.get("TEST_SEED", "0")
SEED = random.SystemRandom().randrange(2**32) if _REQUESTED == "RANDOM" else int(_REQUESTED)

# No deadline: the machine may be busy. Found examples repeat unless the seed is to explore.
settings.register_profile("deploy", deadline=None, derandomize=_REQUESTED != "RANDOM", print_blob=True)
settings.load_profile("deploy")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write what the tests get to tests/golden/")


# Real clocks, links that are cut and processes that are killed: what else this machine does may come between.
DISTURBED = (
    "test_bad_input",
    "test_board_command",
    "test_board_pool",
    "test_board_runner",
    "test_device_rpc",
    "test_device_serial",
    "test_device_ssh",
    "test_firmware_serial_tuning",
    "test_power",
    "test_power_meters",
    "test_power_trace",
    "test_progress",
    "test_rpc_emulated",
    "test_serial_energy",
    "test_tuning_benchmark",
    "test_tuning_builder",
    "test_tuning_farm",
    "test_tuning_runner",
    "test_tuning_search",
)


def pytest_collection_modifyitems(items):
    """Try tests that can be disturbed up to three times; one that fails each time has failed, and all are counted."""
    for item in items:
        if item.path.stem in DISTURBED:
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))


def pytest_report_header():
    return f"seed: {SEED} (TEST_SEED={SEED} repeats it, TEST_SEED=RANDOM explores)"


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    """Seed every random source in use, and hide the caller's terminal settings."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def golden(request):
    """Return check(name, text): text must be what tests/golden/<name> holds; --update-golden writes it instead."""

    def check(name, text):
        file = GOLDEN / name
        if request.config.getoption("--update-golden"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
            return
        if not file.exists():
            pytest.fail(f"tests/golden/{name} does not exist; run pytest --update-golden and look at what it wrote")
        expected = file.read_text(encoding="utf-8")
        if text != expected:
            lines = difflib.unified_diff(expected.splitlines(), text.splitlines(), "expected", "got", lineterm="")
            changes = "\n".join(lines)
            pytest.fail(f"tests/golden/{name} differs (--update-golden accepts it):\n{changes}", pytrace=False)

    return check


class Ran(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def run_cli(*arguments):
    """Run the command line in this process, where TVM is loaded only once, as if its output were piped."""
    from deploy.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse's own
            code = end.code
        out.flush()
        err.flush()
    return Ran(code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode())


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Return run_cli; the working folder is an empty one, so that default output folders are."""
    monkeypatch.chdir(tmp_path)
    return run_cli


@pytest.fixture(scope="session")
def conv_onnx(tmp_path_factory):
    """The file of a small ONNX model: convolution, batch norm, relu, pool, reshape, dense."""
    import onnx
    from models import onnx_models

    file = tmp_path_factory.mktemp("models") / "conv.onnx"
    onnx.save(onnx_models.conv_net(1), file)
    return file


@pytest.fixture(scope="session")
def deployed(tmp_path_factory, conv_onnx):
    """`run` of conv_onnx on this machine, untuned: the artifact's folder (never to be changed), and what it wrote."""
    folder = tmp_path_factory.mktemp("deployed")
    out = folder / "conv"
    arguments = ("--target", "host", "--trials", 0, "--out", out, "--logs", folder / "logs")
    return out, run_cli("run", conv_onnx, *arguments)
