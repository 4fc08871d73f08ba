"""The one door to the kernel: thin, typed wrappers that raise OSError with errno and path.

What the standard library of Python 3.11 has is used from there; this module holds the rest. A
`Call` is a system call as data: stages execute it here, the supervisor injects the same value into
a stopped process, so both do exactly the same thing in the same order.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWTIME: Final = 0x00000080
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
AT_SYMLINK_NOFOLLOW: Final = 0x100
OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_IDMAP: Final = 0x100000

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_GET_SECCOMP: Final = 21
PR_SET_NAME: Final = 15
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_IS_SET: Final = 1
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
CAPABILITY_VERSION_3: Final = 0x20080522
PR_SET_PTRACER: Final = 0x59616D61

_STATFS_SIZE: Final = 120

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

_COMMON: Final = {  # numbers that all 64-bit ABIs share since Linux 5.0
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}
_X86_64: Final = {
    **_COMMON,
    "read": 0, "write": 1, "close": 3, "mmap": 9, "ioctl": 16, "dup2": 33,
    "fcntl": 72, "execve": 59, "exit": 60, "exit_group": 231, "kill": 62,
    "chdir": 80, "fchdir": 81, "umask": 95, "ptrace": 101, "setuid": 105, "setgid": 106,
    "setgroups": 116, "setresuid": 117, "setresgid": 119, "capget": 125, "capset": 126,
    "pivot_root": 155, "prctl": 157, "chroot": 161,
    "mount": 165,
    "setfsuid": 122, "setfsgid": 123, "utimensat": 280, "statx": 332,
    "umount2": 166, "sethostname": 170, "setns": 308, "unshare": 272,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "renameat2": 316, "seccomp": 317,
    "execveat": 322, "openat": 257, "fstatfs": 138,
}  # fmt: skip

NR: Final = MappingProxyType({"x86_64": _X86_64}.get(platform.machine(), _COMMON))


@dataclass(frozen=True, slots=True)
class Packed:
    """A structure passed by address: `struct` format and values, where bytes become pointers."""

    layout: str
    values: tuple[int | bytes, ...]


Argument = int | bytes | Packed


@dataclass(frozen=True, slots=True)
class Call:
    """One system call as data; bytes and Packed arguments are passed by address."""

    name: str
    arguments: tuple[Argument, ...]

    @property
    def number(self) -> int:
        """Return the system call number on this machine."""
        return NR[self.name]


def _address(argument: Argument, keep: list[ctypes.Array[ctypes.c_char]]) -> int:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, Packed):
        argument = struct.pack(argument.layout, *(_address(v, keep) for v in argument.values))
    buffer = ctypes.create_string_buffer(argument, len(argument) + 1)
    keep.append(buffer)
    return ctypes.addressof(buffer)


def execute(call: Call, path: str | None = None) -> int:
    """Execute ``call`` in this thread; return its result or raise OSError naming ``path``."""
    buffers: list[ctypes.Array[ctypes.c_char]] = []
    values = [ctypes.c_long(_address(argument, buffers)) for argument in call.arguments]
    result = int(_libc.syscall(ctypes.c_long(call.number), *values))
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)
    return result


def _call(name: str, *arguments: Argument, path: str | None = None) -> int:
    return execute(Call(name, arguments), path)


def _text(path: str | bytes) -> bytes:
    return os.fsencode(path) + b"\0"


def unshare(flags: int) -> None:
    """unshare(2). CLONE_NEWUSER needs a single-threaded caller."""
    _call("unshare", flags)


def setns(fd: int, kind: int) -> None:
    """setns(2) with a namespace descriptor or a pidfd; ``kind`` is a CLONE_NEW* mask."""
    _call("setns", fd, kind)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    _call(
        "mount", _text(source), _text(target), _text(kind) if kind else 0, flags,
        _text(data) if data else 0, path=target,
    )  # fmt: skip


def umount2(target: str, flags: int) -> None:
    """umount2(2)."""
    _call("umount2", _text(target), flags, path=target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _call("pivot_root", _text(new_root), _text(put_old), path=new_root)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2), Linux 5.2; with OPEN_TREE_CLONE a detached copy of the mount (tree)."""
    return _call("open_tree", dirfd, _text(path), flags, path=path)


def move_mount(from_fd: int, to_fd: int, to_path: str, flags: int = 0) -> None:
    """move_mount(2), Linux 5.2, from a mount descriptor to a path below ``to_fd``."""
    _call(
        "move_mount", from_fd, b"\0", to_fd, _text(to_path), flags | MOVE_MOUNT_F_EMPTY_PATH,
        path=to_path,
    )  # fmt: skip


def mount_setattr(
    fd: int,
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
    recursive: bool = True,
) -> None:
    """mount_setattr(2), Linux 5.12, on a mount descriptor."""
    attributes = struct.pack("QQQQ", set_attributes, clear_attributes, propagation, userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call("mount_setattr", fd, b"\0", flags, attributes, len(attributes))


def openat2(dirfd: int, path: str, flags: int, *, resolve: int, mode: int = 0) -> int:
    """openat2(2), Linux 5.6; always close-on-exec. ``resolve`` is a RESOLVE_* mask."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, resolve)
    return _call("openat2", dirfd, _text(path), how, len(how), path=path)


def open_in_root(root_fd: int, path: str, flags: int) -> int:
    """Open ``path`` inside the tree below ``root_fd`` as a chroot there would, never outside it.

    No magic links: a hostile tree cannot lead a privileged caller out through /proc.
    """
    resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
    return openat2(root_fd, path, flags, resolve=resolve)


FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6


def fsopen(kind: str) -> int:
    """fsopen(2), Linux 5.2: a file system context."""
    return _call("fsopen", _text(kind), 1, path=kind)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2): one parameter, or FSCONFIG_CMD_CREATE."""
    _call("fsconfig", fd, command, _text(key) if key else 0, _text(value) if value else 0, 0,
          path=key)  # fmt: skip


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount of the created context."""
    return _call("fsmount", fd, 1, attributes)


def prctl(option: int, *arguments: Argument) -> int:
    """prctl(2)."""
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _call("prctl", option, *padded)


def capget() -> tuple[int, int, int]:
    """capget(2): the effective, permitted and inheritable sets of this thread, as bit masks."""
    header, data = struct.pack("Ii", CAPABILITY_VERSION_3, 0), ctypes.create_string_buffer(24)
    _call("capget", header, ctypes.addressof(data))
    low, high = struct.unpack("III", data.raw[:12]), struct.unpack("III", data.raw[12:24])
    effective, permitted, inheritable = (a | b << 32 for a, b in zip(low, high, strict=True))
    return effective, permitted, inheritable


def set_name(comm: str) -> None:
    """Set the process name that `ps` shows, at most 15 bytes (PR_SET_NAME)."""
    prctl(PR_SET_NAME, comm.encode()[:15] + b"\0")


def close_range(first: int, last: int) -> None:
    """close_range(2), Linux 5.9."""
    _call("close_range", first, last, 0)


def fstatfs_type(fd: int) -> int:
    """fstatfs(2): the magic number (f_type) of the file system that ``fd`` is on."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    _call("fstatfs", fd, ctypes.addressof(buffer))
    return int.from_bytes(buffer.raw[:8], "little")
