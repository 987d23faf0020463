"""Progress on real streams: pipes, closed pipes and a pseudo-terminal."""

import contextlib
import os
import pty
import re
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.progress import Live, Plain, ProgressEvent, Silent, duration, left, line, open_progress

TUNING = ProgressEvent("tune", "conv2d_3", 128, 512, best_s=41.2e-6, failures=3, left_s=130.0)


@pytest.fixture
def stream(tmp_path):
    with open(tmp_path / "log", "w+") as file:
        yield file


def written(stream):
    stream.seek(0)
    return stream.read()


class Terminal:
    """The far end of a pseudo-terminal; `stream` is what a program sees as its stderr."""

    def __enter__(self):
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.stream = os.fdopen(slave, "w")
        return self

    def __exit__(self, *_):
        self.stream.close()
        os.close(self.master)

    def text(self):
        self.stream.flush()
        data = b""
        try:
            while chunk := os.read(self.master, 65536):
                data += chunk
        except OSError:  # nothing more for now
            pass
        return data.decode()


def test_line_of_each_kind():
    told = replace(TUNING, share=0.382, rate=214.4, reason="crashed: killed by SIGSEGV", left_s=None)
    assert line(told) == (
        "tune conv2d_3: 128/512 trials, best 41.2 us, 38% of the time, 214 a minute, "
        "3 failed (crashed: killed by SIGSEGV)"
    )
    assert line(TUNING) == "tune conv2d_3: 128/512 trials, best 41.2 us, 3 failed, 2 min 10 s left"
    assert line(ProgressEvent("import")) == "import"
    assert line(ProgressEvent("measure", done=5, total=10)) == "measure: 5/10"
    assert line(ProgressEvent("compile", "two\nlines", finished=True)) == "compile two lines: done"
    assert line(ProgressEvent("tune", finished=True, left_s=1.0, message="12 tasks tuned")) == "tune: 12 tasks tuned"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min 0 s"), (130, "2 min 10 s"), (3900, "1 h 5 min"), (90_000, "25 h 0 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1e6))
def test_time_left_is_proportional_and_never_negative(done, total, elapsed):
    answer = left(done, total, elapsed)
    if done == 0 or total == 0:
        assert answer is None
    elif done >= total:
        assert answer == 0
    else:
        assert answer == pytest.approx(elapsed * (total - done) / done)


@pytest.mark.parametrize(
    "fields", [{"stage": ""}, {"done": -1}, {"failures": -1}, {"best_s": float("nan")}, {"left_s": -1.0}]
)
def test_impossible_events_cannot_be_made(fields):
    with pytest.raises(ValueError, match=r"stage|counts|finite"):
        ProgressEvent(**{"stage": "tune", **fields})


def test_plain_writes_first_last_and_few_between(stream):
    with Plain(stream, interval_s=60) as progress:
        for done in range(1000):
            progress.update(ProgressEvent("tune", done=done, total=1000))
        progress.update(ProgressEvent("tune", done=1000, total=1000, finished=True))
        progress.update(ProgressEvent("measure", done=1, total=2))
        progress.update(ProgressEvent("measure", done=2, total=2, finished=True))
    assert written(stream).splitlines() == [
        "tune: 0/1000 trials",
        "tune: 1000/1000 trials, done",
        "measure: 1/2",
        "measure: 2/2, done",
    ]


def test_plain_writes_again_after_the_interval(stream):
    progress = Plain(stream, interval_s=0.05)
    for done in range(3):
        progress.update(ProgressEvent("tune", done=done, total=3))
        time.sleep(0.06)
    assert len(written(stream).splitlines()) == 3


def test_plain_lines_of_threads_do_not_mix(stream):
    progress = Plain(stream, interval_s=0)
    threads = [
        threading.Thread(target=lambda: [progress.update(TUNING) for _ in range(200)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(written(stream).splitlines()) == {line(TUNING)}
    assert len(written(stream).splitlines()) == 800


@pytest.mark.parametrize("kind", [Plain, Live])
def test_nobody_listening_is_no_error(kind):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    with kind(stream) as progress:
        progress.update(TUNING)
        progress.update(ProgressEvent("tune", finished=True))
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    with kind(stream) as progress:
        progress.update(TUNING)


def test_live_draws_in_place_and_restores_the_terminal():
    with Terminal() as terminal:
        with Live(terminal.stream) as progress:
            progress.update(TUNING)
            time.sleep(0.25)
            shown = terminal.text()
            progress.update(ProgressEvent("tune", done=512, total=512, finished=True, message="[red] 12 tasks"))
        end = terminal.text()
    assert "\x1b[?25l" in shown
    assert "128/512 trials, best 41.2 us, 3 failed" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "tune: 512/512 trials, [red] 12 tasks" in end
    assert "\x1b[?25h" in end


def test_live_restores_the_cursor_when_interrupted():
    with Terminal() as terminal:
        try:
            with Live(terminal.stream) as progress:
                progress.update(TUNING)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert "\x1b[?25h" in terminal.text()


def test_display_suits_the_stream(stream):
    with Terminal() as terminal:
        assert isinstance(open_progress(terminal.stream, {"TERM": "xterm-256color"}), Live)
        for plain in ({"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}):
            assert isinstance(open_progress(terminal.stream, {"TERM": "xterm", **plain}), Plain)
        assert isinstance(open_progress(terminal.stream, {}, quiet=True), Silent)
    assert isinstance(open_progress(stream, {"TERM": "xterm"}), Plain)
