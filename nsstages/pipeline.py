"""The manager's side: start stage 0, collect what comes up, keep the channel to stage 2.

The caller has one thread: a fork carries only that one, and locks held by others would stay
locked for ever. It becomes a child subreaper, so that stage 2 is its child when stages 0 and 1
are gone (os.fork cannot do runc's CLONE_PARENT).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nsstages import stage0_parent
from nsstages.bootstrap import Bootstrap
from nsstages.channel import Channel, Message, pair
from nsstages.errors import DeadlineExceeded, Failure, PeerDied, StageFailed
from nsstages.init_config import InitConfig
from nsstages.isolation import exit_status_text
from nsstages.messages import COMM, INIT, MANAGER, PARENT, Word
from nsstages.process import run_to_exit
from nsstages.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from nsstages.trace import Recorder
from nsstages.typed import to_payload

_REAP_SECONDS = 2.0


@dataclass(slots=True)
class Pipeline:
    """A running pipeline; ``init`` is the channel to stage 2, valid after ``receive_pids``."""

    bootstrap: Bootstrap
    parent: Channel
    init: Channel
    stage0_pid: int
    group: int  # the process group of stages 0, 1, and of 2 until it has its CONFIG
    stage2_pid: int = 0

    def receive_fuse_device(self) -> int:
        """Wait for the next /dev/fuse that stage 1 mounted, in the bootstrap's order; the caller
        owns the descriptor.
        """
        return self._from_parent(Word.FUSE_FD).fds[0]

    def receive_pids(self) -> int:
        """Wait until stages 0 and 1 are done; return stage 2's pid, now a child of ours."""
        self.stage2_pid = int(self._from_parent(Word.PIDS).payload["stage2"])
        os.waitpid(self.stage0_pid, 0)
        self.stage0_pid = 0
        self.parent.close()
        return self.stage2_pid

    def configure(self, config: InitConfig, fds: Sequence[int] = ()) -> None:
        """Send CONFIG to stage 2. Raises StageFailed when stage 2 is dead."""
        try:
            self.init.send(Word.CONFIG, to_payload(config), fds)
        except PeerDied as error:
            raise self.death_of_init(error) from error

    def death_of_init(self, error: PeerDied) -> StageFailed:
        """Turn stage 2's end of file into a failure that says how it died; reaps it."""
        how = _reap(self.stage2_pid)
        self.stage2_pid = 0
        return StageFailed(Failure(INIT, f"before {error.waiting_for}", text=f"died ({how})"))

    def abort(self) -> None:
        """Kill and reap what is left of the stages; safe to call at any time, any number."""
        for pid in (self.stage0_pid, self.stage2_pid):
            if pid:
                _kill(pid)
                _reap(pid)
        self.stage0_pid = self.stage2_pid = 0
        self.parent.close()
        self.init.close()
        while orphans := _children_in(self.group):  # stage 2 comes to us when stage 1 is gone
            for pid in orphans:
                _kill(pid)
                _reap(pid)

    def _from_parent(self, word: Word) -> Message:
        timeout = self.bootstrap.timeout + 2  # stage 0 reports its own deadline first
        try:
            return self.parent.expect(word, timeout=timeout)
        except PeerDied as error:
            how = _reap(self.stage0_pid)
            self.stage0_pid = 0
            raise StageFailed(Failure(PARENT, f"before {word}", text=f"died ({how})")) from error


def start(bootstrap: Bootstrap, fds: Sequence[int], recorder: Recorder) -> Pipeline:
    """Fork stage 0 and send it the bootstrap with its descriptors, which stay the caller's."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    ours, for_parent = pair()
    init_ours, for_init = pair()
    pid = os.fork()
    if not pid:
        child_recorder = recorder.for_process(PARENT)
        up = Channel(for_parent, PARENT, MANAGER, child_recorder)
        keep = [for_init.fileno(), *([recorder.sink] if recorder.sink is not None else [])]
        run_to_exit(lambda: stage0_parent.run(up, for_init, child_recorder), up, COMM[PARENT], keep)
    os.setpgid(pid, pid)
    for_parent.close()
    for_init.close()
    pipeline = Pipeline(
        bootstrap,
        Channel(ours, MANAGER, PARENT, recorder),
        Channel(init_ours, MANAGER, INIT, recorder),
        stage0_pid=pid,
        group=pid,
    )
    try:
        pipeline.parent.send(Word.BOOTSTRAP, bootstrap.pack(), fds)
    except PeerDied:
        how = _reap(pid)
        pipeline.stage0_pid = 0
        pipeline.abort()
        failure = Failure(PARENT, "before BOOTSTRAP", text=f"died ({how})")
        raise StageFailed(failure) from None
    except BaseException:
        pipeline.abort()
        raise
    return pipeline


def _kill(pid: int) -> None:
    """Kill a stage, and with a leader (stage 0, a program) its process group."""
    with suppress(ProcessLookupError):
        (os.killpg if os.getpgid(pid) == pid else os.kill)(pid, signal.SIGKILL)


def _reap(pid: int) -> str:
    """Wait for a dying child, at most two seconds; return how it ended."""
    deadline = time.monotonic() + _REAP_SECONDS
    while time.monotonic() < deadline:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return "gone"
        if done:
            return exit_status_text(status)
        time.sleep(0.005)
    raise DeadlineExceeded(MANAGER, f"process {pid}", "end", _REAP_SECONDS)


def _children_in(group: int) -> list[int]:
    """Return our children of a process group: stages adopted when those above them died."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [pid for pid in map(int, children) if os.getpgid(pid) == group]
