"""The facts about this machine and its user that plans depend on, read once before planning."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from launcher.attach_plan import Host
from launcher.joins import open_namespace_files
from launcher.people import Person, invoking_person, person_named
from launcher.settings import Attach
from launcher.supervisor.notify import filter_program
from launcher.supervisor.vessel import image
from launcher.targets.cgroups import directories, frozen_directory
from launcher.targets.mounts import parse_mountinfo
from launcher.targets.snapshot import Snapshot
from launcher.terminal import is_interactive
from nsstages import namespaces
from nsstages.credentials import last_capability
from nsstages.syscalls import open_in_root


def read_host(config: Attach, target: Snapshot) -> Host:
    """Read what plan_attach needs. Called by the manager; changes nothing, forks nothing."""
    existing = [path for path in config.root.from_container if _mode_of(target, path) is not None]
    return Host(
        namespaces=namespaces.inodes(),
        privileged=os.geteuid() == 0,
        person=person_of(config.user),
        environment=dict(os.environ),
        cwd=_working_directory(),
        last_capability=last_capability(),
        cgroup_directories=cgroup_directories(target),
        existing=frozenset(existing),
        directories=frozenset(p for p in existing if stat.S_ISDIR(_mode_of(target, p) or 0)),
        native=native_subtrees(config.root.native, privileged=os.geteuid() == 0),
        vessel=image(),
        filter_program=filter_program(),
        interactive=is_interactive(),
        namespace_files=open_namespace_files(config.namespaces),
    )


def person_of(user: str | None) -> Person:
    """Return the host user to be: the one named, else the invoking one."""
    return person_named(user) if user is not None else invoking_person(os.environ)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _mode_of(target: Snapshot, path: str) -> int | None:
    try:
        fd = open_in_root(target.root_fd, path, os.O_PATH)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def cgroup_directories(target: Snapshot) -> tuple[str, ...]:
    """Return the directories of the target's cgroups that differ from this process's own."""
    with open("/proc/self/mountinfo") as file:
        mounts = parse_mountinfo(file.read())
    return tuple(directories(target.cgroups, mounts).values())


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
