"""Instruments made of a thread: what a PPK2, an LPM01A or a bench supply would answer, of a power that is known.

A waveform is a function of the monotonic clock in seconds, array to array, in watts.
"""

import contextlib
import os
import random
import socket
import threading
import time
import tty

import numpy as np

VOLTS = 3.0
OHMS = (1000.0, 100.0, 10.0, 1.0, 0.05)
STEP_V = 1.8 / 163840


def constant(watts):
    return lambda t: np.full(np.shape(t), watts)


def ramp(low, high, since, seconds):
    return lambda t: low + (high - low) * np.clip((t - since) / seconds, 0, 1)


def bursts(low, high, every=0.01, long=0.001):
    """A millisecond in ten, by default."""
    return lambda t: np.where(np.mod(t, every) < long, high, low)


def step(low, high, at):
    return lambda t: np.where(t < at, low, high)


def energy(waveform, begin, end, points=200_000):
    """What it takes between two times, in joules."""
    t = np.linspace(begin, end, points)
    return float(np.trapezoid(waveform(t), t))


class Instrument:
    """A thread at the other end of a pseudo-terminal. drift: of its clock, as a fraction; faults: see the kinds.

    Sampling goes by the clock: what is due is sent every `pace` seconds.
    """

    rate = 1000.0

    def __init__(self, waveform, *, drift=0.0, pace=0.002, **faults):
        self.waveform, self.drift, self.pace, self.faults = waveform, drift, pace, faults
        self.ours, self.theirs = os.openpty()
        tty.setraw(self.theirs)
        os.set_blocking(self.ours, False)
        self.port, self.ends = os.ttyname(self.theirs), (self.theirs, self.ours)
        self.heard = b""
        self.sent, self.began, self.level = 0, None, lambda t: np.zeros(len(t), bool)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._unplug()

    def _unplug(self):
        """Once: the numbers may belong to another file after that."""
        ends, self.ends = self.ends, ()
        for descriptor in ends:
            os.close(descriptor)

    def start(self):
        self.sent, self.began = 0, time.monotonic()

    def stop(self):
        self.began = None

    def say(self, data):
        """Send all of it; a terminal takes some at a time."""
        view = memoryview(data)
        while view and not self._stop.is_set():
            try:
                view = view[os.write(self.ours, view) :]
            except BlockingIOError:
                time.sleep(0.0002)

    def _work(self):
        with contextlib.suppress(OSError):
            while not self._stop.wait(self.pace):
                self.hear()
                if self.began is not None and self._goes_on():
                    self._sample()

    def _goes_on(self):
        """Faults that end it: unplugged, or silent, so many seconds after sampling began."""
        ran = time.monotonic() - self.began
        if ran > self.faults.get("unplugged", 9e9):
            self._unplug()
            raise OSError("unplugged")
        return ran < self.faults.get("silent", 9e9)

    def _sample(self):
        due = int((time.monotonic() - self.began) * self.rate * (1 + self.drift))
        if due <= self.sent:
            return
        numbers = np.arange(self.sent, due)
        times = self.began + numbers / (self.rate * (1 + self.drift))
        data = self.encoded(numbers, times)
        lost = self.faults.get("lost")  # (after so many seconds, so many samples)
        if lost and times[0] - self.began > lost[0]:
            keep = np.ones(len(numbers), bool)
            keep[: lost[1]] = False
            data = self.encoded(numbers[keep], times[keep])
            self.faults["lost"] = (lost[0], lost[1] - len(numbers)) if lost[1] > len(numbers) else None
        garbage = self.faults.get("garbage")  # (after so many seconds, bytes, in place of as many or beside them)
        if garbage and times[-1] - self.began > garbage[0]:
            self.faults["garbage"] = None
            at = len(data) // 2
            data = data[:at] + garbage[1] + data[at + (len(garbage[1]) if garbage[2] else 0) :]
        self.sent = due
        self.say(data)


class FakePpk2(Instrument):
    """Answers bytes of commands; faults: `mute`, `calibration` (a change of its text)."""

    rate = 100_000.0

    def hear(self):
        with contextlib.suppress(BlockingIOError):
            self.heard += os.read(self.ours, 1000)
        sizes = {0x06: 1, 0x07: 1, 0x0C: 2, 0x0D: 3, 0x11: 2, 0x19: 1}
        while self.heard and len(self.heard) >= sizes.get(self.heard[0], 1):
            command, self.heard = self.heard[: sizes.get(self.heard[0], 1)], self.heard[sizes.get(self.heard[0], 1) :]
            if command[0] == 0x06:
                self.start()
            elif command[0] == 0x07:
                self.stop()
            elif command[0] == 0x19 and not self.faults.get("mute"):
                self.say(self.faults.get("calibration", str)(self.text()).encode())
            elif command[0] == 0x0D:
                self.millivolts = command[1] << 8 | command[2]

    def text(self):
        kinds = {"R": OHMS, "GS": [0] * 5, "GI": [1] * 5, "O": [0] * 5, "S": [0] * 5, "I": [0] * 5, "UG": [1] * 5}
        lines = [f"{kind}{index}: {value[index]:.4f}" for kind, value in kinds.items() for index in range(5)]
        return "\n".join(["Calibrated: 0", *lines, "VDD: 3000", "HW: 37376", "mode: 2", "IA: 56", "END"])

    def encoded(self, numbers, times):
        amperes = self.waveform(times) / VOLTS
        ranges = np.select([amperes * ohms < 16383 * 4 * STEP_V for ohms in OHMS], range(5), 4)
        converter = np.round(amperes * np.array(OHMS)[ranges] / STEP_V / 4).astype(np.uint32)
        levels = self.level(times).astype(np.uint32)
        words = converter | ranges.astype(np.uint32) << 14 | (numbers % 64).astype(np.uint32) << 18 | levels << 24
        return words.astype("<u4").tobytes()


class FakeLpm01a(Instrument):
    """Answers lines; faults: `refuses` (the command that gives an error), `says` (a line, after so many seconds)."""

    rate = 10_000.0

    def hear(self):
        with contextlib.suppress(BlockingIOError):
            self.heard += os.read(self.ours, 1000)
        while b"\n" in self.heard:
            line, _, self.heard = self.heard.partition(b"\n")
            self.command(line.decode().strip())

    def command(self, line):
        if not line or self.faults.get("mute"):
            return
        if line.split()[0] == self.faults.get("refuses"):
            self.say(b"\r\nPowerShield > error: acquisition in progress\r\n")
            return
        if line == "stop":
            self.stop()
            self.say(b"end\r\nPowerShield > Acquisition completed\r\n\r\n")
            return
        self.say(f"\r\nPowerShield > ack {line}\r\n\r\n".encode())
        if line == "start":
            self.start()
            self.stamped = 0.0
        if line.startswith("freq "):
            self.rate = float(line.split()[1].replace("k", "000"))

    def encoded(self, numbers, times):
        lines = []
        for number, amperes in zip(numbers, self.waveform(times) / VOLTS, strict=True):
            mantissa, exponent = f"{amperes:.3e}".split("e")
            lines.append(f"{mantissa.replace('.', '')}{int(exponent) - 3:+03d}\r\n")
            seconds = number / self.rate
            if seconds - self.stamped >= 0.02:
                self.stamped = seconds
                full = self.faults.get("full", 0)
                lines.append(
                    f"\r\nTimeStamp: {int(seconds):03d}s {int(seconds % 1 * 1000):03d}ms, buff {full:02d}%\r\n\0"
                )
            if (says := self.faults.get("says")) and seconds > says[0]:
                self.faults["says"] = None
                lines.append(says[1] + "\r\n")
        return "".join(lines).encode()


class FakeSupply:
    """A bench supply at a socket. It measures over 5 ms until the question; faults: `answer` (after so many questions,
    a text), `gone` (after so many), `slow` (seconds, once, after so many), `error` (what SYST:ERR? gives)."""

    def __init__(self, waveform, **faults):
        self.waveform, self.faults, self.asked = waveform, faults, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.05)
        self.address = f"TCPIP::127.0.0.1::{self._socket.getsockname()[1]}::SOCKET"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def _work(self):
        while not self._stop.is_set():
            try:
                line, _ = self._socket.accept()
            except TimeoutError:
                continue
            with line, contextlib.suppress(OSError):
                self._serve(line)

    def _serve(self, line):
        line.settimeout(0.05)
        heard = b""
        while not self._stop.is_set():
            try:
                piece = line.recv(1000)
            except TimeoutError:
                continue
            if not piece:
                return
            heard += piece
            while b"\n" in heard:
                question, _, heard = heard.partition(b"\n")
                answer = self.answer(question.decode())
                if answer is None:
                    return
                if answer:
                    line.sendall(answer.encode() + b"\n")

    def answer(self, question):
        if question == "*IDN?":
            return "ACME,PSU-3,123,1.0"
        if question == "SYST:ERR?":
            return self.faults.get("error", '0,"No error"')
        if not question.endswith("?"):
            return ""
        self.asked += 1
        if self.asked > self.faults.get("gone", 9e9):
            return None
        if (odd := self.faults.get("answer")) and self.asked > odd[0]:
            return odd[1]
        if (slow := self.faults.get("slow")) and self.asked > slow[0]:
            self.faults["slow"] = None
            time.sleep(slow[1])
        time.sleep(0.002)
        now = time.monotonic()
        watts = float(np.mean(self.waveform(np.linspace(now - 0.005, now, 50))))
        return {"MEAS:VOLT?": f"{VOLTS:.6E}", "MEAS:POW?": f"{watts:.6E}"}.get(question, f"{watts / VOLTS:.6E}")


class CsvWriter:
    """Writes rows into a file or a pipe. start: what its own clock shows at first; faults: `lost` rows (after so many
    seconds, so many), `line` (after so many seconds, a text), `silent`, `gone` (closes)."""

    def __init__(self, path, waveform, *, rate=1000.0, header="time_s,power_w", start=None, drift=0.0, **faults):
        self.path, self.waveform, self.rate, self.header = path, waveform, rate, header
        self.start, self.drift, self.faults = start, drift, faults
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        with contextlib.suppress(OSError):  # one that waits for a reader
            os.close(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK))
        self._thread.join()

    def _work(self):
        with contextlib.suppress(OSError), open(self.path, "w", buffering=1) as out:
            out.write(f"{self.header}\n" if self.header else "")
            began, sent = time.monotonic(), 0
            while not self._stop.wait(0.002):
                ran = time.monotonic() - began
                if ran > self.faults.get("gone", 9e9):
                    return
                if ran > self.faults.get("silent", 9e9):
                    continue
                due = int(ran * self.rate)
                numbers = np.arange(sent, due)
                times = began + numbers / self.rate
                out.write("".join(self._row(t, w, began) for t, w in zip(times, self.waveform(times), strict=True)))
                out.flush()
                sent = due
                sent += self._faults(out, ran)

    def _row(self, t, watts, began):
        shown = t if self.start is None else self.start + (t - began) * (1 + self.drift)
        return f"{shown:.9f},{watts:.9f}\n"

    def _faults(self, out, ran):
        if (line := self.faults.get("line")) and ran > line[0]:
            self.faults["line"] = None
            out.write(line[1] + "\n")
        if (lost := self.faults.get("lost")) and ran > lost[0]:
            self.faults["lost"] = None
            return lost[1]
        return 0


def noise(seed, count):
    return random.Random(seed).randbytes(count)
