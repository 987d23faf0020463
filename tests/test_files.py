"""Atomic writes against real file systems: full, read-only, crashed half-way, contended."""

import contextlib
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deploy.errors import InputError, ToolError
from deploy.files import atomic_directory, check_directory, write_bytes, write_text

REPO = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def mounted(folder, options):
    """A small tmpfs on `folder`; skips where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder, files):
    for name, text in files.items():
        (folder / name).write_text(text)


def build(path, **files):
    with atomic_directory(path, marker="manifest") as folder:
        fill(folder, {"manifest": "{}", **files})


def interrupted_build(path, error):
    with atomic_directory(path, marker="manifest") as folder:
        fill(folder, {"half": "1"})
        raise error


# --- files ---


def test_write_creates_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "report.md"
    assert write_text(path, "één") == path
    assert path.read_bytes() == "één".encode()
    write_bytes(path, b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(path.parent) == ["report.md"]


def test_write_follows_a_link_and_honours_umask(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "link", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640


def test_write_to_a_device_or_pipe_does_not_replace_it(tmp_path):
    write_text("/dev/null", "x")
    assert not Path("/dev/null").is_file()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_text(pipe, "through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("path", ["", "/", "a\0b"])
def test_not_a_name(path):
    with pytest.raises(InputError):
        write_text(path, "x")


def test_write_refuses_a_folder_and_a_file_as_parent(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        write_text(tmp_path, "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"not a directory|file exists"):
        write_text(tmp_path / "file" / "sub" / "name", "x")
    with pytest.raises(InputError, match="file name too long"):
        write_text(tmp_path / ("n" * 300), "x")
    assert os.listdir(tmp_path) == ["file"]


def test_write_on_a_read_only_file_system(tmp_path):
    with mounted(tmp_path / "ro", "size=64k,ro") as folder:
        with pytest.raises(InputError, match="read-only"):
            write_text(folder / "report.md", "x")
        with pytest.raises(InputError, match="read-only"):
            write_text(folder / "deep" / "er" / "report.md", "x")
        with pytest.raises(InputError, match="read-only"):
            build(folder / "artifact")


def test_write_without_permission(tmp_path):
    """As another user, since root may write everywhere."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o755)
    code = """
        import os, sys
        from deploy.errors import InputError
        from deploy.files import write_text, atomic_directory
        os.seteuid(65534)
        for attempt in (lambda: write_text(sys.argv[1] + "/x", "x"),
                        lambda: atomic_directory(sys.argv[1] + "/y", marker="m").__enter__()):
            try:
                attempt()
            except InputError as error:
                print(error)
    """
    for parent in folder.parents:  # the test's own folder is private to its user
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), folder], capture_output=True, text=True, cwd=REPO, check=True
    )
    assert done.stdout.count("permission denied") == 2, done
    assert os.listdir(folder) == []


def test_disk_full_keeps_the_old_file_and_leaves_nothing(tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        write_text(folder / "report", "old")
        with pytest.raises(ToolError, match="the disk is full"):
            write_bytes(folder / "report", b"x" * 200_000)
        with pytest.raises(ToolError, match="the disk is full"):
            write_bytes(folder / "new" / "report", b"x" * 200_000)
        assert (folder / "report").read_text() == "old"
        assert os.listdir(folder) == ["report"]


def test_file_size_limit_keeps_the_old_file(tmp_path):
    write_text(tmp_path / "report", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(ToolError, match="larger than the limit"):
            write_bytes(tmp_path / "report", b"x" * 50_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "report").read_text() == "old"
    assert os.listdir(tmp_path) == ["report"]


# --- folders ---


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "out" / "artifact"
    with atomic_directory(target, marker="manifest") as folder:
        fill(folder, {"manifest": "{}", "model.h": "h"})
        assert folder.parent == target.parent
        assert not target.exists()
    assert sorted(os.listdir(target)) == ["manifest", "model.h"]
    assert os.listdir(target.parent) == ["artifact"]


def test_folder_replaces_an_older_one_or_an_empty_one(tmp_path):
    build(tmp_path / "a", one="1")
    build(tmp_path / "a", two="2")
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest", "two"]
    (tmp_path / "b").mkdir()
    build(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), ToolError("cc failed"), OSError("socket")])
def test_failing_block_keeps_the_old_folder(tmp_path, error):
    build(tmp_path / "a", old="1")
    with pytest.raises(type(error)):
        interrupted_build(tmp_path / "a", error)
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest", "old"]
    assert os.listdir(tmp_path) == ["a"]


def test_failing_block_removes_parents_it_made(tmp_path):
    with pytest.raises(ValueError, match="x"), atomic_directory(tmp_path / "p" / "q" / "a", marker="m"):
        raise ValueError("x")
    assert os.listdir(tmp_path) == []


def test_somebodys_work_is_not_replaced(tmp_path):
    fill(tmp_path, {"thesis.tex": "years"})
    with pytest.raises(InputError, match="it holds other files"):
        build(tmp_path)
    with pytest.raises(InputError, match="a file has that name"):
        build(tmp_path / "thesis.tex")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_folder_without_its_marker_is_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match="no manifest"), atomic_directory(tmp_path / "a", marker="manifest"):
        pass
    assert os.listdir(tmp_path) == []


def test_disk_full_while_filling_a_folder(tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        build(folder / "a", old="1")
        with pytest.raises(ToolError, match="the disk is full"):
            build(folder / "a", big="x" * 200_000)
        assert sorted(os.listdir(folder / "a")) == ["manifest", "old"]
        assert os.listdir(folder) == ["a"]


def test_mount_point_cannot_be_replaced(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as folder:
        with pytest.raises(InputError, match="busy"):
            build(folder)
        assert os.listdir(folder) == []
    assert os.listdir(tmp_path) == ["disk"]


def test_other_errors_of_the_block_pass_untranslated(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "a", marker="m"):
        Path("/no/such/file").read_text()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()
    with pytest.raises(ConnectionRefusedError), atomic_directory(tmp_path / "a", marker="m"):
        socket.create_connection(address, timeout=5)


# --- crashes and company ---


def test_killed_run_is_cleaned_up_by_the_next(tmp_path):
    code = """
        import os, signal, sys
        from deploy.files import atomic_directory
        with atomic_directory(sys.argv[1], marker="manifest") as folder:
            (folder / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "a"]
    assert subprocess.run(command, cwd=REPO).returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.tmp-")
    (tmp_path / ".a.tmp-not-ours").mkdir()
    build(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == [".a.tmp-not-ours", "a"]


def test_crash_between_the_two_renames_is_undone(tmp_path):
    build(tmp_path / "a", old="1")
    os.rename(tmp_path / "a", tmp_path / ".a.old-01234567")
    with pytest.raises(ValueError, match="x"), atomic_directory(tmp_path / "a", marker="manifest"):
        raise ValueError("x")
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest", "old"]


def test_run_at_work_is_left_alone(tmp_path):
    busy = tmp_path / ".a.tmp-01234567"
    busy.mkdir()
    descriptor = os.open(busy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    build(tmp_path / "a")
    assert busy.is_dir()
    os.close(descriptor)
    build(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_two_builders_of_one_name_both_finish_whole(tmp_path):
    with atomic_directory(tmp_path / "a", marker="manifest") as first:
        fill(first, {"manifest": "1"})
        build(tmp_path / "a", second="2")
        assert first.is_dir()
    assert os.listdir(tmp_path / "a") == ["manifest"]
    assert os.listdir(tmp_path) == ["a"]


# --- asking beforehand ---


def test_a_folder_that_could_be_written_passes(tmp_path):
    build(tmp_path / "old")
    (tmp_path / "empty").mkdir()
    for good in ("old", "empty", "new", "a/b/new"):
        check_directory(tmp_path / good, marker="manifest")
    assert sorted(os.listdir(tmp_path)) == ["empty", "old"]


def test_what_would_be_refused_later_is_refused_beforehand(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    fill(tmp_path / "full", {"thesis": "x"})
    for bad in ("file", "full", "file/inner", "file/inner/more"):
        with pytest.raises(InputError, match=r"cannot write|will not replace"):
            check_directory(tmp_path / bad, marker="manifest")
    with mounted(tmp_path / "ro", "ro") as folder, pytest.raises(InputError, match="the file system is read-only"):
        check_directory(folder / "a" / "b", marker="manifest")
