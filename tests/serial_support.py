"""Boards at the end of a serial line: QEMU with its UART on a pseudo-terminal, and a line with faults in between.

Run as a program with a pid file and a command, it is what flashes a `FlashedBoard`: the emulator is started anew.
"""

import contextlib
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tty
from dataclasses import replace

from deploy.target_parts import DeviceSpec
from deploy.targets import load_target

# Board → its UART and what the emulator is called with.
UARTS = {
    "cortex-m0-microbit": ("uart_nrf.c", "-DTX_PIN=24", "-DRX_PIN=25"),
    "cortex-m4-mps2": ("uart_cmsdk.c", "-DUART_AT=0x40004000", "-DUART_CLOCK_HZ=25000000"),
    "cortex-m55-mps3": ("uart_cmsdk.c", "-DUART_AT=0x59303000", "-DUART_CLOCK_HZ=25000000"),
    "rv32imc-virt": ("uart_ns16550.c", "-DUART_AT=0x10000000", "-DUART_CLOCK_HZ=3686400"),
}


def serial_target(name, port, **options):
    """The board's target with a serial device in place of QEMU's."""
    target = load_target(name)
    tick = target.device.get("tick")
    known = {"port": str(port), "board": UARTS[name], "emulated": True, **({"tick": tick} if tick else {}), **options}
    given = tuple((key, value) for key, value in known.items() if value is not None)
    return replace(target, device=DeviceSpec("serial", given))


def emulator(board, image, *, counting=True):
    """The command that runs an image with the first UART and the monitor still to be said where."""
    spec = load_target(board).device
    program, arguments = spec.get("program") or "qemu-system-arm", spec.get("arguments", ())
    exact = ["-icount", "shift=0"] if counting else []
    return [program, "-M", spec.get("machine"), "-display", "none", *exact, *arguments, "-kernel", str(image)]


@contextlib.contextmanager
def on_pty(board, image, *, counting=True):
    """QEMU with its UART on a pseudo-terminal, whose name this gives."""
    command = [*emulator(board, image, counting=counting), "-monitor", "none", "-serial", "pty"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            line = process.stdout.readline()
            yield re.search(r"/dev/\S+", line)[0]
        finally:
            process.kill()


class FaultyLine:
    """QEMU's UART on a socket, a pseudo-terminal for the host, and a thread that carries bytes from one to the other.

    bytes_a_second: how fast, None for as fast as it goes. to_board, to_host: functions of a piece of bytes that give
    what arrives. Once `start` was called the board runs; before that the line is dead.
    """

    def __init__(self, folder, board, *, bytes_a_second=None, to_board=bytes, to_host=bytes, counting=True):
        self.folder, self.board, self.counting = folder, board, counting
        self.bytes_a_second, self.to_board, self.to_host = bytes_a_second, to_board, to_host
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.port = os.ttyname(self._theirs)
        self._stop = threading.Event()
        self._thread = self._process = self._uart = self._monitor = None

    def __enter__(self):
        return self

    def start(self, image):
        uart, monitor = self.folder / "uart", self.folder / "monitor"
        sockets = ["-serial", f"unix:{uart},server=on,wait=off", "-monitor", f"unix:{monitor},server=on,wait=off"]
        command = emulator(self.board, image, counting=self.counting)
        self._process = subprocess.Popen([*command, *sockets], stdout=subprocess.DEVNULL)
        self.connect(uart, monitor)

    def connect(self, uart, monitor):
        self._uart, self._monitor = _connected(uart), _connected(monitor)
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def reset(self):
        """Reset the board, as its button would."""
        self._monitor.sendall(b"system_reset\n")

    def _carry(self):
        while not self._stop.is_set():
            ready = select.select([self._ours, self._uart], [], [], 0.02)[0]
            size = 1024 if self.bytes_a_second is None else max(1, self.bytes_a_second // 100)
            with contextlib.suppress(OSError):
                if self._ours in ready:
                    self._uart.sendall(self.to_board(os.read(self._ours, size)))
                if self._uart in ready:
                    os.write(self._ours, self.to_host(self._uart.recv(size)))
            if ready and self.bytes_a_second is not None:
                time.sleep(size / self.bytes_a_second)

    def __exit__(self, *_):
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._uart.close()
            self._monitor.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        os.close(self._ours)
        os.close(self._theirs)


class FlashedBoard:
    """A board that is flashed and reset by commands, for `serial_target`: QEMU with its UART on a pseudo-terminal.

    Bytes go through this process: to_board, to_host are functions of a piece of bytes that give what arrives. `flashed`
    has the size of each image.
    """

    def __init__(self, folder, board, *, to_board=bytes, to_host=bytes, counting=True):
        self.folder, self.to_board, self.to_host = folder, to_board, to_host
        self._hosts, host = os.openpty()
        self._boards, board_end = os.openpty()
        self._ends = (host, board_end)  # kept open, so that a line nobody uses is not a broken one
        for end in self._ends:
            tty.setraw(end)
        self.port, self._pid, self._monitor = os.ttyname(host), folder / "pid", folder / "monitor"
        self._log = folder / "flashed"
        sockets = ["-serial", os.ttyname(board_end), "-monitor", f"unix:{self._monitor},server=on,wait=off"]
        started = [*emulator(board, "{elf}", counting=counting), *sockets, "-daemonize", "-pidfile", str(self._pid)]
        self.flash = (sys.executable, __file__, str(self._pid), str(self._log), *started)
        self.reset = (sys.executable, __file__, str(self._monitor))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    @property
    def flashed(self):
        return [int(line) for line in self._log.read_text().split()] if self._log.exists() else []

    def press(self):
        """Reset the board, as its button would."""
        _reset(self._monitor)

    def _carry(self):
        while not self._stop.is_set():
            for ready in select.select([self._hosts, self._boards], [], [], 0.02)[0]:
                data = os.read(ready, 1024)
                if ready == self._hosts:
                    os.write(self._boards, self.to_board(data))
                else:
                    os.write(self._hosts, self.to_host(data))

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        _end(self._pid)
        for end in (self._hosts, self._boards, *self._ends):
            os.close(end)


def _end(pid_file):
    """End the emulator of which that is the file, and wait until it is gone."""
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGKILL)
        while pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.005)
    pid_file.unlink(missing_ok=True)


def _reset(monitor):
    with _connected(monitor) as line:
        line.recv(1)  # the monitor is ready
        line.sendall(b"system_reset\n")
        time.sleep(0.05)  # closing wakes the emulator, which looks whether the board takes bytes again


def _connected(path):
    deadline = time.monotonic() + 10
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(str(path))
            return one
        except OSError:
            one.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main(arguments):
    if len(arguments) == 1:
        _reset(pathlib.Path(arguments[0]))
        return
    pid_file, log = map(pathlib.Path, arguments[:2])
    _end(pid_file)
    with log.open("a") as flashed:
        image = pathlib.Path(arguments[arguments.index("-kernel") + 1])
        flashed.write(f"{image.stat().st_size}\n")
    subprocess.run(arguments[2:], check=True, stdout=subprocess.DEVNULL)
    time.sleep(0.05)
    # Whoever connects wakes the emulator, which then sees that the board takes bytes.
    _connected(pathlib.Path(arguments[arguments.index("-monitor") + 1].removeprefix("unix:").partition(",")[0])).close()


if __name__ == "__main__":
    main(sys.argv[1:])
