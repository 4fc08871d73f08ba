"""Which tree a mount belongs to: the identity of a file is its mount, not its path.

A descriptor, a working directory or a /proc link can lead into a mount that another process's
namespace knows by the same path. The mount id (statx(2), Linux 5.8) tells them apart; for a FUSE
mount of another user namespace it is also all that the kernel lets us ask.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from nsstages.syscalls import AT_EMPTY_PATH, AT_FDCWD

_libc: Final = ctypes.CDLL(None, use_errno=True)
_statx: Final = _libc.statx
_statx.argtypes = (
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
)  # fmt: skip
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_MOUNT_ID_OFFSET: Final = 144
_answer: Final = ctypes.create_string_buffer(256)
_answer_view: Final = memoryview(_answer).cast("B")
_answer_address: Final = ctypes.addressof(_answer)


class Tree(Enum):
    """Whose tree a mount of the shell's namespace is part of."""

    HOST = "host"
    CONTAINER = "container"


def mount_id(path: str) -> int:
    """Return the id of the mount that ``path`` leads to, its last link followed.

    Asks for no attribute, so that the file system behind it is not asked anything.
    """
    return _mount_id(AT_FDCWD, os.fsencode(path), 0)


def mount_id_of(fd: int) -> int:
    """Return the id of the mount behind a descriptor of this process."""
    return _mount_id(fd, b"", AT_EMPTY_PATH)


def _mount_id(directory: int, path: bytes, flags: int) -> int:
    flags |= _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    if _statx(directory, path, flags, 0, _answer_address) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path))
    return int.from_bytes(_answer_view[_MOUNT_ID_OFFSET : _MOUNT_ID_OFFSET + 8], "little")


def is_below(path: str, prefix: str) -> bool:
    """Tell whether ``path`` is ``prefix`` or below it; both absolute and without a trailing /."""
    return path == prefix or path.startswith(prefix + "/")


@dataclass(frozen=True, slots=True)
class Mounts:
    """A mount table: whose tree each mount id is part of, and whether /proc is the kernel's own.

    A container can put anything at its /proc before the shell gets it.
    """

    trees: Mapping[int, Tree]
    has_genuine_proc: bool


def parse(mountinfo: str, container_prefixes: Iterable[str]) -> Mounts:
    """Parse the text of /proc/PID/mountinfo."""
    prefixes = tuple(_escape(prefix) for prefix in container_prefixes)
    trees = {}
    genuine = False
    for line in mountinfo.splitlines():
        number, _, _, inner, point, rest = line.split(" ", 5)
        inside = any(is_below(point, prefix) for prefix in prefixes)
        trees[int(number)] = Tree.CONTAINER if inside else Tree.HOST
        if point == "/proc":
            genuine = inner == "/" and rest.partition(" - ")[2].startswith("proc ")
    return Mounts(trees, genuine)


def _escape(path: str) -> str:
    """Return ``path`` as mountinfo writes it."""
    for character in "\\ \t\n":
        path = path.replace(character, f"\\{ord(character):03o}")
    return path


class MountTable:
    """The mounts of a process's mount namespace, read again when the kernel says they changed."""

    def __init__(self, pid: int, container_prefixes: Iterable[str]) -> None:
        self._prefixes = tuple(container_prefixes)
        self._file = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poller = select.poll()
        self._poller.register(self._file, select.POLLPRI)
        self._mounts = self._read()

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self._file)

    def tree_of(self, mount: int) -> Tree | None:
        """Return whose tree the mount is part of, None when the namespace does not have it."""
        return self._current().trees.get(mount)

    def has_genuine_proc(self) -> bool:
        """Tell whether procfs is what the shell has at /proc."""
        return self._current().has_genuine_proc

    def _current(self) -> Mounts:
        if self._poller.poll(0):
            self._mounts = self._read()
        return self._mounts

    def _read(self) -> Mounts:
        pieces = []
        os.lseek(self._file, 0, os.SEEK_SET)
        while piece := os.read(self._file, 1 << 16):
            pieces.append(piece)
        return parse(os.fsdecode(b"".join(pieces)), self._prefixes)
