"""The traced processes: who they are, what they report, and how they run on.

Every stop of every tracee ends up here unless a passage or a debugger's request wants it. Signals
pass through untouched, group-stops stay group-stops (PTRACE_LISTEN), so that job control works.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Final

from launcher.supervisor import tracer
from launcher.supervisor.machine import ERESTARTNOINTR, ERESTARTSYS, MACHINE, NOTIFIED
from nsstages.trace import Recorder

_STOPPING: Final = frozenset((signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU))


@dataclass(slots=True)
class Tracee:
    """A traced thread. ``routed`` tells that it runs a program in the container's view.

    ``called`` is the exec that it was last notified for: path and argv[0], kept when recording;
    ``watched`` that what this exec runs must be looked at.
    """

    process: int
    routed: bool = False
    called: tuple[str, str] | None = None
    watched: bool = False


def hide_interruption(tid: int) -> None:
    """At a signal's delivery: keep it from failing a notified call with EINTR.

    A signal that comes before the supervisor has received the notification interrupts the call,
    and execve(2) never fails with EINTR. The kernel looks at the result again afterwards.
    """
    if tracer.peek_register(tid, MACHINE.RESULT) != -ERESTARTSYS:
        return
    if tracer.peek_register(tid, MACHINE.NUMBER) in NOTIFIED:
        tracer.poke_register(tid, MACHINE.RESULT, -ERESTARTNOINTR)


class Tree:
    """The tracees of one supervisor."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.tracees: dict[int, Tracee] = {}
        self._threaded: set[int] = set()  # processes that have or had a second thread

    def add(self, tid: int, process: int) -> None:
        """Count a thread that has been seized."""
        self.tracees[tid] = Tracee(process)
        if tid != process:
            self._threaded.add(process)

    def forget(self, tid: int) -> None:
        """Stop counting a thread that is detached or dead."""
        self.tracees.pop(tid, None)

    def ended(self, tid: int, status: int) -> None:
        """A thread was reaped."""
        tracee = self.tracees.pop(tid, None)
        if tracee is not None and tracee.process == tid:
            self._threaded.discard(tid)
            self._recorder.event("exit", subject=tid, status=status)

    def became_process(self, tid: int) -> int:
        """At an exec: return the thread that called it, whose number is now the process's."""
        if tid not in self._threaded:
            return tid
        self._threaded.discard(tid)
        former = tracer.event_message(tid)
        if former != tid and former in self.tracees:
            self.tracees[tid] = self.tracees.pop(former)
            self.tracees[tid].process = tid
        return former

    def run_on(self, tid: int, status: int) -> None:
        """Let a stopped tracee do what it would do without us."""
        event = status >> 16
        number = status >> 8 & 0xFF
        try:
            child = tracer.event_message(tid) if event in tracer.FORKS else 0
            if event == tracer.EVENT_STOP and number in _STOPPING:
                tracer.listen(tid)
            elif event or number & 0x80:
                tracer.resume(tid)
            else:
                hide_interruption(tid)
                tracer.resume(tid, number)
        except ProcessLookupError:
            return  # killed in the stop; its end is reported next
        if child:
            self._forked(tid, child, event)
        elif tid not in self.tracees:
            self.tracees[tid] = Tracee(tid)  # a new child, before its parent's report

    def _forked(self, tid: int, child: int, event: int) -> None:
        parent = self.tracees.get(tid)
        process = parent.process if parent else tid
        tracee = self.tracees.setdefault(child, Tracee(child))
        tracee.routed = tracee.routed or bool(parent and parent.routed)
        if event == tracer.EVENT_CLONE and os.path.exists(f"/proc/{process}/task/{child}"):
            tracee.process = process
            self._threaded.add(process)
        else:
            self._recorder.event("fork", subject=child, parent=process)
