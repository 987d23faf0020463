"""Timing candidates: what crashes, hangs or answers nonsense becomes a reason, and the clock tells the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_support import calling, processes_about, product, this_machine

from deploy import shell
from deploy.errors import ToolError
from deploy.tuning.runner import Bench, Measured, Stopwatch, decode
from deploy.tuning.workshop import LIBRARY, SIZES

pytestmark = pytest.mark.tvm


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    opened = Bench.open(this_machine(), tmp_path_factory.mktemp("bench"))
    return Bench(opened.workshop, Stopwatch(opened.stopwatch.folder, opened.stopwatch.cc, timeout_s=1))


@pytest.fixture
def from_c(bench, tmp_path):
    """Return time(C code of a kernel with two arguments): what the stopwatch makes of it."""

    def time_it(body):
        headers = "".join(f"#include <{name}.h>\n" for name in ("stdint", "stdlib", "string", "time"))
        (tmp_path / "k.c").write_text(f"{headers}int32_t candidate(float *a, char *b) {{{body}}}\n")
        shell.run(["cc", "-O1", "-shared", "-fPIC", "k.c", "-o", LIBRARY], timeout_s=30, cwd=tmp_path)
        (tmp_path / SIZES).write_text(json.dumps(["f4096", "z8192"]))
        return bench.stopwatch.time(tmp_path)

    return time_it


def test_good_and_bad_candidates_side_by_side(bench):
    funcs = [
        product(16),
        calling("abort"),
        calling("no_such_function"),
        calling("pause"),
        calling("raise", 11),
        product(64),
    ]
    small, aborted, undefined, hung, crashed, large = bench.measure(funcs)
    assert 0 < median(small.seconds) < median(large.seconds) < 0.01
    assert (small.reason, large.reason) == ("", "")
    assert aborted == Measured(reason="crashed: killed by SIGABRT")
    assert crashed == Measured(reason="crashed: killed by SIGSEGV")
    assert hung == Measured(reason="hung: did nothing for 3 s")
    assert undefined.reason == f"{LIBRARY}: undefined symbol: no_such_function"
    assert [path for path in bench.workshop.folder.iterdir() if path.is_dir()] == []


def test_the_time_of_a_kernel_that_waits_is_the_time_it_waits(from_c):
    measured = from_c("struct timespec t = {0, 3000000}; nanosleep(&t, 0); return 0;")
    assert median(measured.seconds) == pytest.approx(0.0033, abs=0.0008)


def test_a_slow_kernel_is_timed_as_often_as_there_is_time(from_c):
    measured = from_c("struct timespec t = {0, 250000000}; nanosleep(&t, 0); return 0;")
    assert 1 <= len(measured.seconds) < 5  # a third of the time there is
    assert median(measured.seconds) == pytest.approx(0.25, abs=0.05)


def test_an_endless_loop_is_ended(from_c, tmp_path):
    start = time.monotonic()
    assert from_c("for (volatile int i = 0;; ++i) {}").reason == "ran longer than 1 s"
    assert time.monotonic() - start < 8
    assert processes_about(str(tmp_path)) == []


def test_what_other_programs_take_of_the_core_is_not_counted(from_c):
    """With two more endless loops on the same core, a third of the time on the clock is the kernel's."""
    core = str(sorted(os.sched_getaffinity(0))[-1])
    spin = f"import os; os.sched_setaffinity(0, [{core}])\nwhile True: pass"
    body = "for (volatile int i = 0; i < 100000; ++i) {} return 0;"
    quiet = min(from_c(body).seconds)
    busy = [subprocess.Popen([sys.executable, "-S", "-c", spin]) for _ in range(2)]
    try:
        time.sleep(0.2)
        loaded = median(from_c(body).seconds)
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert loaded < 1.5 * quiet


def test_a_candidate_that_is_clearly_worse_is_timed_less(from_c, bench, tmp_path):
    best = median(from_c("for (volatile int i = 0; i < 300000; ++i) {} return 0;").seconds)
    assert len(bench.stopwatch.time(tmp_path, best_s=3 * best).seconds) >= 5
    assert len(bench.stopwatch.time(tmp_path, best_s=best / 9).seconds) == 2


def test_a_noisy_candidate_is_measured_again(from_c):
    """Every call takes another time, so that no three agree."""
    noisy = from_c("static int n; struct timespec t = {0, 1000000 * (1 + ++n)}; nanosleep(&t, 0); return 0;")
    assert len(noisy.seconds) == 15


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("volatile char *p = malloc(100ul << 30); return p ? (p[0] = 1, 9) : -12;", "the kernel returned -12"),
        ("volatile char *p = malloc(100ul << 30); for (;; p += 4096) *p = 1;", "crashed: killed by SIGSEGV"),
        ("for (;;) { volatile char *p = malloc(1 << 24); p[1] = 1; }", "crashed: killed by SIGSEGV"),
    ],
)
def test_a_candidate_that_takes_all_memory_dies_alone(from_c, body, reason):
    start = time.monotonic()
    assert from_c(body).reason == reason
    assert time.monotonic() - start < 3


def test_an_argument_of_a_hundred_gigabytes_is_refused(from_c, bench, tmp_path):
    from_c("return 0;")
    (tmp_path / SIZES).write_text(json.dumps(["z64", f"z{100 << 30}"]))
    assert bench.stopwatch.time(tmp_path).reason.startswith("no memory for an argument of 1073741824")


def test_arguments_are_numbers_zeros_and_aligned(from_c):
    check = """
      for (int i = 0; i < 1024; ++i) if (!(a[i] > 0.0f && a[i] < 2.0f)) return 1;
      for (int i = 0; i < 8192; ++i) if (b[i]) return 2;
      return (uintptr_t)a % 64 || (uintptr_t)b % 64 ? 3 : 0;"""
    assert from_c(check).reason == ""


def test_a_kernel_that_reports_an_error(from_c):
    assert from_c("return -7;").reason == "the kernel returned -7"


@pytest.mark.parametrize("said", ["", "nan", "0", "-1e-6", "inf", "1e-6 junk"])
def test_nonsense_is_not_a_time(bench, tmp_path, said):
    program = tmp_path / "time_kernel"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    (tmp_path / SIZES).write_text("[]")
    assert "nonsense" in Stopwatch(tmp_path, "cc").time(tmp_path).reason


@given(st.lists(st.floats(min_value=1e-12, max_value=1e6), min_size=1))
def test_decode_reads_what_is_printed(seconds):
    assert decode("".join(f"{s!r}\n" for s in seconds)) == Measured(tuple(seconds))


@given(st.text())
def test_decode_never_raises(text):
    measured = decode(text)
    assert bool(measured.seconds) != bool(measured.reason)


def test_no_compiler_is_an_error(tmp_path):
    with pytest.raises(ToolError, match="build-essential"):
        Bench.open(this_machine("no-such-cc"), tmp_path)


def test_a_kernel_with_threads_is_timed(tmp_path):
    from deploy.kernels.default import default_schedule
    from deploy.kernels.for_target import machine_for

    target = this_machine(threads=2)
    func = default_schedule(product(64), machine_for(target)).mod["main"]
    assert "T.parallel" in func.script()
    (measured,) = Bench.open(target, tmp_path).measure([func])
    assert measured.seconds
