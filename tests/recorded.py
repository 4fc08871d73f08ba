"""Traces as the recorder writes them: of two real processes, and of whole runs, made by a script.

The scripted runs say what a run on a machine with everything says, in the order of its words, so
that the tests of the report and the diagrams need neither privilege nor a container.
"""

from __future__ import annotations

import os
from typing import Any

from nsstages.channel import Channel, pair
from nsstages.messages import CHILD, COMM, FUSE, INIT, MANAGER, PARENT, SUPERVISOR, Word
from nsstages.trace import Recorder, create_sink, read_sink

Event = dict[str, Any]

PIDS = {MANAGER: 4700, PARENT: 4703, CHILD: 4704, INIT: 1, FUSE: 4701, SUPERVISOR: 4702}
HOST = {kind: 4026531830 + n for n, kind in enumerate(("user", "mnt", "pid", "net", "uts"))}
SHELL = 4706


class Script:
    """Writes events with the clocks that the recorders of real processes would have."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._clocks: dict[str, int] = {}

    def event(self, process: str, kind: str, **fields: Any) -> None:
        """Record one event of ``process``, a tenth of a millisecond after the last."""
        now = 1_700_000_000_000_000 + 100 * len(self.events)
        self._clocks[process] = max(self._clocks.get(process, 0) + 1, now)
        self.events.append(
            {
                "v": 1,
                "clock": self._clocks[process],
                "time": now / 1_000_000,
                "process": process,
                "pid": PIDS[process],
                "kind": kind,
                **fields,
            }
        )

    def start(self, process: str, parent: str = "") -> None:
        """Record the start of a process, whose clock goes on from its parent's."""
        self._clocks[process] = self._clocks.get(parent, 0)
        self.event(process, "process.start", role=process, comm=COMM.get(process, "launcher"))

    def say(self, sender: str, receiver: str, word: str, **payload: Any) -> None:
        """Record a word on both sides."""
        self.event(sender, "word.sent", peer=receiver, word=word, payload=payload)
        latest = max(self._clocks[sender], self._clocks.get(receiver, 0))
        self._clocks[receiver] = latest
        self.event(receiver, "word.received", peer=sender, word=word, payload=payload)

    def step(self, process: str, step: str, syscall: str, errno: int = 0, **objects: Any) -> None:
        """Record a step of 42 microseconds."""
        self.event(
            process, "step", step=step, syscall=syscall, errno=errno, duration_us=42, **objects
        )  # fmt: skip

    def trace(self) -> list[Event]:
        """Return the events in causal order, as read_sink() does."""
        return sorted(self.events, key=lambda event: (event["clock"], event["time"]))


def two_processes() -> list[Event]:
    """Record a real pair of processes that talk over a channel and share a sink."""
    sink = create_sink()
    recorder = Recorder(MANAGER, sink)
    ours, theirs = pair()
    recorder.event("process.start", role=MANAGER, comm="launcher")
    pid = os.fork()
    if not pid:
        status = 1
        try:
            ours.close()
            _answer(Channel(theirs, PARENT, MANAGER, recorder.for_process(PARENT)))
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    with Channel(ours, MANAGER, PARENT, recorder) as channel:
        channel.send(Word.BOOTSTRAP, {"version": 1, "environment": ["SECRET=1"]})
        channel.expect(Word.PIDS, timeout=10)
    _, status = os.waitpid(pid, 0)
    recorder.event("result", status=os.waitstatus_to_exitcode(status), error="")
    events = read_sink(sink)
    os.close(sink)
    return events


def _answer(channel: Channel) -> None:
    channel.recorder.event("process.start", role=PARENT, comm=COMM[PARENT])
    channel.expect(Word.BOOTSTRAP, timeout=10)
    with channel.recorder.step("look at ourselves", "stat", path="/proc/self"):
        os.stat("/proc/self")
    channel.send(Word.PIDS, {"stage1": 11, "stage2": 12})
    channel.recorder.event("process.end", role=PARENT, status=0)


def attach() -> list[Event]:
    """An attach with every process: own user namespace, FUSE, supervision, a routed exec."""
    s = Script()
    _start_of_attach(s)
    s.say(FUSE, MANAGER, Word.FUSE_SERVING)
    s.say(MANAGER, INIT, Word.CONFIG, process={"argv": ["bash"]})
    s.step(INIT, "switch root", "pivot_root")
    s.event(INIT, "skipped", target="/etc/hosts", errno=2)
    inside = {**HOST, "mnt": 4026532250, "user": 4026532251, "pid": 4026532252}
    s.event(INIT, "state", namespaces=inside, pid_inside=1, cwd="/")
    s.say(INIT, MANAGER, Word.SUPERVISE_PLS)
    s.say(MANAGER, SUPERVISOR, Word.SUPERVISE_PLS)
    s.say(SUPERVISOR, MANAGER, Word.SUPERVISE_ACK)
    s.say(MANAGER, INIT, Word.SUPERVISE_ACK)
    s.say(INIT, MANAGER, Word.READY)
    s.say(MANAGER, INIT, Word.RUN)
    s.event(SUPERVISOR, "exec", subject=SHELL, path="/bin/bash", routed=False, view="host", errno=0)
    s.say(INIT, MANAGER, Word.STARTED)
    s.event(SUPERVISOR, "fork", subject=4707, parent=SHELL)
    s.event(
        SUPERVISOR, "exec", subject=4707, path="/c/bin/ls", routed=True, view="container", errno=0
    )
    s.event(SUPERVISOR, "exit", subject=4707, status=0)
    s.event(SUPERVISOR, "exit", subject=SHELL, status=3 << 8)
    s.say(INIT, MANAGER, Word.EXITED, status=3 << 8)
    s.event(INIT, "process.end", role=INIT, status=0)
    s.event(SUPERVISOR, "process.end", role=SUPERVISOR, status=0)
    s.event(FUSE, "process.end", role=FUSE, status=0)
    s.event(MANAGER, "result", status=3, error="")
    return s.trace()


def child_failure() -> list[Event]:
    """Stage 1 may not join a namespace; stage 0 passes its FAILED on."""
    s = Script()
    s.start(MANAGER)
    s.start(PARENT, MANAGER)
    s.say(MANAGER, PARENT, Word.BOOTSTRAP, version=1)
    s.start(CHILD, PARENT)
    s.step(CHILD, "join net namespace", "setns", errno=1)
    failure = {
        "stage": CHILD, "step": "join net namespace", "syscall": "setns", "errno": 1,
        "text": "Operation not permitted", "hint": "does this user own the target?",
    }  # fmt: skip
    s.event(CHILD, "failed", **failure)
    s.say(CHILD, PARENT, Word.FAILED, **failure)
    s.event(PARENT, "failed", **failure)
    s.say(PARENT, MANAGER, Word.FAILED, **failure)
    error = "stage 1 (CHILD): join net namespace: setns: Operation not permitted [EPERM]"
    s.event(MANAGER, "result", status=None, error=error)
    return s.trace()


def killed_stage() -> list[Event]:
    """Stage 1 is killed while stage 0 answers it: a word that nobody receives."""
    s = Script()
    s.start(MANAGER)
    s.start(PARENT, MANAGER)
    s.say(MANAGER, PARENT, Word.BOOTSTRAP, version=1)
    s.start(CHILD, PARENT)
    s.say(CHILD, PARENT, Word.USERMAP_PLS)
    s.event(PARENT, "word.sent", peer=CHILD, word=Word.USERMAP_ACK, payload={})
    failure = {
        "stage": CHILD, "step": "before RECVPID_PLS", "syscall": "", "errno": 0,
        "text": "died (SIGKILL)", "hint": "",
    }  # fmt: skip
    s.event(PARENT, "failed", **failure)
    s.say(PARENT, MANAGER, Word.FAILED, **failure)
    error = "stage 1 (CHILD): before RECVPID_PLS: died (SIGKILL)"
    s.event(MANAGER, "result", status=None, error=error)
    return s.trace()


def _start_of_attach(s: Script) -> None:
    s.start(MANAGER)
    s.event(MANAGER, "state", namespaces=HOST, pid_inside=PIDS[MANAGER])
    s.start(FUSE, MANAGER)
    s.start(SUPERVISOR, MANAGER)
    s.start(PARENT, MANAGER)
    s.say(MANAGER, PARENT, Word.BOOTSTRAP, version=1, joins=["pid"], create=["user"], timeout=10)
    s.start(CHILD, PARENT)
    s.step(CHILD, "join pid namespace", "setns", namespace="pid")
    s.step(CHILD, "create user namespace", "unshare")
    s.say(CHILD, PARENT, Word.USERMAP_PLS)
    s.step(PARENT, "write id maps", "write", uid_map="0 100000 65536\n", gid_map="0 0 4294967295\n")
    s.say(PARENT, CHILD, Word.USERMAP_ACK)
    s.say(CHILD, PARENT, Word.TIMEOFFSETS_PLS)
    s.say(PARENT, CHILD, Word.TIMEOFFSETS_ACK)
    s.step(CHILD, "mount FUSE", "fsmount")
    s.say(CHILD, PARENT, Word.FUSE_FD)
    s.say(PARENT, MANAGER, Word.FUSE_FD)
    outer = {**HOST, "mnt": 4026532250, "user": 4026532251}
    s.event(CHILD, "state", namespaces=outer)
    s.say(CHILD, PARENT, Word.RECVPID_PLS, pid=4705)
    s.start(INIT, CHILD)
    s.say(PARENT, CHILD, Word.RECVPID_ACK)
    s.say(CHILD, PARENT, Word.CHILD_FINISH)
    s.event(CHILD, "process.end", role=CHILD, status=0)
    s.say(PARENT, INIT, Word.GRANDCHILD)
    s.say(INIT, PARENT, Word.CHILD_FINISH)
    s.say(PARENT, MANAGER, Word.PIDS, stage1=4704, stage2=4705)
    s.event(PARENT, "process.end", role=PARENT, status=0)
    s.say(MANAGER, FUSE, Word.FUSE_FD)
