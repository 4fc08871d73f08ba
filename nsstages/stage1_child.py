"""Stage 1, CHILD: joins and unshares, then makes the first process that lives there.

A PID or time namespace takes effect for children only, and pids told from inside would mean
nothing to the manager: so this process prepares, forks stage 2, tells its pid and is gone.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from dataclasses import dataclass, field
from socket import socket
from typing import NoReturn

from nsstages import credentials, idmap, isolation, mounts, namespaces, stage2_init
from nsstages.bootstrap import Bootstrap
from nsstages.channel import Channel
from nsstages.errors import Failure, StageFailed
from nsstages.messages import CHILD, COMM, INIT, PARENT, Word
from nsstages.process import run_to_exit
from nsstages.syscalls import CLONE_NEWUSER, PR_SET_DUMPABLE, prctl, setns, unshare
from nsstages.trace import Recorder


@dataclass(frozen=True, slots=True)
class Sockets:
    """The ends that stage 1 and stage 2 own; stage 0 closes its copies after the fork."""

    child: socket
    grandchild: socket
    init: socket


@dataclass(slots=True)
class _Child:
    bootstrap: Bootstrap
    fds: tuple[int, ...]
    parent: Channel
    recorder: Recorder
    trees: dict[str, int] = field(default_factory=dict)
    fuse_device_directory: int = -1


def main(
    bootstrap: Bootstrap, fds: tuple[int, ...], sockets: Sockets, recorder: Recorder
) -> NoReturn:
    """Run stage 1 in a just forked process and exit."""
    parent = Channel(sockets.child, CHILD, PARENT, recorder)
    stage = _Child(bootstrap, fds, parent, recorder)
    keep = [s.fileno() for s in (sockets.child, sockets.grandchild, sockets.init)]
    keep += [*fds, *([recorder.sink] if recorder.sink is not None else [])]
    run_to_exit(lambda: run(stage, sockets), parent, COMM[CHILD], keep)


def run(stage: _Child, sockets: Sockets) -> None:
    """Be stage 1: the recipe."""
    prepare(stage)
    open_trees(stage, "outside")
    join_namespaces(stage)
    create_user_namespace(stage)
    unshare_the_rest(stage)
    set_time_offsets(stage)
    mount_fuse(stage)
    become_root_of_joined(stage)
    if stage.recorder.sink is not None:
        tell_state(stage.recorder)
    fork_init(stage, sockets)
    stage.parent.send(Word.CHILD_FINISH)


def tell_state(recorder: Recorder) -> None:
    """Record what all these steps have made of this process."""
    uid_map, gid_map = idmap.read_maps()
    maps = {"uid_map": uid_map, "gid_map": gid_map}
    recorder.event("state", namespaces=namespaces.inodes(), **maps, **credentials.own())


def prepare(stage: _Child) -> None:
    """Load what later steps need, then close the door."""
    if stage.bootstrap.loopback:
        stage2_init.import_loopback()
    if stage.bootstrap.fuse:
        # Kept by descriptor: after the joins the path would be the container's /dev.
        with stage.recorder.step("open /dev", "open"):
            stage.fuse_device_directory = os.open("/dev", os.O_PATH | os.O_DIRECTORY)
    isolation.seal()


def open_trees(stage: _Child, side: str) -> None:
    """Clone the mounts of one side that stage 2 will attach."""
    for tree in stage.bootstrap.trees:
        if tree.side == side and tree.name not in stage.trees:
            with stage.recorder.step(f"clone {tree.path}", "open_tree", side=side):
                stage.trees[tree.name] = mounts.open_planned_tree(tree, stage.fds)


def join_namespaces(stage: _Child) -> None:
    """Join, the user namespace last or first, after a last look whether the target still runs."""
    bootstrap = stage.bootstrap
    if bootstrap.target_pidfd != -1:
        check_alive(stage.fds[bootstrap.target_pidfd])
    for join in namespaces.join_order(bootstrap.joins, rootless=bootstrap.rootless):
        with stage.recorder.step(f"join {join.kind} namespace", "setns"):
            setns(stage.fds[join.fd], namespaces.FLAGS[join.kind])
        if join.kind == "mnt":
            # Now, in the namespace itself: a copy owned by another user namespace is locked.
            open_trees(stage, "inside")


def check_alive(pidfd: int) -> None:
    """Raise StageFailed when the target is gone; its pid may be somebody else's by now."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if poller.poll(0):
        raise StageFailed(Failure(CHILD, "join namespaces", text="the target has exited"))


def create_user_namespace(stage: _Child) -> None:
    """Unshare alone, so that all other new namespaces belong to it; ask stage 0 for the maps."""
    if not stage.bootstrap.clone_flags & CLONE_NEWUSER:
        return
    hint = "are user namespaces switched off here (user.max_user_namespaces)?"
    with stage.recorder.step("create user namespace", "unshare", hint=hint):
        unshare(CLONE_NEWUSER)
    prctl(PR_SET_DUMPABLE, 1)  # else /proc/PID/uid_map is root's and an ordinary writer fails
    stage.parent.send(Word.USERMAP_PLS)
    stage.parent.expect(Word.USERMAP_ACK, timeout=stage.bootstrap.timeout)
    prctl(PR_SET_DUMPABLE, 0)
    become_root(stage)


def become_root(stage: _Child) -> None:
    """Be root of the namespace, when it has one: mounts and files belong to it from here on."""
    if idmap.to_outside(stage.bootstrap.uid_map, 0) == idmap.OVERFLOW_ID:
        return
    with stage.recorder.step("become root of the user namespace", "setresuid"):
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def become_root_of_joined(stage: _Child) -> None:
    """Be root of a joined user namespace: an id that it does not map may create and look up
    nothing there (EOVERFLOW). After /dev/fuse, which may be the host root's alone.
    """
    if any(join.kind == "user" for join in stage.bootstrap.joins):
        with suppress(OSError):  # EINVAL: the namespace has no root
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)


def unshare_the_rest(stage: _Child) -> None:
    """Create the other namespaces, and cut a new mount namespace off at once."""
    flags = stage.bootstrap.clone_flags & ~CLONE_NEWUSER
    if flags:
        kinds = [kind for kind in stage.bootstrap.create if kind != "user"]
        with stage.recorder.step(f"create namespaces {' '.join(kinds)}", "unshare"):
            unshare(flags)
    if "mnt" in stage.bootstrap.create:
        with stage.recorder.step("make mounts private", "mount"):
            mounts.make_private()
    open_trees(stage, "inside")


def set_time_offsets(stage: _Child) -> None:
    """Ask stage 0; a time namespace takes offsets only while nobody lives in it."""
    if stage.bootstrap.time_offsets:
        if stage.bootstrap.rootless:
            prctl(PR_SET_DUMPABLE, 1)  # as for the maps
        stage.parent.send(Word.TIMEOFFSETS_PLS)
        stage.parent.expect(Word.TIMEOFFSETS_ACK, timeout=stage.bootstrap.timeout)
        prctl(PR_SET_DUMPABLE, 0)


def mount_fuse(stage: _Child) -> None:
    """Open /dev/fuse and mount it, detached; the device goes up to the server and nowhere else:
    a copy here would keep the connection alive after the server's death.
    """
    hint = "may this user open /dev/fuse, and is the fuse module loaded?"
    for wanted in stage.bootstrap.fuse:
        with stage.recorder.step("open /dev/fuse", "openat", hint=hint):
            flags = os.O_RDWR | os.O_CLOEXEC
            device = os.open("fuse", flags, dir_fd=stage.fuse_device_directory)
        with stage.recorder.step(f"mount FUSE {wanted.name}", "fsmount"):
            stage.trees[wanted.name] = mounts.open_fuse(device, wanted.attributes)
        stage.parent.send(Word.FUSE_FD, {"name": wanted.name}, [device])
        os.close(device)


def fork_init(stage: _Child, sockets: Sockets) -> None:
    """Fork stage 2, the first process in the new or joined PID and time namespaces."""
    recorder = stage.recorder.for_process(INIT)
    pid = os.fork()
    if not pid:
        inherited = stage2_init.Inherited(stage.trees)
        stage2_init.main(inherited, sockets.grandchild, sockets.init, recorder)
    sockets.grandchild.close()
    sockets.init.close()
    stage.parent.send(Word.RECVPID_PLS, {"pid": pid})
    stage.parent.expect(Word.RECVPID_ACK, timeout=stage.bootstrap.timeout)
