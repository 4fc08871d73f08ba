"""Read the seccomp filters of a target: it is stopped for the moment that takes.

A child does it, so that the manager neither imports the tracer nor waits for a target that cannot
stop; when the child dies, the kernel detaches and the target runs on.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Final

import msgpack

from launcher.errors import TargetError
from launcher.imports import sparing
from launcher.targets.bounded import Answer, in_child

_SECONDS: Final = 5.0
_WALL: Final = 0x40000000


def read_filters(pid: int) -> tuple[bytes, ...]:
    """Return the seccomp filters of ``pid`` as raw arrays of struct sock_filter, oldest first.

    Called by the manager. Raises TargetError: EPERM when another tracer has the target, EACCES
    without CAP_SYS_ADMIN, EMEDIUMTYPE for a filter that only the kernel knows.
    """
    try:
        answer = in_child(partial(_read, pid), timeout=_SECONDS)
    except OSError as error:
        raise TargetError(
            f"the seccomp filters of process {pid} cannot be read: {error}",
            hint="is it being debugged?",
        ) from error
    filters: list[bytes] = msgpack.unpackb(answer.data)
    return tuple(filters)


def _read(pid: int) -> Answer:
    with sparing():
        from launcher.supervisor import tracer
    tracer.seize(pid, 0)
    tracer.interrupt(pid)
    _, status = os.waitpid(pid, _WALL)
    filters: list[bytes] = []
    try:
        while True:
            filters.append(tracer.seccomp_filter(pid, len(filters)))
    except FileNotFoundError:
        pass
    finally:
        stopped_by = os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0
        # The interrupt's own stop is SIGTRAP; any other signal was the target's: give it back.
        tracer.detach(pid, 0 if stopped_by in (0, signal.SIGTRAP) else stopped_by)
    return Answer(msgpack.packb(filters))
