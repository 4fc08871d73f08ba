"""One process's /proc directory, held open: every read is of that process or fails.

Errors are turned into what they mean for a target: it ended, or this user may not look.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from launcher.errors import TargetNotRunning, TargetUnreadable

_REMEDY: Final = (
    "run as root (with CAP_SYS_PTRACE), or as the user that the process runs as; a process that "
    "changed its user, or holds capabilities that you do not, is readable by root only"
)


class ProcDirectory:
    """/proc/PID of a process; close() when done. Called by the manager."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        with self._explained(""):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.fd = os.open(f"/proc/{pid}", flags)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.fd)

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open an entry; the caller owns the descriptor."""
        with self._explained(name):
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=self.fd)

    def read(self, name: str, limit: int) -> bytes:
        """Return at most ``limit`` bytes of an entry."""
        fd = self.open(name)
        try:
            with self._explained(name):
                return read_up_to(fd, limit)
        finally:
            os.close(fd)

    def text(self, name: str, limit: int) -> str:
        """Return an entry as text; bytes that are not UTF-8 survive as surrogates."""
        return self.read(name, limit).decode("utf-8", "surrogateescape")

    def link(self, name: str) -> str:
        """Return where a symbolic link points."""
        with self._explained(name):
            return os.readlink(name, dir_fd=self.fd)

    def has(self, name: str) -> bool:
        """Tell whether this kernel has the entry."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ProcessLookupError) as error:
            raise TargetNotRunning(f"process {self.pid} has ended") from error
        except PermissionError as error:
            path = f"/proc/{self.pid}/{name}".rstrip("/")
            raise TargetUnreadable(f"{path}: {error.strerror}", hint=_REMEDY) from error


def read_up_to(fd: int, limit: int) -> bytes:
    """Read until end of file or ``limit`` bytes."""
    data = bytearray()
    while len(data) < limit and (piece := os.read(fd, limit - len(data))):
        data += piece
    return bytes(data)
