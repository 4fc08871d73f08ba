"""Stage 0, PARENT: stays in the host's namespaces and does for stage 1 what it cannot do itself.

Stage 1 loses its rights over the host once it has a user namespace of its own, so the maps are
written from here; and only from here do pids mean what the manager understands.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from socket import socket

from nsstages import cgroups, idmap, isolation, stage1_child
from nsstages.bootstrap import Bootstrap, unpack
from nsstages.channel import Channel, close_all, pair
from nsstages.errors import Failure, PeerDied, StageFailed
from nsstages.messages import CHILD, INIT, PARENT, Word
from nsstages.trace import Recorder


@dataclass(slots=True)
class _Parent:
    bootstrap: Bootstrap
    fds: tuple[int, ...]
    manager: Channel
    recorder: Recorder
    stage1_pid: int = 0
    stage2_pid: int = 0


def run(manager: Channel, init_socket: socket, recorder: Recorder) -> None:
    """Be stage 0. ``init_socket`` is the end of the manager's channel that stage 2 will own."""
    message = manager.expect(Word.BOOTSTRAP, timeout=10)
    bootstrap = unpack(message.payload, len(message.fds))
    stage = _Parent(bootstrap, message.fds, manager, recorder)
    enter_cgroups(stage)
    child_end, for_child = pair()
    grandchild_end, for_grandchild = pair()
    child = Channel(child_end, PARENT, CHILD, recorder)
    grandchild = Channel(grandchild_end, PARENT, INIT, recorder)
    fork_child(stage, stage1_child.Sockets(for_child, for_grandchild, init_socket))
    for sock in (for_child, for_grandchild, init_socket):
        sock.close()
    close_all(stage.fds)
    try:
        serve_child(stage, child)
        release_grandchild(stage, grandchild)
    except BaseException:
        kill_below(stage)
        raise
    manager.send(Word.PIDS, {"stage1": stage.stage1_pid, "stage2": stage.stage2_pid})


def enter_cgroups(stage: _Parent) -> None:
    """Before the first fork, so that no child can escape; before PR_SET_DUMPABLE 0, which makes
    our own oom_score_adj root's.
    """
    score = stage.bootstrap.oom_score_adj
    if score is not None:
        with stage.recorder.step("set oom_score_adj", "write", value=score):
            Path("/proc/self/oom_score_adj").write_text(str(score))
    if stage.bootstrap.cgroups:
        with stage.recorder.step("enter cgroups", "write", count=len(stage.bootstrap.cgroups)):
            cgroups.enter(stage.fds[index] for index in stage.bootstrap.cgroups)


def fork_child(stage: _Parent, sockets: stage1_child.Sockets) -> None:
    """Fork stage 1, which never returns from here."""
    recorder = stage.recorder.for_process(CHILD)
    stage.stage1_pid = os.fork()
    if not stage.stage1_pid:
        stage1_child.main(stage.bootstrap, stage.fds, sockets, recorder)


def serve_child(stage: _Parent, child: Channel) -> None:
    """Answer stage 1 until it has handed over stage 2 and is gone."""
    handlers = {
        Word.USERMAP_PLS: write_maps,
        Word.TIMEOFFSETS_PLS: write_time_offsets,
        Word.RECVPID_PLS: receive_pid,
    }
    while True:
        try:
            message = child.expect(
                *handlers, Word.FUSE_FD, Word.CHILD_FINISH, timeout=stage.bootstrap.timeout
            )
        except PeerDied as error:
            raise death_of(stage, error) from error
        if message.word is Word.CHILD_FINISH:
            break
        if message.word is Word.FUSE_FD:
            stage.manager.send(Word.FUSE_FD, message.payload, message.fds)
            close_all(message.fds)
            continue
        answer = handlers[message.word](stage, dict(message.payload))
        child.send(answer)
    os.waitpid(stage.stage1_pid, 0)


def write_maps(stage: _Parent, _payload: dict[str, object]) -> Word:
    """Write setgroups and both maps of stage 1's new user namespace."""
    b = stage.bootstrap
    hint = "is the range in /etc/subuid and /etc/subgid, and is newuidmap set-user-id root?"
    with stage.recorder.step(
        "write id maps",
        "write",
        hint=hint if b.newuidmap else "",
        uid_map=idmap.render(b.uid_map),
        gid_map=idmap.render(b.gid_map),
        setgroups=b.setgroups,
    ):
        idmap.write_maps(
            stage.stage1_pid,
            b.uid_map,
            b.gid_map,
            setgroups=b.setgroups,
            newuidmap=b.newuidmap,
            newgidmap=b.newgidmap,
        )
    return Word.USERMAP_ACK


def write_time_offsets(stage: _Parent, _payload: dict[str, object]) -> Word:
    """Write the offsets of the new time namespace, while no process lives in it yet."""
    lines = "".join(f"{o.clock} {o.secs} {o.nanosecs}\n" for o in stage.bootstrap.time_offsets)
    with stage.recorder.step("write time offsets", "write", offsets=lines):
        Path(f"/proc/{stage.stage1_pid}/timens_offsets").write_text(lines)
    return Word.TIMEOFFSETS_ACK


def receive_pid(stage: _Parent, payload: dict[str, object]) -> Word:
    """Note stage 2's pid, as the host counts."""
    stage.stage2_pid = int(str(payload["pid"]))
    return Word.RECVPID_ACK


def release_grandchild(stage: _Parent, grandchild: Channel) -> None:
    """Let stage 2 go on, now that the manager is its parent (stage 1 was reaped)."""
    grandchild.send(Word.GRANDCHILD)
    try:
        grandchild.expect(Word.CHILD_FINISH, timeout=stage.bootstrap.timeout)
    finally:
        grandchild.close()


def death_of(stage: _Parent, error: PeerDied) -> StageFailed:
    """Turn stage 1's end of file into a failure that says how it died."""
    _, status = os.waitpid(stage.stage1_pid, 0)
    stage.stage1_pid = 0
    text = f"died ({isolation.exit_status_text(status)})"
    return StageFailed(Failure(CHILD, f"before {error.waiting_for}", text=text))


def kill_below(stage: _Parent) -> None:
    """A failing stage takes those below it along."""
    for pid in (stage.stage2_pid, stage.stage1_pid):
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    if stage.stage1_pid:
        try:
            os.waitpid(stage.stage1_pid, 0)
        except ChildProcessError:
            return
