"""Entering cgroups, v1 and v2: one descriptor of a cgroup directory per hierarchy."""

from __future__ import annotations

import os
from collections.abc import Iterable


def enter(cgroup_fds: Iterable[int], pid: int = 0) -> None:
    """Move ``pid`` (0: this process) into each cgroup. Raises OSError naming the hierarchy.

    Never called for a frozen cgroup: on v1 the mover's target goes to D state for good.
    """
    for directory in cgroup_fds:
        fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.write(fd, str(pid).encode())
        except OSError as error:
            error.filename = os.readlink(f"/proc/self/fd/{directory}")
            raise
        finally:
            os.close(fd)
