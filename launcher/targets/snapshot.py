"""What "act as the target" means: its process read once, whole, and frozen.

Everything comes from one /proc/PID directory that is held open, so it is of one process whatever
happens to the number; a pidfd, opened first and checked last, says that it lived throughout.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from launcher.errors import TargetError, TargetMalformed, TargetNotRunning
from launcher.targets.cgroups import CgroupMembership, parse_cgroup
from launcher.targets.inside import look_inside, path_inside
from launcher.targets.limits import parse_limits
from launcher.targets.lookup import Found
from launcher.targets.mounts import Mount, parse_mountinfo
from launcher.targets.proc_directory import ProcDirectory
from launcher.targets.process import parse_stat
from launcher.targets.status import Ids, parse_status
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.idmap import IDENTITY, IdMap, parse

KINDS: Final = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")
_MAX_FILE: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class NamespaceRef:
    """One namespace of the target, held open; ``is_ours`` when the reader is in it too."""

    kind: str
    inode: int
    fd: int
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A target at one moment. Ids are of the reader's user namespace, paths inside its root.

    It owns ``pidfd``, ``root_fd`` (O_PATH) and the namespaces' descriptors until close().
    ``uids`` and ``gids`` are real, effective, saved, file system; ``limits`` are (soft, hard) by
    RLIMIT_* number; ``lsm_label`` is empty without an LSM and may end in a mode ("x (enforce)");
    ``seccomp_filters`` stays empty until supervisor.filters reads them.
    """

    engine: str
    name: str
    pid: int
    pidfd: int
    start_time: int
    pid_inside: int
    namespaces: Mapping[str, NamespaceRef]
    root_fd: int
    root_is_namespace_root: bool
    cwd: str
    uids: Ids
    gids: Ids
    groups: tuple[int, ...]
    uid_map: IdMap
    gid_map: IdMap
    setgroups_allowed: bool
    capabilities: CapabilitySets
    no_new_privs: bool
    seccomp_mode: int
    lsm_label: str
    environment: tuple[str, ...]
    cgroups: tuple[CgroupMembership, ...]
    mounts: tuple[Mount, ...]
    limits: Mapping[int, tuple[int, int]]
    oom_score_adj: int
    umask: int
    seccomp_filters: tuple[bytes, ...] = ()

    @property
    def credentials(self) -> Credentials:
        """Return what a program is that acts as the target, as ids of its user namespace.

        A supplementary group that has no number there cannot be had and is left out; a uid or gid
        without one raises TargetError.
        """
        uid = self._inside(self.uid_map, self.uids[1])
        gid = self._inside(self.gid_map, self.gids[1])
        if uid is None or gid is None:
            ids = f"{self.uids[1]}:{self.gids[1]}"
            raise TargetError(f"ids {ids} of process {self.pid} are not in its user namespace")
        groups = (self._inside(self.gid_map, group) for group in self.groups)
        return Credentials(
            uid=uid,
            gid=gid,
            groups=tuple(group for group in groups if group is not None)
            if self.setgroups_allowed
            else None,
            capabilities=self.capabilities,
            no_new_privs=self.no_new_privs,
            seccomp_filters=self.seccomp_filters,
        )

    def _inside(self, id_map: IdMap, outside: int) -> int | None:
        # The map of our own namespace shows ids of its parent, but the ids we read are inside.
        user = self.namespaces.get("user")
        for ids in IDENTITY if user is None or user.is_ours else id_map:
            if ids.outside <= outside < ids.outside + ids.count:
                return ids.inside + outside - ids.outside
        return None

    def is_alive(self) -> bool:
        """Tell whether the process has not ended; a reused number does not deceive it."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return not poller.poll(0)

    def close(self) -> None:
        """Close every descriptor."""
        for fd in (self.pidfd, self.root_fd, *(ref.fd for ref in self.namespaces.values())):
            os.close(fd)


def take(found: Found) -> Snapshot:
    """Read the process of ``found``. Called by the single-threaded manager, before the pipeline.

    Raises TargetNotRunning when it ended or another process has its number now, TargetUnreadable
    where this user may not look, TargetMalformed naming what made no sense.
    """
    with ExitStack() as on_failure:
        pidfd = _open_pidfd(found.pid)
        on_failure.callback(os.close, pidfd)
        with closing(ProcDirectory(found.pid)) as proc:
            snapshot = Snapshot(
                engine=found.engine,
                name=found.name,
                pid=found.pid,
                pidfd=pidfd,
                start_time=_start_time(proc, found),
                **_places(proc, on_failure),
                **_rights(proc),
                cgroups=parse_cgroup(proc.text("cgroup", _MAX_FILE)),
                mounts=parse_mountinfo(proc.text("mountinfo", _MAX_FILE)),
                limits=parse_limits(proc.text("limits", _MAX_FILE)),
                oom_score_adj=_oom_score_adj(proc),
            )
        if not snapshot.is_alive():
            raise TargetNotRunning(f"process {found.pid} ended while it was read")
        on_failure.pop_all()
    return snapshot


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise TargetNotRunning(f"process {pid} has ended") from error
    except OSError as error:  # EINVAL; ENOENT from Linux 6.15
        raise TargetError(f"{pid} is a thread of a process: name the process") from error


def _start_time(proc: ProcDirectory, found: Found) -> int:
    stat = parse_stat(proc.read("stat", _MAX_FILE))
    if not stat.is_running or found.start_time not in (None, stat.start_time):
        raise TargetNotRunning(f"{found.spec}: its process {proc.pid} has ended")
    if stat.is_kernel_thread:
        raise TargetError(f"process {proc.pid} is a kernel thread")
    return stat.start_time


def _places(proc: ProcDirectory, on_failure: ExitStack) -> dict[str, Any]:
    """Return namespaces, root, cwd and environment: what needs the right to look inside."""
    namespaces = {}
    for kind in KINDS:
        if proc.has(f"ns/{kind}"):
            fd = proc.open(f"ns/{kind}")
            on_failure.callback(os.close, fd)
            namespaces[kind] = _namespace_ref(kind, fd)
    root_fd = proc.open("root", os.O_PATH | os.O_DIRECTORY)
    on_failure.callback(os.close, root_fd)
    foreign = {kind: ref.fd for kind, ref in namespaces.items() if not ref.is_ours}
    environ_fd = proc.open("environ")
    try:
        environment, is_namespace_root = look_inside(
            environ_fd, root_fd, foreign.get("mnt"), foreign.get("user")
        )
    finally:
        os.close(environ_fd)
    return {
        "namespaces": MappingProxyType(namespaces),
        "root_fd": root_fd,
        "root_is_namespace_root": is_namespace_root,
        "cwd": path_inside(proc.link("root"), proc.link("cwd")),
        "environment": environment,
    }


def _namespace_ref(kind: str, fd: int) -> NamespaceRef:
    inode = os.fstat(fd).st_ino
    return NamespaceRef(kind, inode, fd, is_ours=inode == os.stat(f"/proc/self/ns/{kind}").st_ino)


def _rights(proc: ProcDirectory) -> dict[str, Any]:
    """Return ids, maps, capabilities and confinement."""
    status = parse_status(proc.text("status", _MAX_FILE))
    return {
        "pid_inside": status.nspid[-1],
        "uids": status.uids,
        "gids": status.gids,
        "groups": status.groups,
        "umask": status.umask,
        "capabilities": status.capabilities,
        "no_new_privs": status.no_new_privs,
        "seccomp_mode": status.seccomp_mode,
        "uid_map": _id_map(proc, "uid_map"),
        "gid_map": _id_map(proc, "gid_map"),
        "setgroups_allowed": not proc.has("setgroups")
        or proc.text("setgroups", _MAX_FILE).strip() == "allow",
        "lsm_label": _lsm_label(proc),
    }


def _id_map(proc: ProcDirectory, name: str) -> IdMap:
    try:
        return parse(proc.text(name, _MAX_FILE))
    except (TypeError, ValueError) as error:
        raise TargetMalformed(name, str(error)) from error


def _lsm_label(proc: ProcDirectory) -> str:
    # With several LSMs attr/current is the first one's; AppArmor has a place of its own.
    name = "attr/apparmor/current" if proc.has("attr/apparmor/current") else "attr/current"
    try:
        return proc.text(name, _MAX_FILE).rstrip("\0\n")
    except OSError:  # EINVAL: no LSM is active
        return ""


def _oom_score_adj(proc: ProcDirectory) -> int:
    text = proc.text("oom_score_adj", _MAX_FILE)
    try:
        return int(text)
    except ValueError:
        raise TargetMalformed("oom_score_adj", f"a number expected, got {text!r}") from None
