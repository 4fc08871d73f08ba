"""Read the seccomp filters of a target: it is stopped for the moment that takes.

A child does it, so that the manager never waits for a target that cannot stop; when the child
dies, the kernel detaches and the target runs on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from errno import EACCES, EPERM
from functools import partial
from pathlib import Path
from typing import Final

import msgpack

from launcher.errors import TargetError
from launcher.targets.bounded import Answer, in_child
from nsstages.syscalls import PR_GET_SECCOMP, Call, execute, prctl

_SECONDS: Final = 5.0
_OTHERS_SECONDS: Final = 1.0
_WALL: Final = 0x40000000
_DETACH: Final = 17
_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_SECCOMP_GET_FILTER: Final = 0x420C
_INSTRUCTION: Final = 8  # bytes of a struct sock_filter


def read_filters(pid: int) -> tuple[bytes, ...]:
    """Return the seccomp filters of ``pid`` as raw arrays of struct sock_filter, oldest first.

    Called by the manager. Raises TargetError: EPERM when another tracer has the target, EACCES
    without CAP_SYS_ADMIN, EMEDIUMTYPE for a filter that only the kernel knows.
    """
    try:
        answer = in_child(partial(_read, pid), timeout=_SECONDS)
    except OSError as error:
        raise TargetError(
            f"the seccomp filters of process {pid} cannot be read: {error.strerror or error}",
            hint=_remedy(error, pid),
        ) from error
    filters: list[bytes] = msgpack.unpackb(answer.data)
    return tuple(filters)


def _remedy(error: OSError, pid: int) -> str:
    """Say what to do: EACCES comes from PTRACE_SECCOMP_GET_FILTER, EPERM from PTRACE_SEIZE."""
    if isinstance(error, TimeoutError):
        return "it does not stop: is it frozen, or stuck in the kernel?"
    if error.errno == EACCES and prctl(PR_GET_SECCOMP):
        return (
            "this launcher runs under a seccomp filter itself, as in a container or in a unit with"
            " SystemCallFilter=, and to such a process the kernel shows none: start it outside"
        )
    if error.errno == EACCES:
        return "the kernel shows them to CAP_SYS_ADMIN only: run as root"
    if error.errno == EPERM and (tracer := _tracer_of(pid)):
        return f"process {tracer} traces it, a debugger or strace: end that first"
    return ""


def _tracer_of(pid: int) -> int:
    """Return the pid of a process's tracer, 0 without one."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("TracerPid:")), 0)


def _read(pid: int) -> Answer:
    _seize(pid)
    _ptrace(_INTERRUPT, pid)
    _, status = os.waitpid(pid, _WALL)
    filters: list[bytes] = []
    try:
        while True:
            filters.append(_filter(pid, len(filters)))
    except FileNotFoundError:
        pass
    finally:
        stopped_by = os.WSTOPSIG(status) if os.WIFSTOPPED(status) else 0
        # The interrupt's own stop is SIGTRAP; any other signal was the target's: give it back.
        _ptrace(_DETACH, pid, 0, 0 if stopped_by in (0, signal.SIGTRAP) else stopped_by)
    return Answer(msgpack.packb(filters))


def _seize(pid: int) -> None:
    """Trace ``pid``. One process at a time can: another launch does for a moment, a debugger stays.

    The kernel tells nobody when a tracer lets go, so this asks again.
    """
    deadline = time.monotonic() + _OTHERS_SECONDS
    while True:
        try:
            _ptrace(_SEIZE, pid)
            return
        except PermissionError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _filter(pid: int, index: int) -> bytes:
    """Return one of the seccomp filters of a stopped tracee, 0 being the oldest.

    ptrace(2) says the opposite; the kernel (Linux 4.4 to 6.18) counts from the first installed.
    Raises FileNotFoundError past the latest, EINVAL when it has none, EACCES without
    CAP_SYS_ADMIN.
    """
    count = _ptrace(_SECCOMP_GET_FILTER, pid, index)
    program = ctypes.create_string_buffer(count * _INSTRUCTION)
    _ptrace(_SECCOMP_GET_FILTER, pid, index, ctypes.addressof(program))
    return program.raw


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    """ptrace(2) without python-ptrace: its import would be most of the time that this takes."""
    return execute(Call("ptrace", (request, pid, address, data)))
