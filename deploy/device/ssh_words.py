"""What went wrong with a board over SSH, in one sentence each: of what OpenSSH, the board's shell and its kernel said.

Pure. All of them give a DeviceError that names the board.
"""

from __future__ import annotations

import re

from deploy.device import ssh_script
from deploy.errors import DeviceError
from deploy.shell import exit_words

SSH_FAILED = 255
_FILE_TOO_LARGE = 128 + 25  # SIGXFSZ, of `ulimit -f`
# What OpenSSH prints → what that means and what to do; the first that fits. {board} and {said} are filled in.
_CONNECTING = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "{board} shows another host key than it did before: it was installed anew, or is another machine under its "
        "address; if that is right, forget the old key (ssh-keygen -R HOST) and log in once with ssh",
    ),
    (
        r"Host key verification failed|No \w+ host key is known",
        "the host key of {board} is not known here: log in once with ssh, compare the key, and accept it",
    ),
    (
        r"UNPROTECTED PRIVATE KEY|bad permissions",
        "the key for {board} may be read by others, so ssh does not use it: chmod 600 the `identity` file",
    ),
    (r"Could not resolve hostname", "no network knows the host of {board}: check `host`, and your network"),
    (r"Connection refused", "{board} refuses connections: check that its SSH server runs, and `port`"),
    (
        r"No route to host|Network is unreachable|timed out|Host is down",
        "{board} cannot be reached: check that it is switched on and in this network, and `host` and `port`",
    ),
    (
        r"Permission denied \(|Too many authentication failures",
        "{board} does not accept your key: give `user` and `identity`, and put the public key there (ssh-copy-id); "
        "passwords are not asked for",
    ),
    (
        r"onfiguration option|Bad owner or permissions|terminating, ",
        "ssh does not accept its configuration for {board}: {said}",
    ),
)
_CLOSED = "{board} closed the connection before the log-in ({said}): check its SSH server's log, and `port`"


def not_connected(board: str, stderr: str) -> DeviceError:
    """Why ssh could not log in to a board."""
    said = last_line(stderr)
    if words := _words(stderr):
        return DeviceError(words.format(board=board, said=said))
    if re.search(r"kex_exchange_identification|banner exchange|Connection (closed|reset) by", stderr):
        return DeviceError(_CLOSED.format(board=board, said=said))
    return DeviceError(f"ssh could not connect to {board}: {said}; try it by hand with ssh")


def broken(board: str, stderr: str, doing: str) -> DeviceError:
    """Why a script did not come back; where the first connection had ended, ssh tried to log in anew for it."""
    words = _words(stderr)
    return DeviceError(words.format(board=board, said=last_line(stderr))) if words else lost(board, doing)


def lost(board: str, doing: str) -> DeviceError:
    """The link ended in the middle of something."""
    return DeviceError(
        f"the link to {board} was cut while {doing}: check its power and network, and try again; what is left on it is "
        "removed by the next connection"
    )


def silent(board: str, doing: str, seconds: float) -> DeviceError:
    """The link is there, and nothing comes."""
    return DeviceError(
        f"{board} did not answer within {seconds:.0f} s while {doing}: check its power and network, or give its device "
        "a longer `timeout`"
    )


def failed(board: str, place: str, doing: str, status: int, stderr: str) -> DeviceError:
    """A script ended with `status` on a board. place: the folder on it."""
    said = last_line(stderr)
    if status == ssh_script.NO_BASE:
        return DeviceError(f"{board} has no folder {place} that one may enter: give `directory` of its device another")
    if status == ssh_script.GONE:
        return DeviceError(f"the folder {place} is gone from {board}: it may have been restarted; try again")
    if status == ssh_script.CUT_SHORT:
        return lost(board, doing)
    if "No space left" in stderr or "quota exceeded" in stderr.lower():
        return DeviceError(
            f"no space is left in {place} on {board} ({doing}): free some there, or set `directory` of its device to a "
            "place that has more"
        )
    if status == _FILE_TOO_LARGE or re.search("File size limit|File too large", stderr):
        return DeviceError(
            f"{board} does not allow files that large in {place} ({doing}): raise its limit (ulimit -f), or set "
            "`directory` of its device to another place"
        )
    if re.search("Read-only file system|Permission denied|(cannot|can't) create", stderr):
        return DeviceError(f"{place} on {board} cannot be written to ({said}): give its device another `directory`")
    return DeviceError(f"{board} failed while {doing} ({exit_words(status)}): {said}")


def not_started(board: str, place: str, machine: str, architecture: str, ran: ssh_script.Ran) -> DeviceError | None:
    """Why the measuring program did not even start; None where it did."""
    said = last_line(ran.said)
    wrong = re.search("Exec format error|cannot execute binary|Invalid ELF|[Ss]yntax error", ran.said)
    if wrong or (ran.status in (126, 127) and not runs(machine, architecture)):
        return DeviceError(
            f"{board} cannot run code for {architecture}: its processor is called {machine}; take a target for it, or "
            "name an emulator in `run_with` of its device"
        )
    if ran.status == 126:
        return DeviceError(
            f"{board} does not run programs in {place} ({said}): the file system is mounted noexec, or `run_with` "
            "names no program; set `directory` of its device to a place where programs may run"
        )
    if ran.status == 127:
        return DeviceError(f"{board} could not start the program ({said}): check `run_with` of its device")
    return None


def runs(machine: str, architecture: str) -> bool:
    """Whether a kernel that calls its processor `machine` may run programs for an architecture of LLVM's."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine)
    if architecture.startswith("arm"):
        return machine.startswith("arm") or machine == "aarch64"
    return machine == architecture


def _words(stderr: str) -> str | None:
    return next((words for pattern, words in _CONNECTING if re.search(pattern, stderr)), None)


def last_line(text: str) -> str:
    """What a program said last, which is where most say what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
