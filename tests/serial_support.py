"""Boards at the end of a serial line: QEMU with its UART on a pseudo-terminal, and a line with faults in between."""

import contextlib
import os
import re
import select
import socket
import subprocess
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

    def __init__(self, folder, board, *, bytes_a_second=None, to_board=bytes, to_host=bytes):
        self.folder, self.board = folder, board
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
        self._process = subprocess.Popen([*emulator(self.board, image), *sockets], stdout=subprocess.DEVNULL)
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
