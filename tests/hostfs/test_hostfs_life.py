"""The mount over time: changes on the host, few descriptors, many devices, and the end."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.hostfs.options import HostfsOptions
from nsstages import mounts
from nsstages.idmap import IdRange
from nsstages.syscalls import CLONE_NEWNS, MS_BIND, unshare
from nsstages.syscalls import mount as mount_call
from tests import needs
from tests.hostfs.conftest import Serve
from tests.hostfs.mounted import Mounted, Rights, run_forked

pytestmark = [needs.root, needs.fuse]

OWN = (IdRange(0, 1001, 1), IdRange(1, 200000, 65536))


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition; return how long it took, or fail."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - started


def test_changes_on_the_host_show_within_the_timeout(mount: Mounted, source: Path) -> None:
    """New contents, a new file and a removed one are seen about a second later at most."""

    def inside() -> list[float]:
        os.chdir(mount.path)
        before = Path("file").read_text(), Path("link").is_symlink(), os.path.exists("new")
        assert before == ("content\n", True, False)
        Path("ready").touch()
        wait_until(lambda: os.path.exists("changed"), 5)
        return [
            wait_until(lambda: Path("file").read_text() == "host was here\n", 3),
            wait_until(lambda: os.path.exists("new"), 3),
            wait_until(lambda: not os.path.lexists("link"), 3),
        ]

    pid = os.fork()
    if not pid:
        wait_until((source / "ready").exists, 10)
        (source / "file").write_text("host was here\n")
        (source / "new").touch()
        (source / "link").unlink()
        (source / "changed").touch()
        os._exit(0)
    waited = mount.run(inside)
    os.waitpid(pid, 0)

    assert sum(waited) < 1.5


def test_a_file_replaced_on_the_host_is_the_new_one(mount: Mounted, source: Path) -> None:
    """After a rename over it on the host, the name leads to the new file, the open one stays."""

    def replace_it() -> None:
        (source / "other").write_text("replaced\n")
        os.rename(source / "other", source / "file")

    def inside() -> tuple[str, str]:
        with open(mount.path / "file") as file:
            (mount.path / "go").touch()
            wait_until((mount.path / "done").exists, 5)
            time.sleep(1.1)
            return file.read(), (mount.path / "file").read_text()

    pid = os.fork()
    if not pid:
        wait_until((source / "go").exists, 10)
        replace_it()
        (source / "done").touch()
        os._exit(0)
    result = mount.run(inside)
    os.waitpid(pid, 0)

    assert ("content\n", "replaced\n") == result


def test_many_files_with_few_descriptors(serve: Serve, many_files: Path) -> None:
    """30,000 files are walked, opened and removed while the server has 100 descriptors.

    With file handles (root) as by path (an ordinary user).
    """
    by_root = serve(HostfsOptions(), Rights(most_descriptors=100), many_files)
    by_user = serve(
        HostfsOptions(uid_map=OWN, gid_map=OWN), Rights(1001, 1001, (), 100), many_files
    )

    def walk(mount: Mounted, victim: str) -> tuple[int, int, int]:
        os.chdir(mount.path)
        held = [os.open(f"{number:03}", os.O_PATH) for number in range(300)]
        found = sum(len(files) for _, _, files in os.walk("."))
        for fd in held:
            os.stat("42", dir_fd=fd)
            os.close(os.open("17", os.O_RDONLY, dir_fd=fd))
        for number in range(0, 300, 10):
            os.unlink(f"{number:03}/{victim}")
        return found, len(held), len(os.listdir("000"))

    assert (30_000, 300, 99) == by_root.run(lambda: walk(by_root, "50"))
    assert (29_970, 300, 98) == by_user.run(lambda: walk(by_user, "60"))


def test_a_directory_moved_on_the_host_is_found_by_its_handle(serve: Serve, source: Path) -> None:
    """A working directory stays right when the host renames it and its descriptor was given up."""
    for number in range(100):
        (source / f"other{number}").mkdir()
    mount = serve(HostfsOptions(), Rights(most_descriptors=80))

    def inside() -> list[str]:
        os.chdir(mount.path / "directory")
        for number in range(100):
            os.path.exists(mount.path / f"other{number}" / "nothing")
        (mount.path / "go").touch()
        wait_until((mount.path / "done").exists, 5)
        time.sleep(1.1)
        return os.listdir(".")

    pid = os.fork()
    if not pid:
        wait_until((source / "go").exists, 10)
        os.rename(source / "directory", source / "elsewhere")
        (source / "done").touch()
        os._exit(0)
    result = mount.run(inside)
    os.waitpid(pid, 0)

    assert ["inner"] == result


def test_file_systems_below_the_source_are_told_apart(area: Path) -> None:
    """Files of several devices and of a bind mount have numbers of their own."""
    path = area / "mount"
    path.mkdir()
    mount = Mounted(path, HostfsOptions(source="/"))

    def inside() -> tuple[bool, set[str]]:
        os.chdir(path)
        names = ["etc/hostname", "etc/passwd", "usr/bin/env", "proc", "sys", "dev", "usr", "."]
        numbers = {os.lstat(name).st_ino for name in names}
        return len(numbers) == len(names), {*os.listdir("proc"), *os.listdir("sys"),
                                            *os.listdir("dev")}  # fmt: skip

    try:
        assert (True, set()) == mount.run(inside)
    finally:
        mount.close()


def test_bind_mounts_of_the_host_are_directories_of_their_own(area: Path, source: Path) -> None:
    """A directory seen through a second mount, even the root in itself, is a second directory."""
    path = area / "mount"
    path.mkdir()
    for name in ("memory", "again", "loop"):
        (source / name).mkdir()

    def with_binds() -> tuple[list[str], list[str], int, str]:
        unshare(CLONE_NEWNS)
        mounts.make_private()
        mount_call("none", str(source / "memory"), "tmpfs", 0)
        (source / "memory" / "file").write_text("in memory")
        mount_call(str(source / "directory"), str(source / "again"), None, MS_BIND)
        mount_call(str(source), str(source / "loop"), None, MS_BIND)
        mount = Mounted(path, HostfsOptions(source=str(source)))
        try:
            return mount.run(look)
        finally:
            mount.close()

    def look() -> tuple[list[str], list[str], int, str]:
        os.chdir(path)
        names = ["directory", "again", "loop", "loop/directory", "memory", "."]
        numbers = {os.stat(name).st_ino for name in names}
        os.chdir("loop/directory")
        Path("new").write_text("x")
        text = (path / "memory" / "file").read_text()
        here = sorted(os.listdir(path / "again"))
        return here, sorted(os.listdir(path / "loop")), len(numbers), os.getcwd() + " " + text

    again, loop, different, where = run_forked(with_binds)

    assert (["inner", "new"], 6) == (again, different)
    assert ["again", "directory", "file", "link", "loop", "memory"] == loop
    assert f"{path}/loop/directory in memory" == where


def test_a_killed_server_is_an_error_and_no_hang(mount: Mounted) -> None:
    """When the server is killed every access fails at once, also by who has a file open."""
    server = mount.server_pid

    def inside() -> list[int]:
        fd = os.open(mount.path / "file", os.O_RDONLY)
        os.kill(server, signal.SIGKILL)
        errors = []
        for attempt in (
            lambda: os.stat(mount.path / "unseen"),
            lambda: os.listdir(mount.path),
            lambda: os.pread(fd, 10, 0),
        ):
            try:
                attempt()
            except OSError as error:
                errors.append(error.errno or 0)
        return errors

    started = time.monotonic()
    errors = mount.run(inside)

    assert {errno.ENOTCONN, errno.ECONNABORTED} >= set(errors)
    assert (3, True) == (len(errors), time.monotonic() - started < 2)
    assert -signal.SIGKILL == mount.wait_server()


def test_the_server_ends_with_the_mount(mount: Mounted) -> None:
    """When the last process of the namespace is gone the server ends by itself, soon."""
    mount.run(lambda: os.listdir(mount.path))
    mount.release_holder()
    started = time.monotonic()

    assert 0 == mount.wait_server()
    assert time.monotonic() - started < 0.5


def test_the_server_ends_with_the_manager(mount: Mounted) -> None:
    """When the manager is gone the server ends, and the mount answers with an error."""
    mount.hang_up()
    status = mount.wait_server()

    with pytest.raises(OSError, match=r"not connected|abort"):
        mount.run(lambda: os.listdir(mount.path))
    assert 0 == status


def test_the_keyboards_signals_do_not_end_it(mount: Mounted) -> None:
    """Ctrl-C reaches the whole foreground group: the server goes on serving."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        os.kill(mount.server_pid, number)

    assert 3 == len(mount.run(lambda: os.listdir(mount.path)))
