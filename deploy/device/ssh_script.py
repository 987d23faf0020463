"""What is run on a Linux board over SSH, as text for its `sh`, and what that prints, decoded. Pure.

Nothing is asked of a board but a POSIX shell, such as BusyBox's. Each session has a folder of its own there, whose name
says whose it is: `tvm-deploy-COMPUTER-PROCESS-TOKEN-TURN`, the process and its own folder on the computer that came by
SSH, and how often it did: a script whose link was cut may still run, and removes its folder, not the next one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from shlex import join, quote

from deploy.device.protocol import Condition
from deploy.errors import DeviceError

GONE, NO_BASE, CUT_SHORT = 90, 91, 92  # exit statuses of these scripts
PREFIX = "tvm-deploy-"
PROGRAM, INPUTS, OUTPUTS = "program", "inputs", "outputs"
_LAST_SIGNAL = 64
_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-([0-9]{{1,10}})-(\w{{1,64}})-([0-9]{{1,9}})", re.ASCII)
# Whether a process is still at work in the folder $1: its number may belong to another by now.
_END = """end() {
  if [ -r "$1/pid" ]; then
    read -r was < "$1/pid"
    [ "$(readlink "/proc/$was/cwd")" = "$(cd "$1" && pwd -P)" ] && kill -9 "$was"
  fi
  rm -rf "$1"
} 2>/dev/null
"""
# Lines for `_Conditions`, the word in front of each being "before" or "after"; what there is no file for is left out.
_STATE = """state() {
  for name in scaling_governor scaling_cur_freq cpuinfo_max_freq; do
    [ -r "$cpufreq/$name" ] && echo "@$1 $name $(cat "$cpufreq/$name")"
  done
  for zone in "$sys"/class/thermal/thermal_zone*/temp; do
    [ -r "$zone" ] && echo "@$1 temp $(cat "$zone")"
  done
  [ -r /proc/loadavg ] && echo "@$1 load $(cat /proc/loadavg)"
  return 0
} >&2 2>/dev/null
"""


@dataclass(frozen=True)
class Session:
    """A folder's name in parts: of which computer, process, token and turn it is."""

    computer: str
    process: int
    token: str
    turn: int

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{PREFIX}{self.computer}-{self.process}-{self.token}-{self.turn}"


def session_of(name: str) -> Session | None:
    """Whose folder it is; None where the name is of another kind."""
    found = _NAME.fullmatch(name)
    return Session(found[1], int(found[2]), found[3], int(found[4])) if found else None


@dataclass(frozen=True)
class Board:
    """What a board says of itself.

    base: the folder that sessions' folders are in. machine: the kernel's name of its processor. speeds: the highest
    frequency of each CPU that may be used, in kHz, 0 where it is not told. folders: names of sessions' folders.
    """

    base: str
    machine: str
    speeds: Mapping[int, int]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Ran:
    """How a program ended on a board: its status (negative: a signal), whether it was stopped because its time was up,
    what it said on standard error, and the conditions that it ran under."""

    status: int
    late: bool
    said: str
    conditions: Mapping[str, Condition]


def begin(directory: str | None, name: str, sysfs: str) -> str:
    """The script that makes the folder `name`; `board_of` reads its output.

    What has lain there for a day is removed, whoever it was of. directory: where folders are made, relative to the home
    folder.
    """
    return (
        f"{_base(directory)}\n"
        f"find . -maxdepth 1 -type d -name '{PREFIX}*' -mtime +0 -exec rm -rf {{}} \\; 2>/dev/null\n"
        f'for folder in {PREFIX}*; do [ -d "$folder" ] && echo "folder $folder"; done\n'
        f"umask 077\nmkdir {quote(name)} || exit 1\n"
        'echo "base $(pwd -P)"\necho "machine $(uname -m)"\n'
        "sed -n 's/^Cpus_allowed_list:[[:space:]]*/cpus /p' /proc/self/status 2>/dev/null\n"
        f"for file in {quote(sysfs)}/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do\n"
        '  cpu=${file%/cpufreq/*}\n  [ -r "$file" ] && echo "speed ${cpu##*/cpu} $(cat "$file")"\ndone\nexit 0'
    )


def board_of(text: str) -> Board:
    """Read the output of `begin`; lines of the board's own, as a login message, do no harm.

    Raises DeviceError: it is not such an output.
    """
    lines = [line.split(maxsplit=1) for line in text.splitlines()]
    pairs = [(line[0], line[1]) for line in lines if len(line) == 2]
    facts = dict(pairs)
    if not facts.get("base", "").startswith("/") or "machine" not in facts:
        raise DeviceError(f"the board's shell answered something else than it was asked for: {text.strip()[:200]!r}")
    highest = dict(_two_numbers(value) for key, value in pairs if key == "speed" and re.fullmatch(r"\d+ \d+", value))
    speeds = {cpu: highest.get(cpu, 0) for cpu in _cpus(facts.get("cpus", ""))}
    folders = tuple(value for key, value in pairs if key == "folder" and session_of(value))
    return Board(facts["base"], facts["machine"].strip(), speeds, folders)


def end(base: str, names: Iterable[str]) -> str:
    """The script that ends what runs in folders and removes them."""
    return f"{_base(base)}\n{_END}" + "".join(f"end {quote(name)}\n" for name in names) + "exit 0"


def put(folder: str, name: str, nbytes: int) -> str:
    """The script that keeps its `nbytes` of standard input as a file, whole or not at all."""
    return f"{_inside(folder)}\n{_kept(name, nbytes)}"


def run(folder: str, command: Sequence[str], input_bytes: int | None, limit_s: float, cpu: int, sysfs: str) -> str:
    """The script that runs the program for `limit_s` at most; its standard error is for `ran_of`.

    input_bytes: of the inputs, which come first, None where they are there. On standard output is the program's answer
    and then what is in the file of its outputs. Where the link breaks meanwhile, and so nothing can be said at the end,
    it removes the folder. cpu: whose frequency is looked at.
    """
    # Below not ":" for a file: where the folder is gone, the shell would end there and not kill the program.
    seconds = max(1, math.ceil(limit_s))
    received = "" if input_bytes is None else f"{_kept(INPUTS, input_bytes)} || exit 1\n"
    return (
        f"{_inside(folder)}\n{received}"
        f"sys={quote(sysfs)}\ncpufreq=$sys/devices/system/cpu/cpu{cpu}/cpufreq\n{_STATE}"
        f"trap '' PIPE\nrm -f late {OUTPUTS}\nchmod +x {PROGRAM}\nstate before\n"
        f"{join(command)} </dev/null &\nprogram=$!\necho $program > pid\n"
        f"( sleep {seconds} & nap=$!; trap 'kill $nap; exit' TERM; wait $nap; echo > late; kill -9 $program"
        " ) >/dev/null 2>&1 </dev/null &\nwatch=$!\n"
        "wait $program\nstatus=$?\nkill $watch 2>/dev/null\nrm -f pid\nstate after\n"
        '[ -e late ] && echo "@late" >&2\n'
        f"[ $status -eq 0 ] && [ -e {OUTPUTS} ] && cat {OUTPUTS}\n"
        f'echo "@status $status" >&2 || rm -rf {quote(folder)}\nexit 0'
    )


def ran_of(stderr: str) -> Ran | None:
    """Read the standard error of `run`; None where it ends before the program's status."""
    marks = [line[1:].split() for line in stderr.splitlines() if line.startswith("@")]
    said = "\n".join(line for line in stderr.splitlines() if not line.startswith("@")).strip()
    status = next((int(mark[1]) for mark in marks if mark[0] == "status" and mark[1:2] and mark[1].isdigit()), None)
    if status is None:
        return None
    signal = 128 < status <= 128 + _LAST_SIGNAL
    return Ran(128 - status if signal else status, ["late"] in marks, said, _conditions(marks))


_CONDITIONS = {
    "scaling_governor": ("governor", None),
    "scaling_cur_freq": ("frequency_hz", 1000),  # kHz
    "cpuinfo_max_freq": ("max_frequency_hz", 1000),
    "temp": ("temperature_c", 0.001),
    "load": ("load_average", 1),
}


def _conditions(marks: Sequence[Sequence[str]]) -> dict[str, Condition]:
    """Conditions under the names of `DeviceRun`, those before the run with "before" in theirs; of several temperatures
    the highest."""
    found: dict[str, Condition] = {}
    for mark in marks:
        if len(mark) < 3 or mark[0] not in ("before", "after") or mark[1] not in _CONDITIONS:
            continue
        name, factor = _CONDITIONS[mark[1]]
        key = _condition_key(name, before=mark[0] == "before")
        if key is None:
            continue
        if factor is None:
            found[key] = mark[2]
        elif re.fullmatch(r"-?\d+(\.\d+)?", mark[2]):
            value = float(mark[2]) * factor
            found[key] = max(value, float(found.get(key, value))) if name == "temperature_c" else value
    return found


def _condition_key(name: str, *, before: bool) -> str | None:
    if name in ("load_average", "max_frequency_hz"):  # the load before the run, and what does not change
        return name if before else None
    return f"{name}_before" if before else name


def _base(directory: str | None) -> str:
    place = '"${TMPDIR:-/tmp}"' if directory is None else quote(re.sub("^~/?", "./", directory))
    return f"cd {place} || exit {NO_BASE}"


def _kept(name: str, nbytes: int) -> str:
    partial = f"{name}.partial"
    return (
        f"rm -f {name}\ncat > {partial} || exit 1\n"
        f'[ "$(wc -c < {partial})" -eq {nbytes} ] || exit {CUT_SHORT}\nmv -f {partial} {name}'
    )


def _inside(folder: str) -> str:
    """Go to the folder and mark it as in use."""
    return f"cd {quote(folder)} || exit {GONE}\ntouch ."


def _cpus(text: str) -> list[int]:
    """`0-2,5` as numbers; none where it is not such a list."""
    if not re.fullmatch(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*", text.strip()):
        return []
    ends = [part.split("-") for part in text.strip().split(",")]
    return [cpu for part in ends for cpu in range(int(part[0]), int(part[-1]) + 1)]


def _two_numbers(text: str) -> tuple[int, int]:
    first, second = text.split()
    return int(first), int(second)
