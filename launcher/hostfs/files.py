"""Files and directories that clients have open."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from launcher.hostfs.inodes import InodeTable, Node
from launcher.hostfs.status import Status, status_of
from launcher.hostfs.synthetic import Entry

# What of open(2)'s flags means something to the host. Not O_NOFOLLOW (we open a /proc symlink), not
# O_DIRECT (our buffers are not aligned), not O_APPEND (see OpenFiles.write).
_HOST_FLAGS: Final = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME
_CREATE_FLAGS: Final = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class OpenFile:
    """One open regular file of the host."""

    node: Node
    is_append: bool


@dataclass(slots=True)
class OpenDirectory:
    """One open directory: a host one (``node``, ``fd``) or a synthetic one (``entry``).

    ``names`` is taken when a listing starts, so that offsets into it stay valid while the
    directory changes.
    """

    node: Node | None = None
    fd: int = -1
    entry: Entry | None = None
    names: list[bytes] = field(default_factory=list)


class OpenFiles:
    """Open files by descriptor number, which is also the file handle that the kernel gets."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._files: dict[int, OpenFile] = {}

    def open(self, node: Node, flags: int) -> tuple[int, bool]:
        """Open a node; return the handle and whether the kernel's cached pages are still right."""
        node_fd = self._inodes.descriptor(node)
        fd = self._inodes.open(f"/proc/self/fd/{node_fd}", flags & _HOST_FLAGS, dir_fd=None)
        status = status_of(fd)
        is_same = self.add(fd, node, flags, status)
        return fd, is_same

    def create(self, directory_fd: int, name: bytes, mode: int, flags: int) -> tuple[int, Status]:
        """Create and open ``name``; the caller adds it once it has the node."""
        host_flags = flags & (_HOST_FLAGS | os.O_EXCL) | _CREATE_FLAGS
        fd = self._inodes.open(name, host_flags, stat.S_IMODE(mode), dir_fd=directory_fd)
        status = status_of(fd)
        if not stat.S_ISREG(status.mode):
            os.close(fd)
            raise OSError(errno.ESTALE, "not a regular file any more", name)
        return fd, status

    def add(self, fd: int, node: Node, flags: int, status: Status) -> bool:
        """Take over an opened descriptor; return whether the file is as it was last opened."""
        version = (status.mtime_ns, status.ctime_ns, status.size)
        is_same = node.version == version
        node.version = version
        if flags & os.O_TRUNC:
            node.known_size = 0
        node.open_fds.append(fd)
        self._files[fd] = OpenFile(node, bool(flags & os.O_APPEND))
        return is_same

    def write(self, fd: int, offset: int, data: bytes) -> int:
        """Write for a client; return the number of bytes written.

        A client's append comes with the file size that its kernel knows, and the host may have
        appended since: that must append on the host too. But pages of a shared mapping are written
        back through any open file, also one with O_APPEND, and those have their place. The two
        are told apart by the size that the kernel was told.
        """
        file = self._files[fd]
        if file.is_append and offset >= file.node.known_size:
            written = os.pwritev(fd, [data], offset, os.RWF_APPEND)
        else:
            written = os.pwrite(fd, data, offset)
        file.node.known_size = max(file.node.known_size, offset + written)
        return written

    def release(self, fd: int) -> None:
        """Close an open file."""
        self._files.pop(fd).node.open_fds.remove(fd)
        os.close(fd)


class OpenDirectories:
    """Open directories by handle."""

    def __init__(self, inodes: InodeTable) -> None:
        self._inodes = inodes
        self._directories: dict[int, OpenDirectory] = {}
        self._last_handle = 0

    def open(self, node: Node) -> int:
        """Open a host directory; return its handle."""
        node_fd = self._inodes.descriptor(node)
        fd = self._inodes.open(
            f"/proc/self/fd/{node_fd}", os.O_RDONLY | os.O_DIRECTORY, dir_fd=None
        )
        node.open_fds.append(fd)
        return self._add(OpenDirectory(node=node, fd=fd))

    def open_entry(self, entry: Entry) -> int:
        """Open a synthetic directory; return its handle."""
        return self._add(OpenDirectory(entry=entry))

    def _add(self, directory: OpenDirectory) -> int:
        self._last_handle += 1
        self._directories[self._last_handle] = directory
        return self._last_handle

    def get(self, handle: int) -> OpenDirectory:
        """Return an open directory."""
        return self._directories[handle]

    def release(self, handle: int) -> None:
        """Close an open directory."""
        directory = self._directories.pop(handle)
        if directory.node is not None:
            directory.node.open_fds.remove(directory.fd)
            os.close(directory.fd)


def drop_set_ids(fd: int) -> None:
    """Take the set-id bits off a file that a caller without CAP_FSETID truncated by opening it.

    The kernel does that itself for every other change; this one it leaves to the server, for
    which its own kernel does not, since it may keep them.
    """
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    lost = mode & stat.S_ISUID
    if mode & stat.S_IXGRP:
        lost |= mode & stat.S_ISGID
    if lost:
        os.fchmod(fd, mode & ~lost)


def host_names(fd: int, overlay: Iterable[bytes]) -> list[bytes]:
    """Return the names in a host directory and those laid over it, each once."""
    names = [os.fsencode(name) for name in os.listdir(fd)]
    present = set(names) if overlay else ()
    return names + [name for name in overlay if name not in present]
