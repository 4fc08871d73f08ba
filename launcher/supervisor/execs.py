"""Notified execs: let through, refused, or the start of a passage.

The way of an ordinary exec is short: the path is read, its links on the host are looked at, the
answer is sent. Everything else happens only when that says that the program is not the host's.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

from launcher.supervisor import memory
from launcher.supervisor.itinerary import Itinerary
from launcher.supervisor.machine import Abi
from launcher.supervisor.notify import Listener, Notification
from launcher.supervisor.options import Routing
from launcher.supervisor.passage import Outcome, Passage, Request, Vessel
from launcher.supervisor.program import error_of
from launcher.supervisor.resolver import Caller, Shell
from launcher.supervisor.rights import can_board
from launcher.supervisor.routes import HOST, Container, Decision, Host, Target, decide
from launcher.supervisor.tree import Tree
from nsstages.syscalls import AT_EMPTY_PATH, AT_FDCWD
from nsstages.trace import Recorder

_AT_EXECVE_CHECK: Final = 0x10000  # Linux 6.14: only ask whether it could be executed


class Router:
    """What routing needs for the life of the shell."""

    def __init__(self, shell_pid: int, vessel_fd: int, routing: Routing) -> None:
        self.shell = Shell(shell_pid, routing)
        self.vessel = Vessel(vessel_fd)
        self.itinerary = Itinerary(routing)

    def close(self) -> None:
        """Let go of the shell's mount namespace and the container's root."""
        self.shell.close()
        self.itinerary.close()

    def decide(self, notification: Notification, abi: Abi, path: str) -> Decision:
        """Return the view of a notified exec of ``path``."""
        target = _target(notification, abi, path)
        if target is None:
            return HOST
        tid = notification.tid
        try:
            decision = decide(target, self.shell.layout, Caller(tid, self.shell))
        except OSError:
            return HOST  # no such descriptor, or the caller is gone: the kernel says it better
        return decision if isinstance(decision, Host) or self.shell.has(tid) else HOST


def _target(notification: Notification, abi: Abi, path: str) -> Target | None:
    if notification.number == abi.execve:
        return Target(path) if path else None
    directory = notification.arguments[0] & 0xFFFFFFFF
    at_cwd = directory == AT_FDCWD & 0xFFFFFFFF
    if not path and not notification.arguments[4] & AT_EMPTY_PATH:
        return None
    return Target(path, None if at_cwd else directory)


class Execs:
    """Answers the exec notifications of one listener."""

    def __init__(
        self, listener: Listener, tree: Tree, router: Router | None, recorder: Recorder
    ) -> None:
        self._listener = listener
        self._tree = tree
        self._router = router
        self._recorder = recorder
        self._recording = recorder.sink is not None

    def notified(self, notification: Notification, abi: Abi) -> Passage | None:
        """Answer an exec, or return the passage that will."""
        tracee = self._tree.tracees.get(notification.tid)
        free = self._router is not None and not (tracee and tracee.routed)
        if not free and not self._recording:
            self._listener.let_through(notification.id)
            return None
        first = 1 if notification.number == abi.execveat else 0
        try:
            path = os.fsdecode(memory.read_string(notification.tid, notification.arguments[first]))
        except OSError:
            self._listener.let_through(notification.id)  # EFAULT, or nobody is there any more
            return None
        decision: Decision = HOST
        if free and self._router is not None:
            decision = self._router.decide(notification, abi, path)
        if isinstance(decision, Host):
            self._let_through(notification, decision, path, first + 1)
            return None
        return self._divert(notification, abi, decision, path)

    def _let_through(
        self, notification: Notification, decision: Host, path: str, argv_index: int
    ) -> None:
        tracee = self._tree.tracees.get(notification.tid)
        if decision.watched:
            if tracee is not None:
                tracee.watched = True
            elif decision.doubtful and self._router and self._router.shell.has(notification.tid):
                # Nobody will look at what is executed, and the container can still exchange it.
                self._refuse(notification, path, errno.EACCES)
                return
        if self._recording:
            self._note(notification, path, argv_index)
        self._listener.let_through(notification.id)

    def _divert(
        self, notification: Notification, abi: Abi, decision: Decision, path: str
    ) -> Passage | None:
        """Refuse an exec that may not happen, or start its passage."""
        router = self._router
        if router is None or not isinstance(decision, Container):
            self._refuse(notification, path, getattr(decision, "error", errno.EACCES))
            return None
        error = error_of(router.shell.routing.container_root_fd, decision.path)
        if not error and not can_board(notification.tid, router.shell):
            error = errno.EACCES
        only_asks = abi.execveat == notification.number and (
            notification.arguments[4] & _AT_EXECVE_CHECK
        )
        if error or only_asks:
            self._refuse(notification, path, error)
            return None
        request = Request(notification, abi, decision.path)
        return Passage(request, self._listener, router.vessel, router.shell, router.itinerary)

    def refuse_untraceable(self, passage: Passage) -> None:
        """Another tracer has the caller, so it cannot be routed: fail closed."""
        self._refuse(passage.request.notification, passage.request.path, errno.EACCES)

    def _refuse(self, notification: Notification, path: str, error: int) -> None:
        self._listener.refuse(notification.id, error)
        self._record(notification.tid, path, "", routed=False, error=error)

    def _note(self, notification: Notification, path: str, argv_index: int) -> None:
        """Keep what is executed until the exec stop; without one, record it now."""
        argv0 = _first_argument(notification, argv_index)
        tracee = self._tree.tracees.get(notification.tid)
        if tracee is not None:
            tracee.called = (path, argv0)
        else:
            self._record(notification.tid, path, argv0, routed=False, error=None)

    def check(self, pid: int) -> None:
        """Look at what a tracee in its exec stop runs, and kill it when it must not.

        The file can have been exchanged after the decision: FLAG_CONTINUE is a race by nature.
        """
        tracee = self._tree.tracees.get(pid)
        if tracee is not None and tracee.watched:
            tracee.watched = False
            self._kill_strange(pid)

    def ran(self, pid: int) -> None:
        """Record that an ordinary exec of a tracee succeeded."""
        tracee = self._tree.tracees.get(pid)
        if tracee is not None and tracee.called is not None:
            path, argv0 = tracee.called
            tracee.called = None
            self._record(pid, path, argv0, routed=tracee.routed, error=0)

    def _kill_strange(self, pid: int) -> None:
        try:
            strange = self._router is not None and self._router.shell.runs_strange_file(pid)
        except OSError:
            return  # killed meanwhile
        if strange:
            os.kill(pid, signal.SIGKILL)
            self._recorder.event("exec.killed", subject=pid)

    def arrived(self, pid: int, passage: Passage, outcome: Outcome) -> None:
        """A passage has ended."""
        tracee = self._tree.tracees.get(pid)
        if tracee is not None and not outcome.error:
            tracee.routed = True
        path = passage.request.path
        self._record(pid, path, "", routed=True, error=outcome.error, text=outcome.text)

    def _record(
        self, pid: int, path: str, argv0: str, *, routed: bool, error: int | None, text: str = ""
    ) -> None:
        view = "container" if routed else "host"
        extra = {"text": text} if text else {}
        self._recorder.event(
            "exec",
            subject=pid,
            path=path,
            argv0=argv0,
            routed=routed,
            view=view,
            errno=error,
            **extra,
        )


def _first_argument(notification: Notification, argv_index: int) -> str:
    try:
        size = 4 if notification.arch & 0x80000000 == 0 else 8
        pointer = memory.read_word(notification.tid, notification.arguments[argv_index], size)
        return os.fsdecode(memory.read_string(notification.tid, pointer))
    except OSError:
        return ""
