"""Building candidates: each in a process of its own that may fail, crash or hang without harm to the others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from tuning_support import calling, enormous, processes_about, product, this_machine, unbound

from deploy import shell
from deploy.errors import ToolError
from deploy.tuning.builder import Crew, compile_all
from deploy.tuning.workshop import LIBRARY, Workshop, linker_of

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
    slow, good = compile_all(Workshop(tmp_path, this_machine(), 2, timeout_s=1), [enormous(), product(16)])
    assert slow.reason == "compiling took longer than 1 s of processor time"
    assert good.reason == ""
    assert time.monotonic() - start < 60
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
    linker = (script(tmp_path / "ld", text),)
    (built,) = compile_all(Workshop(tmp_path, this_machine(), 1, linker, link_s=0.5), [product(16)])
    assert reason in built.reason
    assert no_children()
    assert processes_about(str(tmp_path)) == []


def test_what_a_failing_linker_says_is_in_the_reason(tmp_path):
    linker = (script(tmp_path / "ld", "echo the linker is unwell >&2; exit 3"),)
    (built,) = compile_all(Workshop(tmp_path, this_machine(), 1, linker), [product(16)])
    assert "the linker is unwell" in built.reason


def test_the_linker_is_the_one_that_the_compiler_calls(tmp_path):
    (linker,) = linker_of("cc")
    assert shell.run([linker, "--version"], timeout_s=5).stdout
    assert linker_of(script(tmp_path / "cc", "echo /no/such/ld")) == (str(tmp_path / "cc"), "-nostdlib")
    with pytest.raises(ToolError, match="build-essential"):
        linker_of("no-such-cc")


# --- candidates that misbehave, whatever they are ---


@dataclass(frozen=True)
class Anything:
    """A workplace whose candidates are functions to call."""

    folder: Path
    workers: int = 2
    timeout_s: float = 1.0
    memory_bytes: int = 512 << 20

    def compile(self, job, folder):
        (folder / "result").write_text(str(job()))


def loop():
    while True:
        pass


def outcomes(tmp_path, jobs, stall_s=5.0, **limits):
    """The reasons, and that nothing is left but the folders of the candidates."""
    with Crew(Anything(tmp_path, **limits), jobs, stall_s) as crew:
        built = [crew.built(number) for number in range(len(jobs))]
    assert no_children()
    assert sorted(tmp_path.iterdir()) == sorted(one.folder for one in built)
    assert all((one.folder / "result").exists() == (not one.reason) for one in built)
    return [one.reason for one in built]


def test_bad_candidates_among_good_ones(tmp_path):
    bad = {
        loop: "compiling took longer than 1 s of processor time",
        lambda: time.sleep(60): "compiling hung: did nothing for 1 s",
        lambda: os.kill(os.getpid(), signal.SIGSEGV): "compiling ended with killed by SIGSEGV",
        lambda: os.kill(os.getpid(), signal.SIGKILL): "compiling ended with killed by SIGKILL (out of memory?)",
        lambda: os.system("echo I am unwell >&2") or os.abort(): "compiling ended with killed by SIGABRT: I am unwell",
        lambda: bytearray(100 << 30): "compiling needed more than 512 MiB of memory",
        lambda: sys.exit("not today"): "not today",
        lambda: os._exit(3): "compiling ended with exit status 3",
    }
    jobs = [one for job in bad for one in (lambda: 1, job, lambda: 2)]
    start = time.monotonic()
    assert outcomes(tmp_path, jobs, 1.0) == [reason for told in bad.values() for reason in ("", told, "")]
    assert time.monotonic() - start < 60


def test_every_candidate_may_be_bad(tmp_path):
    assert set(outcomes(tmp_path, [os.abort] * 20)) == {"compiling ended with killed by SIGABRT"}


def test_waiting_for_a_busy_machine_is_not_held_against_a_candidate(tmp_path):
    assert outcomes(tmp_path, [lambda: time.sleep(1.5)] * 2, timeout_s=1.0) == ["", ""]


def test_a_compiler_that_runs_out_of_memory(tmp_path):
    shop = Workshop(tmp_path, this_machine(), 1, timeout_s=20, memory_bytes=64 << 20)
    large, good = compile_all(shop, [enormous(), product(16)])
    assert (large.reason, good.reason) == ("compiling needed more than 64 MiB of memory", "")


def test_nothing_runs_on_a_core_that_is_paused(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    with Crew(Anything(tmp_path, workers=len(cores), timeout_s=30), [loop] * len(cores)) as crew:
        time.sleep(0.2)
        for quiet in (cores[:1], cores):
            with crew.paused(quiet):
                time.sleep(0.05)
                assert [state for core, state in states() if core in quiet] == ["T"] * len(quiet)
                assert "T" not in [state for core, state in states() if core not in quiet]
    assert no_children()


def states():
    """The core and the state of each child."""
    pids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    texts = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return [(min(os.sched_getaffinity(int(pid))), text[0]) for pid, text in zip(pids, texts, strict=True)]


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
