"""Would the container's kernel view run this file? Asked before anything irreversible is done.

Once the vessel has replaced the caller no errno can be returned any more, so what execve(2) would
refuse is found here. The container may change the file afterwards: then the exec in the vessel
fails and the process ends with a message.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import Final

from nsstages.syscalls import open_in_root

_HEAD: Final = 4096
_MAX_INTERPRETERS: Final = 4  # the kernel's limit for scripts run by scripts
_PT_INTERP: Final = 3
_ELF_32 = ("<I", 28, 42, struct.Struct("<IIIIIIII"), 1, 4)
_ELF_64 = ("<Q", 32, 54, struct.Struct("<IIQQQQQQ"), 2, 5)


def is_program(root_fd: int, path: str) -> bool:
    """Tell whether ``path`` below ``root_fd`` is an executable regular file."""
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except OSError:
        return False
    try:
        return _refusal(fd) == 0
    finally:
        os.close(fd)


def error_of(root_fd: int, path: str, *, depth: int = 0) -> int:
    """Return the errno with which execve(2) of ``path`` below ``root_fd`` would fail, 0 if none.

    A file that is neither ELF nor a script with an interpreter counts as EACCES, not ENOEXEC: on
    ENOEXEC the shells run the file themselves, and they are the host's shells with its root.
    """
    if depth > _MAX_INTERPRETERS:
        return errno.ELOOP
    try:
        fd = open_in_root(root_fd, path, os.O_PATH)
    except OSError as error:
        return error.errno or errno.EACCES
    try:
        refused = _refusal(fd)
        head = b"" if refused else _head_of(fd)
    except OSError as error:
        return error.errno or errno.EACCES
    finally:
        os.close(fd)
    if refused:
        return refused
    interpreter = _interpreter_of(head)
    if interpreter is None:
        return errno.EACCES
    return error_of(root_fd, interpreter, depth=depth + 1) if interpreter else 0


def _refusal(fd: int) -> int:
    mode = os.fstat(fd).st_mode
    allowed = stat.S_ISREG(mode) and mode & 0o111
    return 0 if allowed and not os.fstatvfs(fd).f_flag & os.ST_NOEXEC else errno.EACCES


def _head_of(path_fd: int) -> bytes:
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return os.read(fd, _HEAD)
    finally:
        os.close(fd)


def _interpreter_of(head: bytes) -> str | None:
    """Return the interpreter a file asks for, "" when it needs none, None when it is no program."""
    if head.startswith(b"\x7fELF"):
        return _elf_interpreter(head)
    if not head.startswith(b"#!"):
        return None
    line = head[2:].split(b"\n", 1)[0].split()
    return os.fsdecode(line[0]) if line else None


def _elf_interpreter(head: bytes) -> str:
    """Return PT_INTERP of an ELF, "" when there is none in what was read."""
    word, phoff_at, phentsize_at, layout, offset_index, size_index = (
        _ELF_64 if head[4:5] == b"\x02" else _ELF_32
    )
    if len(head) < phentsize_at + 4:
        return ""
    (phoff,) = struct.unpack_from(word, head, phoff_at)
    entry_size, count = struct.unpack_from("<HH", head, phentsize_at)
    for number in range(count):
        position = phoff + number * entry_size
        if position + layout.size > len(head):
            break
        fields = layout.unpack_from(head, position)
        if fields[0] == _PT_INTERP:
            start, size = fields[offset_index], fields[size_index]
            return os.fsdecode(head[start : start + size].rstrip(b"\0"))
    return ""
