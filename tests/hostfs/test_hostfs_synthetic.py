"""Files that exist only in the mount."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from launcher.hostfs.options import HostfsOptions, Mountpoint
from nsstages.syscalls import MS_BIND, mount
from tests import needs
from tests.hostfs.conftest import Serve
from tests.hostfs.mounted import errno_of

pytestmark = [needs.root, needs.fuse]

MOUNTPOINTS = (
    Mountpoint("/c", is_directory=True),
    Mountpoint("/directory/hosts", is_directory=False),
    Mountpoint("/directory/inner", is_directory=False),
    Mountpoint("/absent/deep/run", is_directory=True),
)


@pytest.fixture
def container(area: Path) -> Iterator[tuple[int, Path]]:
    """The root of a container that has only dangling, absolute links to its one program."""
    root = area / "container"
    (root / "bin").mkdir(parents=True)
    (root / "opt" / "bin").mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(b"\x7fELF")
    (root / "bin" / "busybox").chmod(0o755)
    (root / "bin" / "udhcpc-of-test").symlink_to("/bin/busybox")
    (root / "bin" / "dangling").symlink_to("/nowhere")
    (root / "bin" / "escape").symlink_to("../../../../../../bin/sh")
    (root / "bin" / "notes").write_text("no program")
    (root / "bin" / "subdirectory").mkdir()
    (root / "opt" / "bin" / "tool").symlink_to("../../bin/busybox")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield fd, root
    os.close(fd)


def test_mount_points_exist_though_the_host_lacks_them(serve: Serve, source: Path) -> None:
    """Mount points and the directories on their way are there, listed, and not on the host."""
    (source / "directory" / "host's").touch()
    mounted = serve(HostfsOptions(mountpoints=MOUNTPOINTS))

    def inside() -> list[object]:
        os.chdir(mounted.path)
        return [
            sorted(os.listdir(".")),
            sorted(os.listdir("directory")),
            os.listdir("absent"),
            os.listdir("absent/deep/run"),
            os.stat("directory/hosts").st_size,
            Path("directory/inner").read_text(),
            stat.S_ISDIR(os.stat("c").st_mode),
        ]

    below = ["host's", "hosts", "inner"]
    expected = [["absent", "c", "directory", "file", "link"], below, ["deep"], [], 0, "", True]
    assert expected == mounted.run(inside)
    assert ["directory", "file", "link"] == sorted(os.listdir(source))


def test_mounts_on_mount_points_stay(serve: Serve, source: Path) -> None:
    """What is mounted on a mount point stays when the host replaces that file and its directory."""
    mounted = serve(HostfsOptions(mountpoints=MOUNTPOINTS))

    def inside() -> tuple[str, str]:
        (mounted.path / "bound").write_text("bound")
        target = mounted.path / "directory" / "hosts"
        mount(str(mounted.path / "bound"), str(target), None, MS_BIND)
        before = target.read_text()
        (mounted.path / "go").touch()
        while not (mounted.path / "replaced").exists():
            time.sleep(0.02)
        time.sleep(1.2)
        os.listdir(mounted.path)
        return before, target.read_text()

    pid = os.fork()
    if not pid:
        while not (source / "go").exists():
            time.sleep(0.01)
        (source / "directory" / "new").write_text("host's")
        os.rename(source / "directory" / "new", source / "directory" / "hosts")
        os.rename(source / "directory", source / "old")
        (source / "directory").mkdir()
        (source / "replaced").touch()
        os._exit(0)
    result = mounted.run(inside)
    os.waitpid(pid, 0)

    assert ("bound", "bound") == result


def test_synthetic_files_cannot_be_changed(serve: Serve) -> None:
    """No client can remove, replace, write or rename them, or make files beside them."""
    mounted = serve(HostfsOptions(mountpoints=MOUNTPOINTS, vessel=b"vessel"))

    def inside() -> list[int]:
        os.chdir(mounted.path)
        attempts: list[Callable[[], object]] = [
            lambda: os.rmdir("c"),
            lambda: os.rename("c", "d"),
            lambda: os.rename("file", "directory/hosts"),
            lambda: os.unlink("directory/hosts"),
            lambda: os.rename("directory", "other"),
            lambda: os.open(".launcher/vessel", os.O_WRONLY),
            lambda: os.chmod(".launcher/vessel", 0o777),
            lambda: os.truncate(".launcher/vessel", 0),
            lambda: os.unlink(".launcher/vessel"),
            lambda: os.mkdir("c/new"),
            lambda: os.setxattr("c", "user.x", b""),
        ]
        return [errno_of(attempt) for attempt in attempts]

    assert [errno.EBUSY] * 5 + [errno.EROFS] * 6 == mounted.run(inside)


def test_the_vessel_is_set_user_id_root(serve: Serve) -> None:
    """/.launcher/vessel has mode 4755, belongs to root, holds the given bytes, and runs."""
    content = Path("/bin/true").read_bytes()
    mounted = serve(HostfsOptions(vessel=content))

    def inside() -> tuple[int, int, int, bool, list[str]]:
        path = mounted.path / ".launcher" / "vessel"
        status = path.stat()
        is_same = path.read_bytes() == content
        return status.st_mode, status.st_uid, status.st_gid, is_same, os.listdir(path.parent)

    assert (0o104755, 0, 0, True, ["vessel"]) == mounted.run(inside)
    assert 0 == mounted.command("./.launcher/vessel").status


def test_no_launcher_directory_without_need(serve: Serve) -> None:
    """Without a vessel and a container there is no /.launcher."""
    mounted = serve()

    assert not mounted.run((mounted.path / ".launcher").exists)


def test_the_containers_programs_are_listed(serve: Serve, container: tuple[int, Path]) -> None:
    """/.launcher/bin has one file per program, absolute links resolved in the container's root."""
    fd, _ = container
    options = HostfsOptions(
        container_root_fd=fd, container_path=("/bin", "/opt/bin", "/none"), program=b"#!/p\n"
    )
    mounted = serve(options)

    def inside() -> tuple[list[str], int, str, list[int]]:
        os.chdir(mounted.path / ".launcher" / "bin")
        missing = [errno_of(partial(os.stat, name)) for name in ("dangling", "notes", "absent")]
        names = sorted(os.listdir("."))
        status = os.stat("udhcpc-of-test")
        return names, status.st_mode, Path("tool").read_text(), missing

    expected = (["busybox", "tool", "udhcpc-of-test"], 0o100755, "#!/p\n", [errno.ENOENT] * 3)
    assert expected == mounted.run(inside)


def test_new_programs_of_the_container_appear(serve: Serve, container: tuple[int, Path]) -> None:
    """A program installed in the container later is there, one removed is gone."""
    fd, root = container
    mounted = serve(HostfsOptions(container_root_fd=fd, container_path=("/bin",), program=b"x"))
    directory = mounted.path / ".launcher" / "bin"
    before = mounted.run(lambda: sorted(os.listdir(directory)))
    (root / "bin" / "added").symlink_to("busybox")
    os.unlink(root / "bin" / "udhcpc-of-test")
    time.sleep(1.1)

    after = mounted.run(lambda: sorted(os.listdir(directory)))

    assert (["busybox", "udhcpc-of-test"], ["added", "busybox"]) == (before, after)
    assert not mounted.run((directory / "udhcpc-of-test").exists)
