"""A Linux board without a board: Debian's arm64 userland with TVM's aarch64 runtime, run by qemu-user.

    benchmarks/arm64_userland.py            # builds it, once: needs debootstrap, qemu-user-static, root and a network
    benchmarks/arm64_userland.py --where    # says where it is

It lies in $XDG_CACHE_HOME/tvm-deploy/arm64-VERSION. Nothing of it is installed: the packages are only unpacked, so that
neither a chroot nor binfmt_misc is needed; `command` gives the command that runs Python in it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

QEMU = "qemu-aarch64-static"
PACKAGES = ("python3", "python3-numpy", "python3-yaml", "libstdc++6")
RELEASE = "bookworm"  # whose Python is 3.11
WHEELS = ("apache-tvm", "apache-tvm-ffi", "typing_extensions", "rich", "markdown-it-py", "mdurl", "pygments")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")
ROOT = Path(__file__).resolve().parents[1]


def place() -> Path:
    """Where the userland is, or is to be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tvm-deploy" / f"arm64-{version('apache-tvm')}"


def missing() -> str:
    """Why nothing can be run in it; empty where it can."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed (apt install qemu-user-static)"
    if not place().is_dir():
        return f"there is no arm64 userland in {place()} (benchmarks/arm64_userland.py builds it)"
    return ""


def command(*arguments: str) -> list[str]:
    """The command that runs the userland's Python with this project's modules."""
    root = place()
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": f"{root / 'wheels'}:{ROOT}",
        "PYTHONDONTWRITEBYTECODE": "1",  # what would be written here is of another machine
        "LD_LIBRARY_PATH": ":".join(str(root / "usr/lib/aarch64-linux-gnu" / name) for name in ("blas", "lapack")),
    }
    given = [part for name, value in environment.items() for part in ("-E", f"{name}={value}")]
    return [QEMU, *given, "-L", str(root), str(root / "usr" / "bin" / "python3.11"), *arguments]


def build() -> None:
    """Unpack the packages and wheels into the cache, whole or not at all."""
    target = place()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="arm64-partial-", dir=target.parent))
    try:
        root = partial / "root"
        _run(["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}",
              RELEASE, str(root), "http://deb.debian.org/debian"])  # fmt: skip
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            contents = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE)
            _run(["tar", "-x", "-C", str(root), "--keep-directory-symlink"], stdin=contents.stdout)
            if contents.wait():
                raise SystemExit(f"{package.name} cannot be unpacked")
            package.unlink()
        wheels = partial / "downloads"
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--python-version=3.11",
              "--implementation=cp", "--abi=cp311", "--abi=none", *(f"--platform={name}" for name in PLATFORMS),
              f"--dest={wheels}", *(f"{name}=={version(name)}" for name in WHEELS)])  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            _run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(root / "wheels")])
        root.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(line: list[str], stdin: object = None) -> None:
    if subprocess.run(line, stdin=stdin, stdout=sys.stderr).returncode:  # type: ignore[call-overload]
        raise SystemExit(f"failed: {' '.join(line)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--where", action="store_true", help="only say where it is")
    if parser.parse_args().where:
        print(place())
    elif place().is_dir():
        print(f"{place()} is there already; remove it to build it anew")
    else:
        build()
        print(place())
