"""The C compiler that really builds for a target: the one that its YAML names, or zig in place of a cross compiler.

`toolchain.cc: aarch64-linux-gnu-gcc` is Debian's name of a compiler for another Linux. Where it is missing, zig, one
package from PyPI (ziglang) with compilers for all of them, is taken; for which Linux is derived from TVM's `mtriple`. A
compiler under any other name is the user's own choice, and nothing takes its place.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.resources import files

from deploy import shell
from deploy.errors import ToolError
from deploy.target import Target

_CROSS = re.compile(r"\w+-linux-\w+-gcc(-\d+)?", re.ASCII)
_ZIG_FLAGS = ("-fno-sanitize=undefined",)  # which zig would turn on, and which needs a library of its own


def compiler(target: Target, *, static: bool = False) -> list[str]:
    """The command of the target's C compiler with what it always needs, without the target's own flags.

    static: for programs without shared libraries; zig then takes another C library (musl), as glibc's is not there.

    Raises ToolError naming both where there is neither the cross compiler nor zig. Other compilers are not looked for:
    running one that is missing says so.
    """
    cc = target.toolchain.cc
    if not _replaced(cc):
        return [cc]
    zig = _zig()
    if zig is None:
        install = shell.package_of(cc) or "from your distribution"
        raise ToolError(
            f"target {target.name} needs the program {cc} or zig, and neither was found: install the first ({install}) "
            "or the second (pip install ziglang)"
        )
    return [*zig, "cc", "-target", zig_triple(target, static=static), *_ZIG_FLAGS]


def runtime_sources(target: Target) -> list[str]:
    """C files that have to be linked into what is built for a target: what the compiler's own library lacks."""
    architecture = zig_triple(target).partition("-")[0] if _replaced(target.toolchain.cc) else ""
    return [str(files("deploy.aot").joinpath("c", "arm_division.c"))] if architecture == "arm" else []


def zig_triple(target: Target, *, static: bool = False) -> str:
    """zig's name of the Linux that a target is for, such as arm-linux-gnueabihf.

    Raises ToolError where TVM's options do not say which it is.
    """
    parts = str(dict(target.tvm_options).get("mtriple", "")).split("-")
    if len(parts) not in (3, 4) or parts[-2] != "linux":
        raise ToolError(
            f"target {target.name} needs the program {target.toolchain.cc}, which was not found; zig cannot stand in "
            "for it unless mtriple of tvm says for which Linux, such as aarch64-linux-gnu"
        )
    architecture = "arm" if parts[0].startswith("arm") and parts[0] != "arm64" else parts[0]
    return f"{architecture}-linux-{parts[-1].replace('gnu', 'musl') if static else parts[-1]}"


def _replaced(cc: str) -> bool:
    return _CROSS.fullmatch(cc) is not None and shell.which(cc) is None


def _zig() -> list[str] | None:
    if shell.which("zig") is not None:
        return ["zig"]
    return [sys.executable, "-m", "ziglang"] if importlib.util.find_spec("ziglang") is not None else None
