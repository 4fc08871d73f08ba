"""Whose rights count, and how owners look through user namespace maps."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from launcher.hostfs.options import HostfsOptions
from nsstages.idmap import IdRange
from tests import needs
from tests.hostfs.conftest import Serve
from tests.hostfs.mounted import Mounted, Rights, errno_of

pytestmark = [needs.root, needs.fuse]

MAPPED = (IdRange(0, 100000, 65536),)
OWN = (IdRange(0, 1001, 1), IdRange(1, 200000, 65536))
USER = Rights(1001, 1001)


def owner(path: Path) -> tuple[int, int]:
    """Return uid and gid of a file."""
    status = path.lstat()
    return status.st_uid, status.st_gid


def test_what_is_made_belongs_to_the_caller(mount: Mounted, source: Path) -> None:
    """Every kind of file gets the ids of the process that makes it, not the server's."""
    os.chmod(source, 0o777)

    def inside() -> None:
        os.chdir(mount.path)
        Path("made-file").write_text("x")
        os.mkdir("made-directory")
        os.symlink("x", "made-link")
        os.mkfifo("made-fifo")

    mount.run(inside, Rights(1234, 2345))
    mount.run(lambda: Path(mount.path, "made-by-root").touch())

    made = ["made-file", "made-directory", "made-link", "made-fifo"]
    assert [(1234, 2345)] * 4 == [owner(source / name) for name in made]
    assert (0, 0) == owner(source / "made-by-root")


def test_supplementary_groups_count(mount: Mounted, source: Path) -> None:
    """A member of a directory's group may create there, a stranger may not."""
    os.chown(source / "directory", 0, 4321)
    os.chmod(source / "directory", 0o2770)
    create = (mount.path / "directory" / "new").touch

    mount.run(create, Rights(1000, 1000, (4321,)))
    other = (mount.path / "directory" / "other").touch
    stranger = errno_of(lambda: mount.run(other, Rights(1001, 1001)))

    assert (1000, 4321) == owner(source / "directory" / "new")
    assert errno.EACCES == stranger


def test_permissions_are_checked(mount: Mounted, source: Path) -> None:
    """An ordinary user inside cannot read, write or search what the host's modes forbid."""
    os.chmod(source / "file", 0o600)
    os.chmod(source / "directory", 0o700)

    def inside() -> list[bool]:
        return [
            os.access(mount.path / "file", os.R_OK),
            os.access(mount.path / "directory" / "inner", os.F_OK),
            os.access(mount.path, os.W_OK),
        ]

    assert [False, False, False] == mount.run(inside, Rights(1000, 1000))


def test_ids_are_translated_both_ways(serve: Serve, source: Path) -> None:
    """With a map at 100000 the host's owner 100005 is 5 inside, and what 5 makes is 100005's."""
    mount = serve(HostfsOptions(uid_map=MAPPED, gid_map=MAPPED))
    os.chown(source / "file", 100005, 100006)
    os.chown(source / "directory", 100000, 100000)
    os.chmod(source / "directory", 0o777)

    def inside() -> tuple[tuple[int, int], tuple[int, int]]:
        (mount.path / "directory" / "by-user").touch()
        return owner(mount.path / "file"), owner(mount.path / "link")

    def as_root_inside() -> None:
        os.chown(mount.path / "file", 7, 8)
        (mount.path / "directory" / "by-root").touch()

    assert ((5, 6), (65534, 65534)) == mount.run(inside, Rights(5, 6))
    mount.run(as_root_inside)
    assert (100005, 100006) == owner(source / "directory" / "by-user")
    assert (100000, 100000) == owner(source / "directory" / "by-root")
    assert (100007, 100008) == owner(source / "file")


def test_the_host_counts_supplementary_groups(serve: Serve, source: Path) -> None:
    """Where the host decides, because a directory's owner has no id inside, groups count too."""
    mount = serve(HostfsOptions(uid_map=MAPPED, gid_map=MAPPED))
    os.chown(source / "directory", 0, 104321)
    os.chmod(source / "directory", 0o770)
    create = (mount.path / "directory" / "new").touch

    assert errno.EACCES == errno_of(lambda: mount.run(create, Rights(5, 6)))
    mount.run(create, Rights(5, 6, (4321,)))

    assert (100005, 100006) == owner(source / "directory" / "new")


def test_root_of_a_user_namespace_is_not_root_of_the_host(serve: Serve, source: Path) -> None:
    """Files whose owner has no id inside are guarded by the host: root inside is a stranger."""
    mount = serve(HostfsOptions(uid_map=MAPPED, gid_map=MAPPED))
    os.chmod(source / "file", 0o600)
    os.chmod(source / "directory", 0o700)
    (source / "mine").write_text("mine")
    os.chown(source / "mine", 100000, 100000)

    def errors() -> list[int]:
        os.chdir(mount.path)
        attempts: list[Callable[[], object]] = [
            lambda: Path("file").read_text(),
            lambda: os.chmod("file", 0o666),
            lambda: os.unlink("file"),
            lambda: os.rename("file", "other"),
            lambda: Path("new").touch(),
            lambda: os.listdir("directory"),
            lambda: Path("directory/inner").read_text(),
            lambda: os.setxattr("mine", "security.capability", bytes([1, 0, 0, 2, *[0] * 16])),
        ]
        return [errno_of(attempt) for attempt in attempts]

    refused = mount.run(errors)

    assert set(refused) <= {errno.EACCES, errno.EPERM}, refused
    assert stat.S_IMODE((source / "file").stat().st_mode) == 0o600
    assert [] == os.listxattr(source / "mine")


def test_root_of_a_user_namespace_rules_its_own_files(serve: Serve, source: Path) -> None:
    """Root inside may do to the namespace's files what root may, whoever inside owns them."""
    mount = serve(HostfsOptions(uid_map=MAPPED, gid_map=MAPPED))
    os.chown(source / "directory", 100005, 100005)
    os.chmod(source / "directory", 0o700)
    os.chown(source / "directory" / "inner", 100005, 100005)
    os.chmod(source / "directory" / "inner", 0o600)

    def inside() -> str:
        os.chdir(mount.path / "directory")
        Path("new").write_text("x")
        os.chmod("inner", 0o640)
        return Path("inner").read_text()

    assert "inner\n" == mount.run(inside)
    assert (100000, 100000) == owner(source / "directory" / "new")


def test_an_ordinary_user_serves_what_it_may(serve: Serve, source: Path) -> None:
    """Served by an ordinary user to its own user namespace: its files are root's inside."""
    for path in (source, source / "file", source / "directory", source / "directory" / "inner"):
        os.chown(path, 1001, 1001)
    (source / "secret").write_text("s")
    os.chmod(source / "secret", 0o600)
    mount = serve(HostfsOptions(uid_map=OWN, gid_map=OWN), USER)

    def inside() -> tuple[tuple[int, int], int]:
        os.chdir(mount.path)
        Path("directory/new").write_text("x")
        os.rename("file", "moved")
        os.chmod("moved", 0o640)
        refused = errno_of(Path("secret").read_text)
        return owner(Path("moved")), refused

    assert ((0, 0), errno.EACCES) == mount.run(inside)
    assert (1001, 1001) == owner(source / "directory" / "new")
    assert 0o640 == stat.S_IMODE((source / "moved").stat().st_mode)
