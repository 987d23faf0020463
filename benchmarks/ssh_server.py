"""A real SSH server on this machine, in place of a board's: for tests, and for models on emulated processors."""

import contextlib
import getpass
import os
import random
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from deploy import shell

SSHD = next((p for p in (shell.which("sshd"), Path("/usr/sbin/sshd")) if p and p.exists()), None)
EMULATORS = {"aarch64": "qemu-aarch64-static", "armv7-a": "qemu-arm-static", "riscv64": "qemu-riscv64-static"}


def missing():
    """The programs that a server needs and this machine lacks."""
    return [name for name in ("ssh", "ssh-keygen") if shell.which(name) is None] + ([] if SSHD else ["sshd"])


def free_port():
    """A port that nobody listens on, and that no connection of this machine is given either."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


@dataclass
class Server:
    """An SSH server for this user on this machine, on its loopback interface only."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen | None = None

    def make(self):
        """Make keys and configuration; the key `key` is accepted, `other_key` is not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("host_key", "key", "other_key"):
            shell.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], timeout_s=20)
        (self.folder / "accepted").write_text((self.folder / "key.pub").read_text())
        self.trust(self.folder / "host_key.pub")
        (self.folder / "ssh_config").write_text(
            f"UserKnownHostsFile {self.folder}/known_hosts\nStrictHostKeyChecking yes\nGlobalKnownHostsFile /dev/null\n"
        )
        # SHLVL: so that Bash does not read this user's ~/.bashrc, which may take long or print something.
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host_key\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder}/accepted\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nMaxStartups 100\nSetEnv SHLVL=2\n"
        )
        return self

    def trust(self, key):
        """Have the client take a public key for the server's, and no other."""
        kind, value = key.read_text().split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {value}\n")

    def start(self):
        """Listen. Raises RuntimeError: it cannot."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where a server that may become other users locks itself in
        command = [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"]
        log = self.folder / "sshd.log"
        with open(log, "wb") as stream:
            self.process = subprocess.Popen(command, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + 10
        while f"listening on 127.0.0.1 port {self.port}" not in log.read_text(errors="replace"):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"sshd does not start here: {log.read_text(errors='replace')[-200:]}")
            time.sleep(0.01)
        return self

    def connections(self):
        """The processes of the server's connections."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                number, rest = status.read_text().split(" ", 1)
                name, facts = rest.rsplit(")", 1)
                if name.startswith("(sshd"):
                    parents[int(number)] = int(facts.split()[1])
        found = {self.process.pid}
        for _ in parents:
            found |= {number for number, parent in parents.items() if parent in found}
        return found - {self.process.pid}

    def cut(self):
        """Kill every connection of the server, as a pulled cable would, and leave what runs in them."""
        for number in self.connections():
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(number, signal.SIGKILL)

    def stop(self):
        """End the server and its connections."""
        if self.process is not None:
            self.cut()
            self.process.kill()
            self.process.wait()

    def board(self, **more):
        """The options of a device that is reached through this server."""
        options = {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "identity": str(self.folder / "key"),
            "config": str(self.folder / "ssh_config"),
        }
        return {**options, **more}
