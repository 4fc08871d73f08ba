"""A process of this pid namespace, by number."""

from __future__ import annotations

from launcher.errors import TargetError, TargetNotRunning
from launcher.targets.lookup import Engine, Found
from launcher.targets.process import read_stat


def _look_up(name: str) -> Found | None:
    if not (name.isascii() and name.isdigit()):
        return None
    pid = int(name)
    stat = read_stat(pid)
    if stat is None:
        return None
    if stat.is_kernel_thread:
        raise TargetError(f"process {pid} is a kernel thread: it has no root, memory or user")
    if not stat.is_running:
        raise TargetNotRunning(f"process {pid} has ended and is a zombie of process {stat.parent}")
    return Found("pid", str(pid), pid, stat.start_time)


PID = Engine("pid", _look_up)
