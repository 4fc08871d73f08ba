"""statx(2) of host files: attributes together with the mount and birth time that identify them.

A device and inode number alone do not: one directory can be reached through two mounts (a bind
mount), and a deleted file's number is given to a new one.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from typing import Final, NamedTuple

from nsstages.syscalls import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, Call, execute

_AT_NO_AUTOMOUNT: Final = 0x800
_STATX_ALL_AND_MNT_ID: Final = 0x1FFF  # STATX_MNT_ID: Linux 5.8
_FLAGS: Final = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
_NANOSECONDS: Final = 1_000_000_000

# struct statx of linux/stat.h: stx_mask to stx_mnt_id; each time is seconds, nanoseconds, padding
_LAYOUT: Final = struct.Struct("=4xI8xIIIH2xQQQ8x" + "qI4x" * 4 + "IIIIQ")
_buffer: Final = ctypes.create_string_buffer(256)
_ADDRESS: Final = ctypes.addressof(_buffer)


class FileKey(NamedTuple):
    """What makes a host file the same file: seen through one mount, with one life."""

    mount: int
    device: int
    inode: int
    birth_ns: int
    kind: int

    @property
    def is_directory(self) -> bool:
        """Tell whether this is a directory."""
        return self.kind == stat.S_IFDIR


class Status(NamedTuple):
    """The attributes of one host file; times in nanoseconds since the epoch."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    blocks: int
    blksize: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    key: FileKey


def status_at(dir_fd: int, name: bytes) -> Status:
    """Return the status of ``name`` in ``dir_fd``, not following a symlink; raises OSError.

    Called by the server's only thread that looks at host files: the result buffer is shared.
    """
    execute(Call("statx", (dir_fd, name, _FLAGS, _STATX_ALL_AND_MNT_ID, _ADDRESS)))
    (
        blksize, nlink, uid, gid, mode, inode, size, blocks,
        atime, atime_ns, btime, btime_ns, ctime, ctime_ns, mtime, mtime_ns,
        rdev_major, rdev_minor, dev_major, dev_minor, mount,
    ) = _LAYOUT.unpack_from(_buffer)  # fmt: skip
    device = os.makedev(dev_major, dev_minor)
    key = FileKey(mount, device, inode, btime * _NANOSECONDS + btime_ns, stat.S_IFMT(mode))
    return Status(
        mode, nlink, uid, gid, size, blocks, blksize, os.makedev(rdev_major, rdev_minor),
        atime * _NANOSECONDS + atime_ns, mtime * _NANOSECONDS + mtime_ns,
        ctime * _NANOSECONDS + ctime_ns, key,
    )  # fmt: skip


def status_of(fd: int) -> Status:
    """Return the status of an open descriptor, O_PATH ones included."""
    return status_at(fd, b"")
