"""Which descriptors a routed program keeps.

Kept are those that carry data: files, pipes, sockets, terminals. Closed are those that lead to
more of the host than was handed over: directories, O_PATH, namespaces, processes, and every
anonymous kind that is not known to be harmless.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

_HARMLESS: Final = frozenset(
    f"anon_inode:[{kind}]" for kind in ("eventfd", "eventpoll", "signalfd", "timerfd")
)
_DATA: Final = ("pipe:", "socket:")
_O_PATH_FLAG: Final = os.O_PATH


def open_descriptors(pid: int) -> tuple[int, ...]:
    """Return the open descriptors of ``pid``, a stopped process."""
    return tuple(sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd")))


def leading_back(pid: int, fds: Iterable[int]) -> tuple[int, ...]:
    """Return those of ``fds`` that a routed program must not have. One that cannot be told goes."""
    return tuple(fd for fd in fds if not _is_kept(pid, fd))


def _is_kept(pid: int, fd: int) -> bool:
    link = f"/proc/{pid}/fd/{fd}"
    try:
        text = os.readlink(link)
        if text.startswith(_DATA) or text in _HARMLESS:
            return True
        return text.startswith("/") and not _is_path_only(pid, fd) and not _is_directory(link)
    except OSError:
        return False


def _is_path_only(pid: int, fd: int) -> bool:
    with open(f"/proc/{pid}/fdinfo/{fd}", "rb") as info:
        for line in info:
            if line.startswith(b"flags:"):
                return bool(int(line.split()[1], 8) & _O_PATH_FLAG)
    return True


def _is_directory(link: str) -> bool:
    """Ask the directory entry, not the file system, which may refuse to answer us (FUSE)."""
    try:
        os.close(os.open(link, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except NotADirectoryError:
        return False
    return True


def free_numbers(count: int, taken: Iterable[int]) -> tuple[int, ...]:
    """Return the lowest ``count`` numbers from 3 up that are not ``taken``."""
    used = set(taken)
    found: list[int] = []
    number = 3
    while len(found) < count:
        if number not in used:
            found.append(number)
        number += 1
    return tuple(found)
