"""The supervisor process: one loop over the listener, SIGCHLD and the manager's channel.

It wakes on events only. Whatever goes wrong about one process is recorded, answered with an error
or a kill of that process, and never ends the loop.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from launcher.supervisor import tracer
from launcher.supervisor.aside import Bystanders, let_go, wanted_tracee
from launcher.supervisor.execs import Execs, Router
from launcher.supervisor.machine import ERESTARTNOINTR, abi_of, is_ptrace
from launcher.supervisor.notify import PTRACE_TRACEME, Listener, Notification
from launcher.supervisor.options import Mode, SupervisorOptions
from launcher.supervisor.passage import Event, Passage
from launcher.supervisor.resolver import process_of
from launcher.supervisor.tree import Tree
from nsstages.channel import Channel, close_all
from nsstages.messages import Word
from nsstages.trace import Recorder

_START_SECONDS: Final = 120.0
_ERRAND_SECONDS: Final = 10.0
_WALL: Final = 0x40000000  # __WALL: threads and clone children too
_SFD_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK
_TERMINAL_SIGNALS: Final = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
)  # fmt: skip


def supervise(channel: Channel, options: SupervisorOptions, recorder: Recorder) -> None:
    """Supervise the shell that SUPERVISE_PLS brings, until its tree or the manager has ended.

    Called in the forked supervisor process, which exits afterwards: then the kernel kills whatever
    is still traced. The word carries the listener, a pidfd of the shell and, with routing, the
    vessel. Raises StageFailed when the shell cannot be seized.
    """
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # keys are for the shell, the supervisor outlives it
    message = channel.expect(Word.SUPERVISE_PLS, timeout=_START_SECONDS)
    try:
        listener_fd, shell_pidfd, *rest = message.fds
        pid = _pid_of(shell_pidfd)
        routing = options.routing if rest and options.mode != Mode.OFF else None
        router = None
        with recorder.step("look at the shell", subject=pid):
            router = Router(pid, rest[0], routing) if routing is not None else None
        supervisor = Supervisor(Listener(listener_fd), options.mode, router, recorder)
        with recorder.step("seize the shell", "ptrace", subject=pid):
            supervisor.start(pid)
        channel.send(Word.SUPERVISE_ACK)
        try:
            supervisor.run(channel.fileno())
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(shell_pidfd, signal.SIGKILL)
            supervisor.close()
    finally:
        close_all(message.fds)


def _pid_of(pidfd: int) -> int:
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        if line.startswith("Pid:"):
            return int(line.split()[1])
    return -1


def _signal_fd(number: int) -> int:
    """Block a signal and return a signalfd(2) for it (Python 3.11 has none)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    mask = ctypes.create_string_buffer(128)
    ctypes.c_uint64.from_buffer(mask).value = 1 << (number - 1)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.signalfd(-1, mask, _SFD_FLAGS))
    if fd == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "signalfd")
    return fd


@dataclass(frozen=True, slots=True)
class Errand:
    """Something that goes on with one tracee over several of its stops.

    ``finish`` gets the tracee, stopped, and what the generator returned. A ``passage`` is sent
    the tracee's notifications too, and is killed when it takes too long.
    """

    generator: Generator[None, Event, Any]
    finish: Callable[[int, Any], None]
    deadline: float
    passage: Passage | None = None


class Supervisor:
    """The loop's state."""

    def __init__(
        self, listener: Listener, mode: str, router: Router | None, recorder: Recorder
    ) -> None:
        self._listener = listener
        self._whole_tree = mode == Mode.TREE
        self._router = router
        self._recorder = recorder
        self._tree = Tree(recorder)
        self._execs = Execs(listener, self._tree, router, recorder)
        self._bystanders = Bystanders()
        self._errands: dict[int, Errand] = {}
        self._children = _signal_fd(signal.SIGCHLD)
        self._listening = True

    def start(self, pid: int) -> None:
        """Trace the shell, which waits. Raises OSError."""
        if self._whole_tree:
            tracer.seize(pid, tracer.WHOLE_TREE)
            self._tree.add(pid, pid)

    def close(self) -> None:
        """End the processes that debuggers took over, and close what was opened."""
        self._bystanders.kill()
        os.close(self._children)
        if self._router is not None:
            self._router.close()

    def run(self, manager_fd: int) -> None:
        """Serve until the tree is empty or the manager hangs up."""
        poller = select.poll()
        for fd in (self._children, self._listener.fd, manager_fd):
            poller.register(fd, select.POLLIN)
        while True:
            for fd, events in poller.poll(self._patience()):
                if fd == manager_fd:
                    return
                if fd == self._children:
                    os.read(fd, 128)
                    self._reap()
                elif events & select.POLLIN:
                    self._receive()
                else:
                    self._listening = False
                    poller.unregister(fd)
            self._give_up_late()
            if not self._listening and not self._reap():
                return

    def _patience(self) -> float | None:
        """Return the milliseconds until the first errand is late."""
        if not self._errands:
            return None
        first = min(errand.deadline for errand in self._errands.values())
        return max(0.0, first - time.monotonic()) * 1000

    def _give_up_late(self) -> None:
        if not self._errands:
            return
        now = time.monotonic()
        for tid, errand in list(self._errands.items()):
            if errand.deadline < now:
                self._drop(tid, errand, "took too long")

    # --- stops and ends -------------------------------------------------------------------

    def _reap(self) -> bool:
        """Handle every stop and end there is; return whether there are tracees left."""
        while True:
            try:
                tid, status = os.waitpid(-1, os.WNOHANG | _WALL)
            except ChildProcessError:
                return False
            if not tid:
                return True
            try:
                self._reported(tid, status)
            except Exception as error:  # noqa: BLE001  # one tracee must not end the others
                self._recorder.event("supervisor.error", subject=tid, text=repr(error))

    def _reported(self, tid: int, status: int) -> None:
        if status & 0xFF != 0x7F:
            errand = self._errands.pop(tid, None)
            if errand is not None:
                errand.generator.close()
            self._tree.ended(tid, status)
            return
        did_exec = status >> 16 == tracer.EVENT_EXEC
        if did_exec:
            self._rename(self._tree.became_process(tid), tid)
        errand = self._errands.get(tid)
        if errand is not None:
            self._advance(tid, errand, status)
            return
        if not did_exec:
            self._tree.run_on(tid, status)
            return
        self._execs.check(tid)
        self._tree.run_on(tid, status)
        self._execs.ran(tid)

    def _rename(self, former: int, tid: int) -> None:
        """A thread's exec made it the process: the errands of the former leader are void."""
        if former == tid:
            return
        leaders = self._errands.pop(tid, None)
        if leaders is not None:
            leaders.generator.close()
        errand = self._errands.pop(former, None)
        if errand is not None:
            self._errands[tid] = errand
            if errand.passage is not None:
                errand.passage.tid = tid

    def _advance(self, tid: int, errand: Errand, event: Event | None) -> None:
        """Send ``event`` to an errand; None starts it."""
        try:
            if event is None:
                next(errand.generator)
            else:
                errand.generator.send(event)
        except StopIteration as end:
            self._errands.pop(tid, None)
            with suppress(ProcessLookupError):  # killed in its last stop
                errand.finish(tid, end.value)
        except Exception as error:  # noqa: BLE001  # whatever it was, it concerns this process
            self._drop(tid, errand, str(error))

    def _drop(self, tid: int, errand: Errand, why: str) -> None:
        """Give an errand up. A process on a passage is in nobody's view: it dies."""
        self._errands.pop(tid, None)
        errand.generator.close()
        self._recorder.event("supervisor.gave_up", subject=tid, text=why)
        if errand.passage is not None:
            self._listener.refuse(errand.passage.request.notification.id, errno.EACCES)
            with suppress(ProcessLookupError):
                os.kill(tid, signal.SIGKILL)

    # --- notifications --------------------------------------------------------------------

    def _receive(self) -> None:
        notification = self._listener.receive()
        if notification is None:
            return
        try:
            self._answer(notification)
        except Exception as error:  # noqa: BLE001  # one caller must not end the others
            self._listener.refuse(notification.id, errno.EACCES)
            self._recorder.event("supervisor.error", subject=notification.tid, text=repr(error))

    def _answer(self, notification: Notification) -> None:
        errand = self._errands.get(notification.tid)
        if errand is not None and errand.passage is not None:
            self._advance(notification.tid, errand, notification)
            return
        if is_ptrace(notification.arch, notification.number):
            self._step_aside(notification)
            return
        if self._whole_tree and notification.tid not in self._tree.tracees:
            self._seize(notification, tracer.WHOLE_TREE)
        abi = abi_of(notification.arch, notification.number)
        if abi is None:
            self._listener.refuse(notification.id, errno.ENOSYS)
            return
        passage = self._execs.notified(notification, abi)
        if passage is not None:
            self._start(passage)

    def _seize(self, notification: Notification, options: int) -> bool:
        """Trace the caller, if no debugger has it."""
        tid = notification.tid
        if tid in self._tree.tracees:
            return True
        try:
            tracer.seize(tid, options)
        except (PermissionError, ProcessLookupError):
            return False
        self._tree.add(tid, process_of(tid))
        if self._listener.is_valid(notification.id):
            return True
        # The caller died and its number was used again: this is a stranger.
        self._let_go(tid, lambda: None)
        return False

    def _start(self, passage: Passage) -> None:
        notification = passage.request.notification
        tid = notification.tid
        options = tracer.WHOLE_TREE if self._whole_tree else tracer.ONE_EXEC
        if tid in self._errands or not self._seize(notification, options):
            self._execs.refuse_untraceable(passage)
            return

        def finish(pid: int, outcome: Any) -> None:
            self._execs.arrived(pid, passage, outcome)
            if self._whole_tree:
                if passage.met_stop:
                    tracer.interrupt(pid)  # it then reports the group-stop, if that lasts
                tracer.resume(pid)
            else:
                tracer.detach(pid)
                self._tree.forget(pid)

        deadline = time.monotonic() + _ERRAND_SECONDS
        errand = self._errands[tid] = Errand(passage.travel(), finish, deadline, passage)
        self._advance(tid, errand, None)

    def _step_aside(self, notification: Notification) -> None:
        """Let go of the thread that a notified ptrace(2) is about, then let the call through."""
        tid = wanted_tracee(notification, self._tree.tracees)
        id_ = notification.id
        if tid is None:
            self._listener.let_through(id_)
        elif tid in self._errands:
            self._listener.refuse(id_, errno.EPERM)
        elif notification.arguments[0] == PTRACE_TRACEME:
            # The caller is in the call: it stops as it leaves it, and then calls again.
            self._let_go(tid, lambda: None)
            self._listener.refuse(id_, ERESTARTNOINTR)
        else:
            self._let_go(tid, lambda: self._listener.let_through(id_))

    def _let_go(self, tid: int, then: Callable[[], object]) -> None:
        self._bystanders.add(self._tree.tracees[tid].process)
        tracer.interrupt(tid)
        deadline = time.monotonic() + _ERRAND_SECONDS
        errand = Errand(let_go(tid, then), lambda tid, _: self._tree.forget(tid), deadline)
        self._errands[tid] = errand
        self._advance(tid, errand, None)
