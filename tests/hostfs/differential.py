"""Random file operations, applied the same way to two trees: what each returns and leaves.

An operation is a tuple: its name and arguments. Paths are relative to the tree, descriptors are
slots of a small table. What an operation returns is compared between a native tree and one over
FUSE, so nothing in it may depend on where or when it ran: no inode number, no time that was not
set, no device.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from nsstages.syscalls import AT_FDCWD, Call, execute

Operation = tuple[Any, ...]
Result = Any

SLOTS: Final = 4
_REPORTED: Final = 4096  # bytes of contents that are compared
OMIT: Final = -1
_OMITTED: Final = (1 << 30) - 2


class Tree:
    """The state of one run: where its files are, and its open descriptors."""

    def __init__(self, root: Path) -> None:
        self._slots: list[int | None] = [None] * SLOTS
        os.mkdir(root, 0o777)
        os.chmod(root, 0o777)
        os.chdir(root)
        os.umask(0o022)
        self._furnish()

    def _furnish(self) -> None:
        """Make a few files of every kind, so that most operations find something."""
        for path in ("d", "d/e"):
            os.mkdir(path)
        for slot, path in enumerate(("a", "d/a", "d/e/a")):
            Path(path).write_bytes(path.encode() * 3000)
            self._do_open(slot, path, os.O_RDWR, 0)
        os.link("a", "d/b")
        os.symlink("d/a", "l")
        os.symlink("../d", "d/l")

    def apply(self, operation: Operation) -> Result:
        """Return what the operation gave, or the name of its error."""
        name, *arguments = operation
        try:
            return getattr(self, f"_do_{name}")(*arguments)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, str(error))

    def close(self) -> None:
        """Close every slot."""
        for slot in range(SLOTS):
            self._do_close(slot)

    def _fd(self, slot: int) -> int:
        fd = self._slots[slot]
        if fd is None:
            raise OSError(errno.EBADF, "an empty slot")
        return fd

    # --- names

    def _do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def _do_rmdir(self, path: str) -> None:
        os.rmdir(path)

    def _do_unlink(self, path: str) -> None:
        os.unlink(path)

    def _do_rename(self, old: str, new: str, flags: int) -> None:
        old_path, new_path = os.fsencode(old) + b"\0", os.fsencode(new) + b"\0"
        execute(Call("renameat2", (AT_FDCWD, old_path, AT_FDCWD, new_path, flags)))

    def _do_link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def _do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def _do_readlink(self, path: str) -> str:
        return os.readlink(path)

    def _do_mknod(self, path: str, kind: int, mode: int) -> None:
        os.mknod(path, kind | mode, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)

    def _do_listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    # --- attributes

    def _do_lstat(self, path: str) -> Result:
        return facts_of(os.lstat(path))

    def _do_stat(self, path: str) -> Result:
        return facts_of(os.stat(path))

    def _do_fstat(self, slot: int) -> Result:
        return facts_of(os.fstat(self._fd(slot)))

    def _do_access(self, path: str, mode: int) -> bool:
        return os.access(path, mode)

    def _do_chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def _do_fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def _do_chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(path, uid, gid, follow_symlinks=False)

    def _do_umask(self, mask: int) -> int:
        return os.umask(mask)

    def _do_utime(self, path: str, atime: int, mtime: int) -> Result:
        """Set one or both times; returns those that were set."""
        packed = b"".join(
            seconds.to_bytes(8, "little", signed=True) + part.to_bytes(8, "little")
            for seconds, part in (
                (0, _OMITTED) if value == OMIT else (value // 10**9, value % 10**9)
                for value in (atime, mtime)
            )
        )
        execute(Call("utimensat", (AT_FDCWD, os.fsencode(path) + b"\0", packed, 0)))
        now = os.stat(path)
        return (
            now.st_atime_ns if atime != OMIT else None,
            now.st_mtime_ns if mtime != OMIT else None,
        )

    def _do_setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(path, name, value, flags)

    def _do_getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(path, name)

    def _do_removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name)

    def _do_listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(path))

    # --- contents

    def _do_open(self, slot: int, path: str, flags: int, mode: int) -> None:
        self._do_close(slot)
        self._slots[slot] = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)

    def _do_close(self, slot: int) -> None:
        fd, self._slots[slot] = self._slots[slot], None
        if fd is not None:
            os.close(fd)

    def _do_read(self, slot: int, size: int) -> bytes:
        return os.read(self._fd(slot), size)

    def _do_pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self._fd(slot), size, offset)

    def _do_write(self, slot: int, data: bytes) -> int:
        return os.write(self._fd(slot), data)

    def _do_pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd(slot), data, offset)

    def _do_lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self._fd(slot), offset, whence)

    def _do_ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def _do_truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def _do_fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def _do_copy(self, source: int, target: int, size: int, at: int, to: int) -> int:
        return os.copy_file_range(self._fd(source), self._fd(target), size, at, to)

    def _do_map(self, slot: int, at: int, data: bytes) -> bytes:
        """Write through a shared mapping; returns what a read then gives."""
        fd = self._fd(slot)
        if not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_size <= at + len(data):
            return b"too small"
        with mmap.mmap(fd, os.fstat(fd).st_size) as memory:
            memory[at : at + len(data)] = data
            memory.flush()
        return os.pread(fd, _REPORTED, 0)

    def _do_lock(self, slot: int, how: int) -> None:
        fcntl.flock(self._fd(slot), how | fcntl.LOCK_NB)

    def _do_contents(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(fd, _REPORTED)
        finally:
            os.close(fd)


def facts_of(status: os.stat_result) -> Result:
    """Return what does not depend on place and time."""
    size = None if stat.S_ISDIR(status.st_mode) else status.st_size
    rdev = status.st_rdev if stat.S_ISCHR(status.st_mode) else 0
    return oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, size, rdev


def run(root: Path, operations: Sequence[Operation]) -> list[Result]:
    """Apply the operations to a new tree at ``root``; return their results and what is left."""
    tree = Tree(root)
    results = [tree.apply(operation) for operation in operations]
    tree.close()
    results.append(remains("."))
    os.chdir("/")
    return results


def remains(top: str) -> list[Result]:
    """Return every name below ``top`` with its facts, contents or target, and attributes."""
    found = []
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in sorted((*directories, *files)):
            path = os.path.join(directory, name)
            found.append((path, _or_error(lambda path=path: _whole(path))))  # type: ignore[misc]
    return found


def _whole(path: str) -> Result:
    """Return the facts of a file and its target or contents."""
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return facts_of(status), os.readlink(path)
    if stat.S_ISREG(status.st_mode):
        return facts_of(status), Path(path).read_bytes()
    return facts_of(status)


def _or_error(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0)
