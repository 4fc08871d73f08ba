"""/proc/PID/stat: is a process there, whose child is it, and is it still the same one.

Pure parsing and one read; a start time together with the number identifies a process until the
next boot. Times are clock ticks since boot as the reader's time namespace counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from launcher.errors import TargetMalformed

_PF_KTHREAD: Final = 0x00200000
_FIELDS_AFTER_COMM: Final = 20  # up to starttime, field 22 of proc_pid_stat(5)


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/PID/stat that identify a process; ``state`` is a letter of ps(1)."""

    pid: int
    state: str
    parent: int
    is_kernel_thread: bool
    start_time: int

    @property
    def is_running(self) -> bool:
        """Tell whether it still executes: neither a zombie nor being removed."""
        return self.state not in "ZXx"


def parse_stat(text: bytes) -> ProcessStat:
    """Parse /proc/PID/stat; the process chooses its name, which may hold parentheses."""
    head, _, tail = text.rpartition(b")")
    fields = tail.split()
    if len(fields) < _FIELDS_AFTER_COMM:
        raise TargetMalformed("stat", f"{len(fields)} fields after the name")
    try:
        return ProcessStat(
            pid=int(head.partition(b" ")[0]),
            state=fields[0].decode(),
            parent=int(fields[1]),
            is_kernel_thread=bool(int(fields[6]) & _PF_KTHREAD),
            start_time=int(fields[19]),
        )
    except ValueError as error:
        raise TargetMalformed("stat", str(error)) from error


def read_stat(pid: int) -> ProcessStat | None:
    """Return the facts of ``pid``, or None when there is no such process."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None


def is_running(pid: int, start_time: int | None = None) -> bool:
    """Tell whether ``pid`` runs, and is the process that started at ``start_time``."""
    stat = read_stat(pid)
    return stat is not None and stat.is_running and start_time in (None, stat.start_time)
