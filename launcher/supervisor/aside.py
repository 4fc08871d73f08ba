"""Stepping aside for debuggers: who calls ptrace(2) in the tree gets the tracee it asks for.

A process can have one tracer. When a process of the tree wants to trace, or to be traced by its
parent, the supervisor lets go of that thread before the call goes through, and keeps a pidfd:
EXITKILL does not reach what a debugger took over.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Final

from launcher.supervisor import tracer
from launcher.supervisor.notify import PTRACE_TRACEME, Notification
from launcher.supervisor.passage import Event
from launcher.supervisor.resolver import numbers_of

_MASK_32: Final = 0xFFFFFFFF


def wanted_tracee(notification: Notification, tracees: Iterable[int]) -> int | None:
    """Return the one of ``tracees`` that a notified ptrace(2) is about."""
    if notification.arguments[0] & _MASK_32 == PTRACE_TRACEME:
        return notification.tid if notification.tid in set(tracees) else None
    number = str(notification.arguments[1] & _MASK_32)
    level = len(numbers_of(notification.tid)) - 1
    for tid in tracees:
        numbers = numbers_of(tid)
        if numbers[level : level + 1] == [number]:
            return tid
    return None


def let_go(tid: int, then: Callable[[], object]) -> Generator[None, Event, None]:
    """Detach ``tid`` at its next stop, then call ``then``; also when it dies before.

    ``tid`` was told to stop (tracer.interrupt). Any stop will do: a signal is passed on.
    """
    try:
        event = yield
        if isinstance(event, int):
            number = event >> 8 & 0xFF
            tracer.detach(tid, 0 if event >> 16 or number & 0x80 else number)
    finally:
        then()


class Bystanders:
    """The processes that the supervisor let go of; they end with the tree."""

    def __init__(self) -> None:
        self._pidfds: dict[int, int] = {}

    def add(self, process: int) -> None:
        """Keep an eye on ``process``; forget those that ended."""
        self._forget_dead()
        with suppress(ProcessLookupError):
            if process not in self._pidfds:
                self._pidfds[process] = os.pidfd_open(process)

    def kill(self) -> None:
        """Kill them all."""
        for pidfd in self._pidfds.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
        self._pidfds.clear()

    def _forget_dead(self) -> None:
        for process, pidfd in list(self._pidfds.items()):
            try:
                signal.pidfd_send_signal(pidfd, signal.Signals(0))
            except (ProcessLookupError, ValueError):
                os.close(self._pidfds.pop(process))
