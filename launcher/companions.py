"""The manager's two companions, the FUSE server and the supervisor: forked early, ended last.

Two processes, not two threads: a tracer that reads memory backed by a FUSE file would wait for
itself. Both are forked before the pipeline and do their slow imports while it runs.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from launcher.imports import sparing
from nsstages.channel import Channel, Message, pair
from nsstages.errors import Failure, NsstagesError, PeerDied, StageFailed
from nsstages.isolation import exit_status_text
from nsstages.messages import COMM, FUSE, MANAGER, SUPERVISOR, Word
from nsstages.process import run_to_exit
from nsstages.trace import Recorder
from nsstages.typed import to_payload

if TYPE_CHECKING:
    from launcher.hostfs.options import HostfsOptions
    from launcher.supervisor.options import SupervisorOptions

_LAST_SECONDS: Final = 2.0  # from the closing of a process's descriptors to its end


@dataclass(slots=True)
class Companion:
    """A companion process: ``name`` of messages.py, and the manager's channel to it."""

    name: str
    pid: int
    pidfd: int
    channel: Channel
    status: int | None = None

    def ask(self, word: Word, fds: Iterable[int], answer: Word, timeout: float) -> Message:
        """Say ``word`` and wait for ``answer``; a dead companion is named with how it died."""
        try:
            self.channel.send(word, {}, tuple(fds))
            return self.channel.expect(answer, timeout=timeout)
        except PeerDied as error:
            raise self.death(f"before {answer}") from error

    def death(self, when: str) -> StageFailed:
        """Return the failure that says how this companion died, by its own last word if any."""
        try:
            self.channel.expect(Word.FAILED, timeout=0)
        except StageFailed as told:
            return told
        except NsstagesError:
            self.wait(1.0)
        how = "closed its channel" if self.status is None else exit_status_text(self.status)
        return StageFailed(Failure(self.name, when, text=f"died ({how})"))

    def wait(self, seconds: float) -> bool:
        """Wait for the end and reap; tell whether it came in time."""
        if self.status is not None:
            return True
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(seconds * 1000):
            return False
        _, self.status = os.waitpid(self.pid, 0)
        return True

    def has_died(self, seconds: float) -> bool:
        """Tell whether it dies within ``seconds``, and not of its own will.

        Its end of the channel closes with its other descriptors, whose closing is what others
        notice; a large process can then take a while to its end. That end is waited for.
        """
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        poller.register(self.channel, 0)  # POLLHUP is always told
        gone = self.status is not None or bool(poller.poll(seconds * 1000))
        return gone and self.wait(_LAST_SECONDS) and self.status != 0

    def end(self, grace: float) -> None:
        """Close the channel, which asks it to end; kill it after ``grace`` seconds."""
        self.channel.close()
        if not self.wait(grace):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait(5.0)
        os.close(self.pidfd)


def start_fuse_server(recorder: Recorder) -> Companion:
    """Fork a FUSE server; it lives in the host's namespaces and waits to be told what to serve.

    Early, as soon as the configuration is known to be right: its imports take longer than all
    that the manager does until it needs the server.
    """

    def serve(channel: Channel, own: Recorder) -> None:
        with sparing():
            from launcher.hostfs.server import serve_as_told
        serve_as_told(channel, own)

    return _start(FUSE, serve, recorder, ())


def tell_options(server: Companion, options: HostfsOptions) -> None:
    """Tell a FUSE server what to serve; the container's root travels as a descriptor."""
    fds = [] if options.container_root_fd is None else [options.container_root_fd]
    try:
        server.channel.send(Word.OPTIONS, to_payload(options), fds)
    except PeerDied as error:
        raise server.death("before OPTIONS") from error


def start_supervisor(
    options: SupervisorOptions, recorder: Recorder, keep: Iterable[int]
) -> Companion:
    """Fork the supervisor; it waits for the listener of the process to supervise."""

    def supervise(channel: Channel, own: Recorder) -> None:
        with sparing():
            from launcher.supervisor.loop import supervise
        supervise(channel, options, own)

    return _start(SUPERVISOR, supervise, recorder, keep)


def _start(
    name: str,
    job: Callable[[Channel, Recorder], None],
    recorder: Recorder,
    keep: Iterable[int],
) -> Companion:
    ours, theirs = pair()
    pid = os.fork()
    if not pid:
        own = recorder.for_process(name)
        up = Channel(theirs, name, MANAGER, own)
        kept = [fd for fd in (*keep, own.sink) if fd is not None and fd != -1]
        run_to_exit(lambda: job(up, own), up, COMM[name], kept)
    theirs.close()
    return Companion(name, pid, os.pidfd_open(pid), Channel(ours, MANAGER, name, recorder))
