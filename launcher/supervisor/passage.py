"""One routed exec, from the notification to the container's program: the recipe.

A generator, since it waits for stops and notifications of its process while the loop serves the
others: threads of the same caller must be reaped before its exec can finish. It is sent wait
statuses and notifications. When it returns, its process is stopped and may be resumed; a process
that dies sends nothing any more, and the loop drops the generator.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from launcher.supervisor import memory, tracer
from launcher.supervisor.descriptors import free_numbers, leading_back, open_descriptors
from launcher.supervisor.inject import Batch, InjectionFailed, Step
from launcher.supervisor.itinerary import Departure, Itinerary
from launcher.supervisor.machine import ENTERED, ERESTARTNOINTR, ERESTARTSYS, MACHINE, Abi
from launcher.supervisor.mounts import mount_id, mount_id_of
from launcher.supervisor.notify import Listener, Notification
from launcher.supervisor.resolver import Shell
from launcher.supervisor.routes import Where
from launcher.supervisor.vessel import ENTRY
from nsstages.syscalls import AT_EMPTY_PATH, Call

_NOT_YET: Final = frozenset((ENTERED, ERESTARTSYS, ERESTARTNOINTR))
_MASK: Final = 2**64 - 1
_EXIT_STATUS: Final = 126

Event = int | Notification
Waiting = Generator[None, Event, Event]


@dataclass(frozen=True, slots=True)
class Request:
    """A notified exec of the program ``path`` of the container."""

    notification: Notification
    abi: Abi
    path: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a passage ended: ``error`` 0 when the container's program is about to run."""

    error: int = 0
    text: str = ""


class Vessel:
    """The vessel's file as the shell's mount namespace has it, readable."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._mount = mount_id_of(fd)
        self._path = os.readlink(f"/proc/self/fd/{fd}")

    def is_run_by(self, pid: int) -> bool:
        """Tell whether ``pid`` runs the vessel: the same path of the same mount."""
        exe = f"/proc/{pid}/exe"
        return mount_id(exe) == self._mount and os.readlink(exe) == self._path


class Passage:
    """The state of one routed exec; ``tid`` changes when a thread's exec makes it the process."""

    def __init__(
        self,
        request: Request,
        listener: Listener,
        vessel: Vessel,
        shell: Shell,
        itinerary: Itinerary,
    ) -> None:
        self.request = request
        self.tid = request.notification.tid
        self._listener = listener
        self._vessel = vessel
        self._shell = shell
        self._itinerary = itinerary
        self._mask = 0
        self.met_stop = False  # the process group was stopped meanwhile, and may still be

    def travel(self) -> Generator[None, Event, Outcome]:
        """Route the exec. Raises OSError or InjectionFailed when the process must be killed."""
        number, error = self._stop_caller()
        status = yield from self._wait(tracer.resume, tracer.EVENT_STOP)
        self.met_stop = _signal_of(status) != signal.SIGTRAP
        if error:
            return Outcome(error, "no vessel")
        registers = tracer.get_registers(self.tid)
        self._mask = tracer.block_signals(self.tid)
        error = yield from self._exec_vessel(registers, number)
        if error:
            yield from self._close_vessel(registers, number)
            self._release()
            return Outcome(error, "exec of the vessel")
        if not self._vessel.is_run_by(self.tid):
            raise InjectionFailed("not the vessel", error)
        failure = yield from self._sail()
        if failure is not None:
            self._complain(failure)
            return Outcome(failure.error, str(failure))
        self._release()
        return Outcome()

    def _stop_caller(self) -> tuple[int, int]:
        """Make the caller stop as it leaves its call; return (vessel's number, errno) there."""
        id_ = self.request.notification.id
        # Before the answer: afterwards the caller would run on.
        tracer.interrupt(self.tid)
        try:
            number = self._listener.add_fd(id_, self._vessel.fd)
        except OSError as error:
            code = error.errno or 0
            self._listener.refuse(id_, code)
            return -1, code
        self._listener.refuse(id_, ERESTARTNOINTR)
        return number, 0

    def _exec_vessel(self, registers: tracer.Registers, number: int) -> Generator[None, Event, int]:
        """Run execveat(vessel) in place of the caller's call; return its errno, 0 at the vessel."""
        call = type(registers).from_buffer_copy(registers)
        self._rewrite(call, number)
        tracer.set_registers(self.tid, call)
        error = ENTERED
        # To the exit of the call, since a failed one leaves no other trace. A SIGSTOP makes it
        # start again.
        while error in _NOT_YET:
            tracer.resume_to_syscall(self.tid)
            event = yield from self._wait(tracer.resume_to_syscall, tracer.EVENT_EXEC)
            while isinstance(event, Notification):
                self._listener.let_through(event.id)
                event = yield from self._wait(tracer.resume_to_syscall, tracer.EVENT_EXEC)
            if _event_of(event) == tracer.EVENT_EXEC:
                return 0
            error = -tracer.peek_register(self.tid, MACHINE.RESULT)
        return error

    def _rewrite(self, call: tracer.Registers, number: int) -> None:
        """Turn execve(path, argv, envp) into execveat(vessel, "", argv, envp, AT_EMPTY_PATH).

        "" is the end of the caller's own path: nothing is written into its memory, which a
        vfork(2) child shares with its parent.
        """
        abi = self.request.abi
        given = self.request.notification
        first = 1 if given.number == abi.execveat else 0
        path, argv, envp = given.arguments[first : first + 3]
        empty = path + len(memory.read_string(self.tid, path)) if path else 0
        values = (number, empty, argv, envp, AT_EMPTY_PATH)
        for name, value in zip(abi.arguments, values, strict=False):
            setattr(call, name, value)
        setattr(call, MACHINE.NUMBER, abi.execveat)
        setattr(call, MACHINE.RESULT, -ERESTARTNOINTR & _MASK)

    def _close_vessel(
        self, registers: tracer.Registers, number: int
    ) -> Generator[None, Event, None]:
        """Close the vessel in the caller, and let the caller's exec fail as the vessel's did."""
        result = getattr(tracer.get_registers(self.tid), MACHINE.RESULT)
        call = type(registers).from_buffer_copy(registers)
        at = getattr(call, MACHINE.INSTRUCTION) - MACHINE.SYSCALL_SIZE
        setattr(call, MACHINE.INSTRUCTION, at)
        setattr(call, MACHINE.RESULT, self.request.abi.close)
        setattr(call, MACHINE.NUMBER, _MASK)
        setattr(call, self.request.abi.arguments[0], number)
        tracer.set_registers(self.tid, call)
        for _ in ("entry", "exit"):
            tracer.resume_to_syscall(self.tid)
            yield from self._wait(tracer.resume_to_syscall, 0)
        setattr(registers, MACHINE.RESULT, result)
        setattr(registers, MACHINE.NUMBER, _MASK)
        tracer.set_registers(self.tid, registers)

    def _sail(self) -> Generator[None, Event, InjectionFailed | None]:
        """From the vessel's exec stop to that of the container's program."""
        registers = tracer.get_registers(self.tid)
        if getattr(registers, MACHINE.INSTRUCTION) != ENTRY:
            raise InjectionFailed("not at the vessel's entry", 0)
        departure = self._departure(getattr(registers, MACHINE.STACK))
        kept = set(departure.open_fds) - set(departure.unwanted_fds)
        numbers = free_numbers(len(self._itinerary.fds), kept)
        batch = Batch(self.tid, self._itinerary.steps(departure, numbers))
        batch.load(registers)
        tracer.resume(self.tid)
        while True:
            event = yield from self._wait(tracer.resume, tracer.EVENT_EXEC)
            if not isinstance(event, Notification):
                break
            self._answer(event, numbers)
        if _event_of(event) == tracer.EVENT_EXEC:
            return None
        failure = batch.failure(tracer.get_registers(self.tid))
        return failure or InjectionFailed("stopped early", 0)

    def _answer(self, notification: Notification, numbers: tuple[int, ...]) -> None:
        """Answer the vessel's two execs: the first only fetches the descriptors."""
        if notification.number == MACHINE.ABIS[0].execve:
            self._listener.let_through(notification.id)
            return
        for fd, number in zip(self._itinerary.fds, numbers, strict=True):
            self._listener.add_fd(notification.id, fd, number)
        self._listener.succeed(notification.id)

    def _departure(self, stack: int) -> Departure:
        pid = self.tid
        place = self._shell.place_behind(f"/proc/{pid}/cwd")
        routing = self._shell.routing
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            environment = file.readall() or b""
        fds = open_descriptors(pid)
        if routing.oom_score_adj is not None:
            _write(f"/proc/{pid}/oom_score_adj", str(routing.oom_score_adj))
        return Departure(
            path=self.request.path,
            argv=stack + 8,
            environment=tuple(environment.split(b"\0")),
            cwd=place.path if place.where is Where.CONTAINER else routing.cwd,
            open_fds=fds,
            unwanted_fds=leading_back(pid, fds),
        )

    def _complain(self, failure: InjectionFailed) -> None:
        """Have the vessel write one line to its standard error and exit once it is resumed."""
        line = f"launcher: {self.request.path}: {failure}\n".encode(errors="replace")
        steps = (
            Step(Call("write", (2, line, len(line))), "write", may_fail=True),
            Step(Call("exit_group", (_EXIT_STATUS,)), "exit"),
        )
        Batch(self.tid, steps).load(tracer.get_registers(self.tid))

    def _release(self) -> None:
        """Give the signal mask back."""
        tracer.set_signal_mask(self.tid, self._mask)

    def _wait(self, go: Callable[..., None], wanted: int) -> Waiting:
        """Return the next event but interference: SIGSTOP, which cannot be blocked, and stops.

        The process does not stop now, in the middle of things; whoever resumes it afterwards asks
        whether it still has to (``met_stop``).
        """
        while True:
            event = yield
            if isinstance(event, Notification):
                return event
            kind = _event_of(event)
            if kind == 0 and _signal_of(event) == signal.SIGSTOP:
                self.met_stop = True
                go(self.tid, signal.SIGSTOP)
            elif kind != tracer.EVENT_STOP or wanted == tracer.EVENT_STOP:
                return event
            else:
                go(self.tid)


def _event_of(event: Event) -> int:
    return -1 if isinstance(event, Notification) else event >> 16


def _signal_of(event: Event) -> int:
    return 0 if isinstance(event, Notification) else event >> 8 & 0xFF


def _write(path: str, text: str) -> None:
    """Write to /proc; without the right to (CAP_SYS_RESOURCE) the value stays."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except PermissionError:
        return
