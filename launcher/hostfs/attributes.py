"""Attributes in both directions: host status to reply, SETATTR request to system calls."""

from __future__ import annotations

import os
import stat
import struct
import time
from typing import Final

import pyfuse3

from launcher.hostfs.identity import Identity
from launcher.hostfs.status import Status
from launcher.hostfs.synthetic import Entry
from nsstages.syscalls import AT_FDCWD, Call, execute

REAL_TIMEOUT: Final = 1.0
FOREVER: Final = 1e9  # seconds; the kernel clamps what it cannot count
_UTIME_OMIT: Final = (1 << 30) - 2
_NANOSECONDS: Final = 1_000_000_000
_STARTED_NS: Final = time.time_ns()
_ACL_HEADER: Final = struct.Struct("<I")
_ACL_ENTRY: Final = struct.Struct("<HHI")
_ACL_USER: Final = 0x02
_ACL_GROUP: Final = 0x08
ACL_NAMES: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


def reply_of(number: int, status: Status, identity: Identity) -> pyfuse3.EntryAttributes:
    """Return the reply for a host file, ids as they are inside, valid for REAL_TIMEOUT."""
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = number
    reply.entry_timeout = reply.attr_timeout = REAL_TIMEOUT
    reply.st_mode = status.mode
    reply.st_nlink = status.nlink
    reply.st_uid = identity.inside_uid(status.uid)
    reply.st_gid = identity.inside_gid(status.gid)
    reply.st_rdev = status.rdev
    reply.st_size = status.size
    reply.st_blocks = status.blocks
    reply.st_blksize = status.blksize
    reply.st_atime_ns = status.atime_ns
    reply.st_mtime_ns = status.mtime_ns
    reply.st_ctime_ns = status.ctime_ns
    return reply


def synthetic_reply_of(entry: Entry) -> pyfuse3.EntryAttributes:
    """Return the reply for a synthetic entry, owned by root inside."""
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = entry.number
    reply.entry_timeout = FOREVER if entry.is_lasting else REAL_TIMEOUT
    reply.attr_timeout = FOREVER
    reply.st_mode = entry.mode
    reply.st_nlink = 2 if entry.is_directory else 1
    reply.st_size = len(entry.content)
    reply.st_blocks = (len(entry.content) + 511) // 512
    reply.st_atime_ns = reply.st_mtime_ns = reply.st_ctime_ns = _STARTED_NS
    return reply


def unreachable_reply_of(number: int) -> pyfuse3.EntryAttributes:
    """Return the reply for a name that is listed but whose file the host refuses to show."""
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = number
    reply.entry_timeout = reply.attr_timeout = 0
    reply.st_mode = stat.S_IFREG
    return reply


def change(
    path: str,
    wanted: pyfuse3.EntryAttributes,
    fields: pyfuse3.SetattrFields,
    open_fd: int | None,
    identity: Identity,
) -> None:
    """Apply a SETATTR request to ``path`` (a /proc/self/fd one, so it may be a symlink itself).

    ``open_fd`` is the client's own descriptor when it has one: ftruncate(2) works with the rights
    of the time of open. Raises OSError.
    """
    if fields.update_uid or fields.update_gid:
        uid = identity.outside_uid(wanted.st_uid) if fields.update_uid else -1
        gid = identity.outside_gid(wanted.st_gid) if fields.update_gid else -1
        os.chown(path, uid, gid)
    # After chown: that clears the set-user-ID bits, and the request's mode is the final one
    if fields.update_mode:
        os.chmod(path, stat.S_IMODE(wanted.st_mode))
    if fields.update_size:
        os.truncate(path if open_fd is None else open_fd, wanted.st_size)
    if fields.update_atime or fields.update_mtime:
        atime = _timespec(wanted.st_atime_ns if fields.update_atime else None)
        mtime = _timespec(wanted.st_mtime_ns if fields.update_mtime else None)
        times = struct.pack("qqqq", *atime, *mtime)
        execute(Call("utimensat", (AT_FDCWD, path.encode(), times, 0)), path)


def _timespec(nanoseconds: int | None) -> tuple[int, int]:
    return (0, _UTIME_OMIT) if nanoseconds is None else divmod(nanoseconds, _NANOSECONDS)


def translated_acl(value: bytes, identity: Identity, *, to_host: bool) -> bytes:
    """Return a system.posix_acl_* value (linux/posix_acl_xattr.h) with its ids translated."""
    uid = identity.outside_uid if to_host else identity.inside_uid
    gid = identity.outside_gid if to_host else identity.inside_gid
    result = value[: _ACL_HEADER.size]
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]):
        if tag == _ACL_USER:
            number = uid(number)  # noqa: PLW2901 - one field of three
        elif tag == _ACL_GROUP:
            number = gid(number)  # noqa: PLW2901 - one field of three
        result += _ACL_ENTRY.pack(tag, permissions, number)
    return result
