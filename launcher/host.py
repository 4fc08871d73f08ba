"""The facts about this machine and its user that plans depend on, read once before planning."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from functools import partial

import msgpack

from launcher.attachment import Host
from launcher.joins import open_namespace_files
from launcher.people import Person, invoking_person, person_named
from launcher.settings import Attach
from launcher.supervisor.notify import filter_program
from launcher.supervisor.vessel import image
from launcher.targets.bounded import Answer, in_child
from launcher.targets.cgroups import directories, frozen_directory, parse_cgroup
from launcher.targets.mounts import Mount, parse_mountinfo
from launcher.targets.snapshot import Snapshot
from launcher.terminal import is_interactive
from nsstages import namespaces, program
from nsstages.credentials import last_capability
from nsstages.mounts import FUSE_SOURCE
from nsstages.syscalls import PR_GET_SECCOMP, PR_SET_NO_NEW_PRIVS, open_in_root, prctl


def read_host(config: Attach, target: Snapshot) -> Host:
    """Read what plan_attach needs. Called by the manager; changes nothing, starts no stage."""
    kinds = _kinds_of(target, config.root.from_container)
    return Host(
        namespaces=namespaces.inodes(),
        privileged=os.geteuid() == 0,
        person=person_of(config.user),
        environment=dict(os.environ),
        cwd=_working_directory(),
        last_capability=last_capability(),
        cgroup_directories=cgroup_directories(target),
        existing=frozenset(kinds),
        directories=frozenset(path for path, is_directory in kinds.items() if is_directory),
        native=native_subtrees(config.root.native, privileged=os.geteuid() == 0),
        vessel=image(),
        filter_program=filter_program(),
        interactive=is_interactive(),
        namespace_files=open_namespace_files(config.namespaces),
        is_supervised=is_supervised(),
        root_is_served=root_is_served(),
    )


def root_is_served() -> bool:
    """Tell whether the root directory is the FUSE mount of another attach, by its source."""
    roots = [mount for mount in own_mounts() if mount.mount_point == "/"]
    return bool(roots) and (roots[-1].fs_type, roots[-1].source) == ("fuse", FUSE_SOURCE)


def own_mounts() -> tuple[Mount, ...]:
    """Return this process's own mount table."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        return parse_mountinfo(file.read())


def is_supervised() -> bool:
    """Tell whether a seccomp filter of this process has a listener: then it can get no second one.

    Nothing shows it but an attempt, which a child makes. Without any filter there is none.
    """
    if not prctl(PR_GET_SECCOMP):
        return False
    try:
        in_child(_install_filter, timeout=5.0)
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _install_filter() -> Answer:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    os.close(program.install_filter(filter_program()))
    return Answer(b"")


def person_of(user: str | None) -> Person:
    """Return the host user to be: the one named, else the invoking one."""
    return person_named(user) if user is not None else invoking_person(os.environ)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _kinds_of(target: Snapshot, paths: Iterable[str]) -> dict[str, bool]:
    """Return which paths exist in the container, and whether each is a directory.

    Looked up by a child that can be killed: a container may serve its own root, and not answer.
    """
    look = partial(_look_up_kinds, target.root_fd, tuple(paths))
    kinds: dict[str, bool] = msgpack.unpackb(in_child(look, timeout=5.0).data)
    return kinds


def _look_up_kinds(root_fd: int, paths: Iterable[str]) -> Answer:
    kinds = {}
    for path in paths:
        try:
            fd = open_in_root(root_fd, path, os.O_PATH)
        except OSError:
            continue
        kinds[path] = stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
    return Answer(msgpack.packb(kinds))


def cgroup_directories(target: Snapshot) -> tuple[str, ...]:
    """Return the directories of the target's cgroups that differ from this process's own."""
    with open("/proc/self/cgroup", errors="surrogateescape") as file:
        own = parse_cgroup(file.read())
    return tuple(
        directory
        for membership, directory in directories(target.cgroups, own_mounts()).items()
        if membership not in own
    )


def refuse_frozen(target: Snapshot) -> None:
    """Raise TargetNotRunning for a paused container: who joins a frozen v1 cgroup never leaves."""
    from launcher.errors import TargetNotRunning

    frozen = frozen_directory(cgroup_directories(target))
    if frozen is not None:
        raise TargetNotRunning(
            f"{target.name} is paused ({frozen} is frozen)", hint="unpause it first"
        )


def native_subtrees(wanted: Iterable[str], *, privileged: bool) -> tuple[str, ...]:
    """Return the host subtrees to attach, without duplicates or those inside others.

    Only host root may clone mounts of the host's namespace. The directory of $SSH_AUTH_SOCK is
    added: a socket cannot be carried by FUSE.
    """
    if not privileged:
        return ()
    agent = os.path.dirname(os.environ.get("SSH_AUTH_SOCK", ""))
    found = sorted({path.rstrip("/") or "/" for path in (*wanted, agent) if os.path.isdir(path)})
    kept: list[str] = []
    for path in found:
        if not any(path == above or path.startswith(f"{above}/") for above in kept):
            kept.append(path)
    return tuple(kept)
