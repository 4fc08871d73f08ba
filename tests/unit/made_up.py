"""Made-up targets and hosts: plans are pure, so their tests need no process and no privilege."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from launcher.attachment import Host
from launcher.exec_plan import ExecHost
from launcher.people import Person
from launcher.run_plan import RunHost
from launcher.targets.mounts import Mount
from launcher.targets.snapshot import NamespaceRef, Snapshot
from nsstages.credentials import CAP_SYS_PTRACE, CapabilitySets
from nsstages.idmap import IDENTITY, IdRange

KINDS: Final = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")
OWN: Final[Mapping[str, int]] = MappingProxyType({kind: 10 + n for n, kind in enumerate(KINDS)})
THEIRS: Final[Mapping[str, int]] = MappingProxyType(
    {kind: 50 + n for n, kind in enumerate(KINDS)} | {"user": OWN["user"]}
)
PIDFD, ROOT_FD = 7, 8
DEFAULT_CAPABILITIES: Final = 0xA80425FB
PTRACE: Final = 1 << CAP_SYS_PTRACE
MAP: Final = (IdRange(0, 100000, 65536),)
DAVE: Final = Person("dave", 1000, 1000, (1000, 27), "/home/dave", "/bin/zsh")
ROOT: Final = Person("root", 0, 0, (0,), "/root", "/bin/bash")


def references(inodes: Mapping[str, int]) -> dict[str, NamespaceRef]:
    """Return references whose descriptors are 100 + the inode."""
    return {
        kind: NamespaceRef(kind, inode, 100 + inode, is_ours=inode == OWN[kind])
        for kind, inode in inodes.items()
    }


def snapshot(*, user_namespace: bool = False, **changes: Any) -> Snapshot:
    """Return a container with docker's rights; with a user namespace, its ids start at 100000."""
    inodes = dict(THEIRS) | ({"user": 99} if user_namespace else {})
    caps = DEFAULT_CAPABILITIES
    base = 100000 if user_namespace else 0
    made = Snapshot(
        engine="docker",
        name="web",
        pid=4711,
        pidfd=PIDFD,
        start_time=1,
        pid_inside=1,
        namespaces=references(inodes),
        root_fd=ROOT_FD,
        root_is_namespace_root=True,
        cwd="/app",
        uids=(base,) * 4,
        gids=(base,) * 4,
        groups=(base,),
        uid_map=MAP if user_namespace else IDENTITY,
        gid_map=MAP if user_namespace else IDENTITY,
        setgroups_allowed=True,
        capabilities=CapabilitySets(permitted=caps, effective=caps, bounding=caps),
        no_new_privs=False,
        seccomp_mode=0,
        lsm_label="",
        environment=("PATH=/srv/bin:/bin:relative", "A=1"),
        cgroups=(),
        mounts=(),
        limits={7: (1024, 4096)},
        oom_score_adj=0,
        umask=0o22,
    )
    return replace(made, **changes)


def mount(point: str) -> Mount:
    """Return a mount of the target at ``point``."""
    return Mount(1, 0, "0:1", "/", point, frozenset(), (), "ext4", "x", frozenset())


def host(**changes: Any) -> Host:
    """Return a host on which root attaches, with sudo's user behind it or not."""
    made = Host(
        namespaces=OWN,
        privileged=True,
        person=ROOT,
        environment={"PATH": "/usr/bin", "HOME": "/root", "SHELL": "/bin/bash", "USER": "root"},
        cwd="/work",
        last_capability=40,
        cgroup_directories=("/sys/fs/cgroup/web",),
        existing=frozenset({"/proc", "/dev", "/sys", "/etc/hosts"}),
        directories=frozenset({"/proc", "/dev", "/sys"}),
        native=("/run", "/tmp"),
        vessel=b"vessel",
        filter_program=b"filter",
        interactive=False,
        namespace_files={},
        is_supervised=False,
        root_is_served=False,
    )
    return replace(made, **changes)


def run_host(**changes: Any) -> RunHost:
    """Return a host on which root runs something."""
    made = RunHost(
        privileged=True,
        uid=0,
        gid=0,
        person=ROOT,
        environment={"PATH": "/usr/bin", "TERM": "vt100", "SECRET": "x"},
        cwd="/work",
        namespace_files={},
        subordinate_uids=((200000, 65536),),
        subordinate_gids=((300000, 65536),),
        newuidmap="/usr/bin/newuidmap",
        newgidmap="/usr/bin/newgidmap",
        cgroup_hierarchies=("/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids"),
        last_capability=40,
        filter_program=b"filter",
        interactive=False,
        user=None,
    )
    return replace(made, **changes)


def exec_host(**changes: Any) -> ExecHost:
    """Return a host on which root executes something in a container."""
    made = ExecHost(
        namespaces=OWN,
        namespace_files={},
        privileged=True,
        terminal="vt100",
        cgroup_directories=("/sys/fs/cgroup/web",),
        last_capability=40,
        interactive=False,
        user=None,
    )
    return replace(made, **changes)
