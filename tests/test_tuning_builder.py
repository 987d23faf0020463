"""Building candidates: each in a process of its own that may fail, crash or hang without harm to the others."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from tuning_support import calling, enormous, processes_about, product, this_machine, unbound

from deploy.errors import ToolError
from deploy.tuning.builder import LIBRARY, Workshop, compile_all

pytestmark = pytest.mark.tvm


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_candidate_that_cannot_be_compiled_costs_only_itself(tmp_path):
    broken = unbound()
    good, bad, other = compile_all(Workshop(tmp_path, this_machine(), 2), [product(), broken, product(16)])
    assert (good.reason, other.reason) == ("", "")
    assert (good.folder / LIBRARY).is_file()
    assert (other.folder / LIBRARY).is_file()
    assert bad.reason
    assert "\n" not in bad.reason
    assert not (bad.folder / LIBRARY).exists()
    assert no_children()


def test_a_compiler_that_takes_for_ever_is_stopped(tmp_path):
    start = time.monotonic()
    slow, good = compile_all(Workshop(tmp_path, this_machine(), 2, timeout_s=2), [enormous(), product(16)])
    assert slow.reason == "compiling took longer than 2 s"
    assert good.reason == ""
    assert time.monotonic() - start < 8
    assert no_children()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo the linker is unwell >&2; exit 3", "exit status 3"),
        ("exec sleep 60", "did not finish within"),
        ("kill -SEGV $$", "SIGSEGV"),
    ],
)
def test_a_linker_that_fails_hangs_or_crashes(tmp_path, text, reason):
    cc = script(tmp_path / "cc", text)
    (built,) = compile_all(Workshop(tmp_path, this_machine(cc), 1, timeout_s=4), [product(16)])
    assert reason in built.reason
    assert no_children()
    assert processes_about(str(tmp_path)) == []


def test_what_a_failing_linker_says_is_in_the_reason(tmp_path):
    cc = script(tmp_path / "cc", "echo the linker is unwell >&2; exit 3")
    (built,) = compile_all(Workshop(tmp_path, this_machine(cc), 1), [product(16)])
    assert "the linker is unwell" in built.reason


def test_no_compiler_is_said_with_the_package(tmp_path):
    with pytest.raises(ToolError, match="build-essential"):
        Workshop(tmp_path, this_machine("no-such-cc", threads=2), 1).prepare()


def test_an_undefined_symbol_is_found_when_loading_not_here(tmp_path):
    (built,) = compile_all(Workshop(tmp_path, this_machine(), 1), [calling("no_such_function")])
    assert built.reason == ""


def test_ctrl_c_leaves_no_process(tmp_path):
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        compile_all(Workshop(tmp_path, this_machine(), 2), [enormous(), enormous(), product()])
    timer.join()
    assert no_children()
