"""The FUSE server's tables and pure parts, without a mount."""

from __future__ import annotations

import asyncio
import errno
import inspect
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest

from launcher.hostfs.attributes import translated_acl
from launcher.hostfs.guard import guarded
from launcher.hostfs.identity import Identity
from launcher.hostfs.inodes import ROOT, InodeTable, Node
from launcher.hostfs.options import HostfsOptions, Mountpoint
from launcher.hostfs.status import status_at, status_of
from launcher.hostfs.synthetic import FIRST_NUMBER, SyntheticTree
from nsstages.idmap import IDENTITY, IdRange
from nsstages.trace import Recorder, create_sink, read_sink

MAPPED = (IdRange(0, 100000, 65536),)


@pytest.fixture
def table(tmp_path: Path) -> Iterator[InodeTable]:
    """A table over an empty directory that holds at most 32 descriptors."""
    table = InodeTable(str(tmp_path), capacity=32)
    yield table
    table.close()


def found(table: InodeTable, parent: Node, name: str) -> Node:
    """Look ``name`` up as a LOOKUP request does."""
    status = status_at(table.descriptor(parent), name.encode())
    node = table.identify(parent, name.encode(), status)
    table.remember(node)
    return node


def test_status_agrees_with_stat(tmp_path: Path) -> None:
    """statx gives what os.stat gives, for descriptors and for names."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 5000)
    expected = path.stat()
    directory_fd = os.open(tmp_path, os.O_PATH)
    status = status_at(directory_fd, b"file")
    os.close(directory_fd)
    with path.open() as file:
        same = status_of(file.fileno())

    assert status == same
    assert (
        expected.st_mode, expected.st_nlink, expected.st_uid, expected.st_size,
        expected.st_blocks, expected.st_mtime_ns, expected.st_ctime_ns, expected.st_ino,
        expected.st_dev,
    ) == (
        status.mode, status.nlink, status.uid, status.size, status.blocks, status.mtime_ns,
        status.ctime_ns, status.key.inode, status.key.device,
    )  # fmt: skip


def test_links_are_one_node_with_the_hosts_number(table: InodeTable, tmp_path: Path) -> None:
    """Two names of a file are one node; its number is the host's inode number."""
    (tmp_path / "one").touch()
    os.link(tmp_path / "one", tmp_path / "two")

    one, two = found(table, table.root, "one"), found(table, table.root, "two")

    assert one is two
    assert (tmp_path / "one").stat().st_ino == one.number
    assert 2 == one.lookups


def test_a_node_leaves_with_its_last_look_up(table: InodeTable, tmp_path: Path) -> None:
    """forget takes back exactly what was counted; the root and strangers are left alone."""
    (tmp_path / "file").touch()
    node = found(table, table.root, "file")
    found(table, table.root, "file")

    table.forget(node.number, 1)
    assert table.find(node.number) is node
    table.forget(node.number, 1)
    table.forget(ROOT, 100)
    table.forget(12345678, 1)

    with pytest.raises(OSError, match="unknown inode") as caught:
        table.find(node.number)
    assert errno.ESTALE == caught.value.errno
    assert table.find(ROOT) is table.root
    assert 1 == len(table)


def test_descriptors_are_bounded_and_come_back(table: InodeTable, tmp_path: Path) -> None:
    """300 files are reached again and again with 32 descriptors, after renames too."""
    for number in range(300):
        (tmp_path / str(number)).write_text(str(number))
    before = len(os.listdir("/proc/self/fd"))
    nodes = [found(table, table.root, str(number)) for number in range(300)]
    for node in nodes:
        table.descriptor(node)
    (tmp_path / "7").rename(tmp_path / "seven")

    sizes = [os.fstat(table.descriptor(node)).st_size for node in nodes]

    assert [len(str(number)) for number in range(300)] == sizes
    assert len(os.listdir("/proc/self/fd")) - before <= 32 + 1


def test_another_file_of_the_same_name_is_stale(table: InodeTable, tmp_path: Path) -> None:
    """A node without descriptor is not mistaken for the file that took its name."""
    (tmp_path / "file").touch()
    node = found(table, table.root, "file")
    (tmp_path / "keep").touch()
    (tmp_path / "keep").rename(tmp_path / "file")

    with pytest.raises(OSError, match="another file") as caught:
        table.descriptor(node)
    assert errno.ESTALE == caught.value.errno


def test_exhausted_descriptors_are_given_up(table: InodeTable, tmp_path: Path) -> None:
    """open succeeds although the process is at its limit, at the cost of idle descriptors."""
    (tmp_path / "file").touch()
    for number in range(30):
        (tmp_path / str(number)).touch()
        table.descriptor(found(table, table.root, str(number)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 2, limits[1]))
    try:
        while True:
            fillers.append(os.open("/", os.O_PATH))
    except OSError:
        fillers.append(table.open("file", os.O_RDONLY, dir_fd=table.root.fd))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    opened = os.fstat(fillers[-1])
    for filler in fillers:
        os.close(filler)

    assert (tmp_path / "file").stat().st_ino == opened.st_ino


def test_deep_trees_are_reached_without_recursion(
    table: InodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By path, as for an ordinary user, a file is reached however far up the next descriptor is."""
    monkeypatch.setattr(table.handles, "take", lambda *_: None)
    nodes = [table.root]
    for _ in range(200):
        os.mkdir("d", dir_fd=table.descriptor(nodes[-1]))
        nodes.append(found(table, nodes[-1], "d"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        keys = [status_of(table.descriptor(node)).key for node in (nodes[150], nodes[100])]
    finally:
        sys.setrecursionlimit(limit)

    assert [nodes[150].key, nodes[100].key] == keys


def test_synthetic_numbers_never_meet_the_hosts(table: InodeTable) -> None:
    """Host numbers stay below the synthetic ones."""
    assert table._extra < FIRST_NUMBER


def test_mount_points_make_a_tree() -> None:
    """Ways to mount points give way to host directories, mount points do not; "/" adds its own."""
    tree = SyntheticTree(
        HostfsOptions(
            mountpoints=(
                Mountpoint("/run/deep/socket", is_directory=False),
                Mountpoint("/run", is_directory=True),
            ),
            vessel=b"v",
        )
    )
    run = tree.overlay[b"run"]
    deep = run.children[b"deep"]

    assert [b"proc", b"sys", b"dev", b"run", b".launcher"] == list(tree.overlay)
    assert (True, False, True) == (run.fixed, deep.fixed, deep.children[b"socket"].fixed)
    assert (True, False) == (deep.is_directory, deep.children[b"socket"].is_directory)
    assert tree.find(deep.number) is deep


def test_ids_are_translated() -> None:
    """Inside and outside ids by the maps; what has no id inside is 65534."""
    identity = Identity(MAPPED, MAPPED)

    assert (5, 65534) == (identity.inside_uid(100005), identity.inside_gid(0))
    assert (100005, 65534) == (identity.outside_uid(5), identity.outside_gid(70000))
    assert not identity.is_plain
    assert Identity(IDENTITY, IDENTITY).is_plain


def test_acls_are_translated_for_users_and_groups_only() -> None:
    """Named users and groups of an ACL get outside ids; the other entries are untouched."""
    entries = [(1, 7, 0xFFFFFFFF), (2, 4, 5), (8, 4, 6), (16, 7, 0xFFFFFFFF)]

    def value(uid: int, gid: int) -> bytes:
        ids = {2: uid, 8: gid}
        return b"\2\0\0\0" + b"".join(
            tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
            + ids.get(tag, number).to_bytes(4, "little")
            for tag, permissions, number in entries
        )  # fmt: skip

    identity = Identity(MAPPED, MAPPED)

    assert value(100005, 100006) == translated_acl(value(5, 6), identity, to_host=True)
    assert value(5, 6) == translated_acl(value(100005, 100006), identity, to_host=False)


@guarded
class Broken(pyfuse3.Operations):
    """Handlers that fail in every way."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Raise what the number asks for."""
        del ctx
        raise [OSError(errno.EDQUOT, "x"), OSError(errno.ENOSYS, "x"), ValueError("bug")][inode]


@pytest.mark.parametrize(
    ("case", "expected"), [(0, errno.EDQUOT), (1, errno.EOPNOTSUPP), (2, errno.EIO)]
)
def test_no_exception_leaves_a_handler(case: int, expected: int) -> None:
    """An OSError becomes its errno (never ENOSYS), a bug becomes EIO and a trace event."""
    sink = create_sink()
    broken = Broken(Recorder("fuse", sink))

    with pytest.raises(pyfuse3.FUSEError) as caught:
        asyncio.run(broken.getattr(case, None))  # type: ignore[arg-type]
    events = read_sink(sink)
    os.close(sink)

    assert expected == caught.value.errno
    assert [("fuse.error", "getattr")] * (case == 2) == [
        (e["kind"], e["operation"]) for e in events
    ]
