"""Stage 2, INIT: the first process of the finished namespaces; makes the root and the program.

In run and exec it becomes the program; above a supervised program it stays as a reaper, because
a container's pid 1 may not reap, and a shell is no init.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NoReturn

from nsstages import mounts, program
from nsstages.channel import Channel
from nsstages.init_config import InitConfig, MountPlan, Root, Source
from nsstages.messages import COMM, INIT, MANAGER, PARENT, Word
from nsstages.namespaces import inodes
from nsstages.process import run_to_exit
from nsstages.syscalls import CLONE_NEWPID, MOUNT_ATTR_RDONLY, mount_setattr, unshare
from nsstages.trace import Recorder
from nsstages.typed import from_payload


@dataclass(frozen=True, slots=True)
class Inherited:
    """What stage 1 hands down by fork: cloned trees and FUSE mounts by name."""

    trees: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(slots=True)
class _Init:
    inherited: Inherited
    manager: Channel
    recorder: Recorder
    config: InitConfig
    fds: tuple[int, ...]
    root_fd: int = -1


def main(
    inherited: Inherited, grandchild: socket.socket, init: socket.socket, recorder: Recorder
) -> NoReturn:
    """Run stage 2 in a just forked process; ends in exec, or in the reaper's exit."""
    manager = Channel(init, INIT, MANAGER, recorder)
    parent = Channel(grandchild, INIT, PARENT, recorder)
    keep = [fd for fd in inherited.trees.values() if fd != -1]
    keep += [grandchild.fileno(), *([recorder.sink] if recorder.sink is not None else [])]
    run_to_exit(lambda: run(inherited, parent, manager, recorder), manager, COMM[INIT], keep)


def run(inherited: Inherited, parent: Channel, manager: Channel, recorder: Recorder) -> None:
    """Be stage 2: the recipe."""
    synchronise(parent)
    stage = receive_config(inherited, manager, recorder)
    os.setsid()
    enter_new_pid_namespace(stage)
    name_host(stage)
    bring_loopback_up(stage)
    make_root(stage)
    recorder.event("state", namespaces=inodes(), pid_inside=os.getpid(), cwd=os.getcwd())
    program.start(stage.config, manager, recorder)


def synchronise(parent: Channel) -> None:
    """Wait until stage 1 is gone, so that the manager is our parent, and let stage 0 go."""
    parent.expect(Word.GRANDCHILD, timeout=30)
    parent.send(Word.CHILD_FINISH)
    parent.close()


def receive_config(inherited: Inherited, manager: Channel, recorder: Recorder) -> _Init:
    """Wait for CONFIG; with a FUSE root it comes when the server answers."""
    message = manager.expect(Word.CONFIG, timeout=60)
    config = from_payload(InitConfig, message.payload)
    return _Init(inherited, manager, recorder, config, message.fds)


def enter_new_pid_namespace(stage: _Init) -> None:
    """With ``new``: a PID namespace below the joined one. Its first process goes on as stage 2,
    this one waits for it: a process cannot change its own PID namespace.
    """
    if not stage.config.new_pid_namespace:
        return
    with stage.recorder.step("create pid namespace", "unshare"):
        unshare(CLONE_NEWPID)
    pid = os.fork()
    if pid:
        stage.manager.close()
        _, status = os.waitpid(pid, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def name_host(stage: _Init) -> None:
    """Set host and domain name of a new UTS namespace."""
    if stage.config.hostname:
        with stage.recorder.step("set hostname", "sethostname", value=stage.config.hostname):
            socket.sethostname(stage.config.hostname)
    if stage.config.domainname:
        with stage.recorder.step("set domainname", "write", value=stage.config.domainname):
            fd = os.open("/proc/sys/kernel/domainname", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, stage.config.domainname.encode())
            os.close(fd)


def import_loopback() -> None:
    """Import pyroute2 while imports are still allowed; stage 1 calls it before the joins."""
    import pyroute2  # noqa: F401


def bring_loopback_up(stage: _Init) -> None:
    """Bring `lo` of a new network namespace up."""
    if not stage.config.loopback:
        return
    from pyroute2 import IPRoute

    with stage.recorder.step("bring loopback up", "netlink"), IPRoute() as route:
        route.link("set", index=route.link_lookup(ifname="lo")[0], state="up")


def make_root(stage: _Init) -> None:
    """Lay the new root over the old one, mount into it, and drop the old one."""
    config = stage.config
    if config.root == Root.KEEP:
        return
    if config.root == Root.CHROOT:
        with stage.recorder.step("enter the target's root", "chroot"):
            os.fchdir(stage.fds[0])
            os.chroot(".")
            os.close(stage.fds[0])
        return
    stage.root_fd = open_root(stage)
    with stage.recorder.step("lay the root over /", "move_mount"):
        mounts.enter_root(stage.root_fd)
    for plan in config.mounts:
        mount_one(stage, plan)
    for path in config.unmounts:
        with stage.recorder.step(f"take {path} away", "umount2"):
            mounts.uncover(stage.root_fd, path)
    if config.root_read_only:
        with stage.recorder.step("make the root read-only", "mount_setattr"):
            mount_setattr(stage.root_fd, set_attributes=MOUNT_ATTR_RDONLY, recursive=False)
    with stage.recorder.step("switch root", "pivot_root"):
        mounts.switch_root()
    os.close(stage.root_fd)


def open_root(stage: _Init) -> int:
    """Return the mount that becomes the root."""
    if stage.config.root == Root.FUSE:
        return stage.inherited.trees[stage.config.root_path]
    with stage.recorder.step("clone the root", "open_tree"):
        return tree_of_path(stage, stage.config.root_path)


def tree_of_path(stage: _Init, path: str) -> int:
    """Clone the tree at a path of the old root; where a user namespace has no access, the
    manager does it.
    """
    try:
        return mounts.clone_tree(path)
    except PermissionError:
        stage.manager.send(Word.MOUNT_FD_PLS, {"source": path})
        answer = stage.manager.expect(Word.MOUNT_FD, timeout=stage.config.timeout)
        return answer.fds[0]


def mount_one(stage: _Init, plan: MountPlan) -> None:
    """Execute one mount of the plan."""
    with stage.recorder.step(f"mount {plan.target}", "move_mount", source=plan.source):
        try:
            _mount(stage, plan)
        except OSError as error:
            if plan.required:
                raise
            stage.recorder.event("skipped", target=plan.target, errno=error.errno)


def _mount(stage: _Init, plan: MountPlan) -> None:
    if plan.source_kind == Source.SYMLINK:
        mounts.create_symlink(stage.root_fd, plan.target, plan.source)
        return
    fd = source_of(stage, plan)
    if fd == -1:
        return
    try:
        if plan.source_kind != Source.NEW and plan.attributes:
            mount_setattr(fd, set_attributes=plan.attributes)
        mounts.attach(fd, stage.root_fd, plan.target, create=plan.create_target)
    finally:
        os.close(fd)


def source_of(stage: _Init, plan: MountPlan) -> int:
    """Return the detached mount of a plan, -1 for a tree that does not exist over there."""
    if plan.source_kind == Source.TREE:
        return stage.inherited.trees[plan.source]
    if plan.source_kind == Source.NEW:
        return mounts.new_filesystem(plan.kind, plan.options, plan.attributes)
    return tree_of_path(stage, plan.source)
