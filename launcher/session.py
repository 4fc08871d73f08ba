"""One launch as the manager runs it: companions, pipeline, start gate, waiting, the end.

The manager's only event loop is here. Every wait watches the processes that could die meanwhile,
and `end` leaves no process of the launch behind, whatever state it was in.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Final

from launcher import new_cgroups
from launcher.causes import Interrupted, Interruption, TargetDied, TimeLimit, has_ended
from launcher.companions import (
    Companion,
    start_fuse_server,
    start_supervisor,
    tell_options,
)
from launcher.phases import privileged
from launcher.plan import Plan
from launcher.signals import Signals
from launcher.terminal import Pump, RawTerminal
from launcher.user_namespaces import user_namespace_with
from nsstages import cgroups, mounts, pipeline
from nsstages.channel import close_all
from nsstages.errors import Failure, PeerDied, StageFailed
from nsstages.messages import COMM, INIT, Word
from nsstages.pipeline import Pipeline
from nsstages.trace import Recorder

_SERVING_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 1.0
_ENDING_SECONDS: Final = 0.2  # from a container's end to that of its last process


class Session:
    """A launch in progress. Methods are called in their order, `end` always."""

    def __init__(self, plan: Plan, recorder: Recorder, servers: Iterable[Companion] = ()) -> None:
        self.plan = plan
        self.recorder = recorder
        self.fuse = list(servers)
        self.supervisor: Companion | None = None
        self.pipeline: Pipeline | None = None
        self.pump: Pump | None = None
        self.program_pidfd = -1
        self.status: int | None = None
        self._companions: list[Companion] = []
        self._cgroups: list[str] = []
        self._interruption = Interruption()
        self._signals: Signals | None = None
        self._until_end = ExitStack()
        self._has_ended = False

    def start(self) -> int:
        """Fork companions and stages; return stage 2's pid when stages 0 and 1 are done.

        From here to the start gate a signal ends the launch; before, it ends this process.
        """
        plan = self.plan
        self._until_end.enter_context(self._interruption)
        while len(self.fuse) > len(plan.hostfs):
            self.fuse.pop().end(0)
        while len(self.fuse) < len(plan.hostfs):
            self.fuse.append(start_fuse_server(self.recorder))
        for server, options in zip(self.fuse, plan.hostfs, strict=True):
            tell_options(server, options)
        self._companions += self.fuse
        self._interruption.watch(*(server.channel for server in self.fuse))
        self.pipeline = self._start_pipeline()
        self._interruption.watch(self.pipeline.parent, self.pipeline.init)
        if plan.supervisor is not None:
            # After stage 0, which has more to do and needs the other processor for it.
            keep = list(plan.supervisor.descriptors())
            self.supervisor = start_supervisor(plan.supervisor, self.recorder, keep)
            self._companions.append(self.supervisor)
            self._interruption.watch(self.supervisor.channel)
        devices: list[int] = []
        try:
            devices += [self.pipeline.receive_fuse_device() for _ in self.fuse]
            pid = self.pipeline.receive_pids()
            for server, device in zip(self.fuse, devices, strict=True):
                # After the pids: the server's slow imports run beside the pipeline's work.
                server.ask(Word.FUSE_FD, [device], Word.FUSE_SERVING, _SERVING_SECONDS)
        finally:
            close_all(devices)
        return pid

    def _start_pipeline(self) -> Pipeline:
        made: list[int] = []
        fds = []
        try:
            for descriptor in self.plan.descriptors:
                if descriptor.maps is not None:
                    with self.recorder.step("create user namespace for maps", "unshare"):
                        made.append(user_namespace_with(*descriptor.maps))
                if path := descriptor.new_cgroup:
                    with self.recorder.step("create cgroup", "mkdir", path=path):
                        made.append(new_cgroups.create(path, self._cgroups))
                fds.append(descriptor.fd if descriptor.fd != -1 else made[-1])
            return pipeline.start(self.plan.bootstrap, fds, self.recorder)
        finally:
            close_all(made)

    @privileged
    def create(self, pid: int) -> None:
        """Move stage 2 into the target's cgroups, configure it, serve it until it is READY.

        Into the cgroup only now, after FUSE is mounted: a devices cgroup refuses /dev/fuse.
        """
        stages = self._stages()
        enter_cgroups(self.plan.cgroup_directories, pid)
        fds = [descriptor.fd for descriptor in self.plan.config_descriptors]
        stages.configure(self.plan.init, fds)
        while self.program_pidfd == -1:
            self._serve_request(stages)

    def _serve_request(self, stages: Pipeline) -> None:
        words = (Word.MOUNT_FD_PLS, Word.TERMINAL, Word.SUPERVISE_PLS, Word.READY)
        try:
            message = stages.init.expect(*words, timeout=self.plan.init.timeout)
        except PeerDied as error:
            raise self._cause(stages.death_of_init(error)) from error
        except StageFailed as error:
            raise self._cause(error) from error
        if message.word is Word.MOUNT_FD_PLS:
            self._send_mount(stages, str(message.payload["source"]))
        elif message.word is Word.TERMINAL:
            self.pump = Pump(message.fds[0])
            self.pump.resize()
        elif message.word is Word.SUPERVISE_PLS:
            self._hand_over(stages, message.fds)
        else:
            self.program_pidfd = message.fds[0]

    def _send_mount(self, stages: Pipeline, source: str) -> None:
        with self.recorder.step(f"clone {source} for stage 2", "open_tree"):
            fd = mounts.clone_tree(source)
        stages.init.send(Word.MOUNT_FD, {}, [fd])
        os.close(fd)

    def _hand_over(self, stages: Pipeline, fds: tuple[int, ...]) -> None:
        if self.supervisor is None:
            raise StageFailed(Failure(INIT, "get supervised", text="no supervisor in the plan"))
        try:
            self.supervisor.ask(Word.SUPERVISE_PLS, fds, Word.SUPERVISE_ACK, 30.0)
        finally:
            close_all(fds)
        stages.init.send(Word.SUPERVISE_ACK)

    def _cause(self, error: StageFailed) -> StageFailed:
        """Prefer a dead companion to what its death made of stage 2."""
        for companion in self._companions:
            if companion.has_died(0.05):
                return companion.death(f"before {error.failure.step}")
        return error

    def reason_for(self, error: Exception) -> Exception:
        """Return what was behind a failure of the launch, which may be the failure itself.

        Called after `end`: a container's first process is seen dead only when the last process of
        its PID namespace, which can be our stage 2, is reaped.
        """
        if self._interruption.number:
            return Interrupted(self._interruption.number)
        if has_ended(self.plan.target_pidfd, _ENDING_SECONDS):
            return TargetDied(f"{self.plan.target_name} has exited")
        return error

    def program_pid(self) -> int:
        """Return the program's pid, as the host counts: its pidfd knows."""
        for line in Path(f"/proc/self/fdinfo/{self.program_pidfd}").read_text().splitlines():
            if line.startswith("Pid:"):
                return int(line.split()[1])
        return -1

    def release(self) -> None:
        """Open the start gate; return when the program's exec succeeded.

        From here on signals are the program's: what comes before `monitor` waits for it.
        """
        stages = self._stages()
        self._hold_signals()
        self._interruption.check()
        stages.init.send(Word.RUN)
        try:
            stages.init.expect(Word.STARTED, timeout=self.plan.init.timeout)
        except PeerDied as error:
            # End of file: stage 2 became the program, or died before. Its name tells.
            comm = Path(f"/proc/{stages.stage2_pid}/comm").read_text().rstrip("\n")
            if self.plan.init.reaper or comm == COMM[INIT]:
                raise self._cause(stages.death_of_init(error)) from error
        except StageFailed as error:
            raise self._cause(error) from error

    def _hold_signals(self) -> Signals:
        if self._signals is None:
            signals = Signals(forward=self.plan.forward_signals)
            self._signals = self._until_end.enter_context(signals)
        return self._signals

    def monitor(self) -> int:
        """Forward signals and terminal until the program ends; return its wait status."""
        raw = RawTerminal() if self.pump is not None and os.isatty(0) else nullcontext()
        signals = self._hold_signals()
        if self.pump is not None:
            self.pump.resize()  # once more: until now nobody heard of a change
        with raw:
            deadline = time.monotonic() + self.plan.time_limit if self.plan.time_limit else None
            try:
                while self.status is None:
                    self._wait_for_event(signals, deadline)
            finally:
                if self.pump is not None:
                    self.pump.drain(_GRACE_SECONDS)
        return self.status

    def _wait_for_event(self, signals: Signals, deadline: float | None) -> None:
        stages = self._stages()
        poller = select.poll()
        poller.register(signals, select.POLLIN)
        if self.plan.init.reaper:
            poller.register(stages.init, select.POLLIN)
        for companion in self._watched():
            poller.register(companion.pidfd, select.POLLIN)
        if self.plan.target_pidfd != -1:
            poller.register(self.plan.target_pidfd, select.POLLIN)
        pumped = dict(self.pump.descriptors()) if self.pump is not None else {}
        for fd, events in pumped.items():
            poller.register(fd, events)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = dict(poller.poll(left))
        if not ready and deadline is not None and time.monotonic() >= deadline:
            raise TimeLimit(f"the time limit of {self.plan.time_limit:g} s is over")
        for fd in pumped.keys() & ready.keys():
            if self.pump is not None:
                self.pump.handle(fd, ready[fd])
        if signals.fileno() in ready:
            self._handle_signals(signals)
        self._notice_ends(stages, ready)

    def _watched(self) -> list[Companion]:
        """Return the companions that still run; they end well just before the program's end is
        told: the last process has left the mount and the tree.
        """
        return [companion for companion in self._companions if companion.status is None]

    def _handle_signals(self, signals: Signals) -> None:
        for number in signals.read():
            if number == signal.SIGWINCH:
                if self.pump is not None:
                    self.pump.resize()
            elif number != signal.SIGCHLD:
                try:
                    signal.pidfd_send_signal(self.program_pidfd, number)
                except ProcessLookupError:
                    continue

    def _notice_ends(self, stages: Pipeline, ready: dict[int, int]) -> None:
        if stages.init.fileno() in ready:
            self._read_exit(stages)
        elif not self.plan.init.reaper:
            done, status = os.waitpid(stages.stage2_pid, os.WNOHANG)
            if done:
                stages.stage2_pid = 0
                self.status = status
                if status == signal.SIGKILL and has_ended(self.plan.target_pidfd, _ENDING_SECONDS):
                    raise TargetDied(f"{self.plan.target_name} has exited")
        if self.status is not None:
            # A companion's death reaches the program, by SIGKILL from the supervisor's and SIGBUS
            # from the server's, before the kernel lets anybody know of it. Without one they end
            # about now.
            self._raise_if_companion_failed(0.2 if self.status else 0.0)
            return
        self._raise_if_companion_failed(0.0)
        if self.plan.target_pidfd in ready:
            raise TargetDied(f"{self.plan.target_name} has exited")

    def _raise_if_companion_failed(self, seconds: float) -> None:
        for companion in self._watched():
            if companion.has_died(seconds):
                raise companion.death("while the program was running")

    def _read_exit(self, stages: Pipeline) -> None:
        try:
            message = stages.init.expect(Word.EXITED, timeout=_GRACE_SECONDS)
        except PeerDied as error:
            raise self._cause(stages.death_of_init(error)) from error
        self.status = int(message.payload["status"])

    def end(self) -> None:
        """End every process of this launch and close what the session opened; once.

        No signal interrupts that: a second Ctrl-C would leave half of it behind.
        """
        if self._has_ended:
            return
        self._has_ended = True
        with self._until_end:
            self._hold_signals()
            self._end_all()

    def _end_all(self) -> None:
        if self.pipeline is not None:
            self._end_program(self.pipeline)
        if self.supervisor is not None:
            self.supervisor.end(_GRACE_SECONDS)
        if self.pipeline is not None:
            self.pipeline.abort()
        for server in self.fuse:
            server.end(_GRACE_SECONDS)
        if self.pump is not None:
            self.pump.close()
        if self.program_pidfd != -1:
            os.close(self.program_pidfd)
        for directory in reversed(self._cgroups):
            new_cgroups.remove(directory)

    def _end_program(self, stages: Pipeline) -> None:
        """Let a reaper kill what is below it: end of file on its channel asks it to."""
        stages.init.close()
        if stages.stage2_pid and self.plan.init.reaper:
            pidfd = os.pidfd_open(stages.stage2_pid)
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if poller.poll(_GRACE_SECONDS * 1000):
                os.waitpid(stages.stage2_pid, 0)
                stages.stage2_pid = 0
            os.close(pidfd)

    def _stages(self) -> Pipeline:
        if self.pipeline is None:
            raise RuntimeError("the session was not started")
        return self.pipeline


@privileged
def enter_cgroups(directories: tuple[str, ...], pid: int) -> None:
    """Move ``pid`` into each cgroup directory of the host's view."""
    fds = []
    try:
        fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in directories]
        cgroups.enter(fds, pid)
    except OSError as error:
        text = f"{error.filename}: {error.strerror}"
        raise StageFailed(
            Failure("manager", "move stage 2 into the cgroup", "write", error.errno or 0, text)
        ) from error
    finally:
        close_all(fds)
