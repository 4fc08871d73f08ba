"""From run.json to the plan of a new container: pure, every decision in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from launcher.attachment import DEFAULT_PATH, FUSE_ROOT
from launcher.hostfs.options import HostfsOptions, Mountpoint
from launcher.people import Person
from launcher.plan import Descriptors, Plan
from launcher.settings import IdMapping, Mount, Run, chosen
from launcher.supervisor.options import SupervisorOptions
from launcher.targets.snapshot import NamespaceRef
from launcher.targets.users import User
from nsstages.bootstrap import Bootstrap, FuseMount, TimeOffset, Tree
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.idmap import IDENTITY, OVERFLOW_ID, IdMap, IdRange, to_outside
from nsstages.init_config import InitConfig, MountPlan, Process, Root, Source
from nsstages.namespaces import Join
from nsstages.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
)

DEFAULT_KINDS: Final = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
# What container engines leave a container's root by default: nothing that reaches the kernel.
CONTAINER_CAPABILITIES: Final = 0xA80425FB
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS: Final = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
)
_ATTRIBUTES: Final = {
    "ro": MOUNT_ATTR_RDONLY,
    "nosuid": MOUNT_ATTR_NOSUID,
    "nodev": MOUNT_ATTR_NODEV,
    "noexec": MOUNT_ATTR_NOEXEC,
}
_PLAIN: Final = frozenset({"rw", "suid", "dev", "exec", "bind", "rbind", "defaults"})


@dataclass(frozen=True, slots=True)
class RunHost:
    """The facts that a run's plan depends on."""

    privileged: bool
    uid: int
    gid: int
    person: Person
    environment: Mapping[str, str]
    cwd: str
    namespace_files: Mapping[str, NamespaceRef]
    subordinate_uids: tuple[tuple[int, int], ...]
    subordinate_gids: tuple[tuple[int, int], ...]
    newuidmap: str
    newgidmap: str
    cgroup_hierarchies: tuple[str, ...]
    last_capability: int
    filter_program: bytes
    interactive: bool
    user: User | None


@dataclass(frozen=True, slots=True)
class _Run:
    config: Run
    host: RunHost

    @property
    def kinds(self) -> tuple[str, ...]:
        """Return the kinds to create."""
        wanted = chosen(self.config.namespaces)
        if wanted is None:
            wanted = dict.fromkeys(DEFAULT_KINDS)
            if not self.host.privileged:
                wanted["user"] = None
        if self.config.time_offsets is not None:
            wanted = {**wanted, "time": None}
        return tuple(kind for kind, file in wanted.items() if file is None)

    @property
    def is_supervised(self) -> bool:
        wanted = self.config.supervise
        return self.config.root.fuse if wanted is None else wanted == "tree"

    @property
    def uid_map(self) -> IdMap:
        host = self.host
        return id_map(
            self.config.uid_map, host.uid, host.subordinate_uids, privileged=host.privileged
        )

    @property
    def gid_map(self) -> IdMap:
        host = self.host
        return id_map(
            self.config.gid_map, host.gid, host.subordinate_gids, privileged=host.privileged
        )


def id_map(
    wanted: tuple[IdMapping, ...] | str,
    own: int,
    subordinate: tuple[tuple[int, int], ...],
    *,
    privileged: bool,
) -> IdMap:
    """Return a map: the one given; for root all ids as they are; for others their own id as 0
    and their subordinate ids from 1.
    """
    if not isinstance(wanted, str):
        return tuple(IdRange(m.inside, m.outside, m.count) for m in wanted)
    if privileged:
        return IDENTITY
    ranges = [IdRange(0, own, 1)]
    for first, count in subordinate:
        ranges.append(IdRange(ranges[-1].inside + ranges[-1].count, first, count))
    return tuple(ranges)


def plan_run(config: Run, host: RunHost) -> Plan:
    """Return the plan of a new container."""
    run = _Run(config, host)
    descriptors = Descriptors()
    bootstrap = plan_bootstrap(run, descriptors)
    supervisor = SupervisorOptions() if run.is_supervised else None
    return Plan(
        engine="run",
        bootstrap=bootstrap,
        init=plan_init(run),
        descriptors=descriptors.all(),
        hostfs=(plan_hostfs(run),) if config.root.fuse else (),
        supervisor=supervisor,
        target_name=config.name or "",
        time_limit=config.timeout,
    )


def plan_bootstrap(run: _Run, descriptors: Descriptors) -> Bootstrap:
    """Plan the pipeline: which namespaces are new, which are joined, whose ids are mapped."""
    config, host, kinds = run.config, run.host, run.kinds
    joins = tuple(
        Join(kind, descriptors.add(reference.fd, f"{kind} namespace"))
        for kind, reference in host.namespace_files.items()
    )
    offsets = config.time_offsets
    new_user = "user" in kinds
    cgroups = tuple(
        descriptors.add(-1, f"new cgroup {hierarchy}{config.cgroup}",
                        new_cgroup=f"{hierarchy}{config.cgroup}")
        for hierarchy in (host.cgroup_hierarchies if config.cgroup else ())
    )  # fmt: skip
    return Bootstrap(
        create=kinds,
        joins=joins,
        rootless=not host.privileged,
        uid_map=run.uid_map if new_user else (),
        gid_map=run.gid_map if new_user else (),
        setgroups=may_set_groups(run),
        newuidmap=host.newuidmap if new_user else "",
        newgidmap=host.newgidmap if new_user else "",
        time_offsets=()
        if offsets is None
        else (
            TimeOffset("monotonic", offsets.monotonic),
            TimeOffset("boottime", offsets.boottime),
        ),
        oom_score_adj=config.oom_score_adj,
        cgroups=cgroups,
        trees=tuple(
            Tree(path, path, "inside", required=path != "/sys") for path in host_trees(run)
        ),
        fuse=(FuseMount(FUSE_ROOT),) if config.root.fuse else (),
        loopback=brings_loopback_up(run),
    )


def may_set_groups(run: _Run) -> bool:
    """The kernel lets an unprivileged writer map a gid only where setgroups is denied; the
    set-user-id helper may do both.
    """
    if run.config.setgroups is not None:
        return run.config.setgroups
    return run.host.privileged or len(run.gid_map) > 1


def brings_loopback_up(run: _Run) -> bool:
    """By default in every new network namespace of a container: programs expect localhost."""
    wanted = run.config.loopback
    return ("net" in run.kinds) if wanted is None else wanted


def host_trees(run: _Run) -> tuple[str, ...]:
    """Return the host's trees that a FUSE root cannot serve."""
    if not run.config.root.fuse:
        return ()
    return ("/dev", "/sys") if "pid" in run.kinds else ("/dev", "/sys", "/proc")


def plan_hostfs(run: _Run) -> HostfsOptions:
    """Plan the FUSE server for a root of the host's files."""
    new_user = "user" in run.kinds
    paths = dict.fromkeys(("/proc", "/dev", "/sys", *(m.target for m in run.config.mounts)))
    return HostfsOptions(
        source=run.config.root.source or "/",
        read_only=run.config.root.read_only,
        mountpoints=tuple(Mountpoint(path, is_directory=True) for path in paths),
        uid_map=run.uid_map if new_user else IDENTITY,
        gid_map=run.gid_map if new_user else IDENTITY,
    )


def plan_init(run: _Run) -> InitConfig:
    """Plan stage 2: names, root, mounts, program."""
    config, host = run.config, run.host
    root = Root.KEEP
    if config.root.fuse:
        root = Root.FUSE
    elif config.root.path is not None:
        root = Root.DIRECTORY
    return InitConfig(
        process=plan_process(run),
        root=root,
        root_path=FUSE_ROOT if config.root.fuse else config.root.path or "",
        root_read_only=config.root.read_only and root is Root.DIRECTORY,
        mounts=plan_mounts(run) if root is not Root.KEEP else (),
        hostname=config.hostname or "",
        domainname=config.domainname or "",
        loopback=brings_loopback_up(run),
        reaper=run.is_supervised,
        seccomp_notify=host.filter_program if run.is_supervised else b"",
        last_capability=host.last_capability,
        rootless=not host.privileged,
    )


def plan_mounts(run: _Run) -> tuple[MountPlan, ...]:
    """Plan the mounts: those asked for, else what programs expect."""
    create = not run.config.root.fuse
    mounts = [MountPlan(Source.TREE, path, path, required=path != "/sys")
              for path in host_trees(run)]  # fmt: skip
    if run.config.root.fuse and "pid" in run.kinds:
        mounts.append(MountPlan(Source.NEW, "proc", "/proc", kind="proc"))
    if run.config.root.fuse and "user" in run.kinds:
        mounts.append(plan_terminals(run, "/dev/pts"))  # the host's are not this namespace's
    wanted = run.config.mounts
    if not wanted and not run.config.root.fuse:
        wanted = (
            Mount(type="proc", target="/proc"),
            Mount(type="dev", target="/dev"),
            Mount(type="sysfs", target="/sys", options=("ro",)),
        )
    for mount in wanted:
        mounts += plan_mount(run, mount, create=create, required=mount in run.config.mounts)
    return tuple(mounts)


def plan_mount(run: _Run, mount: Mount, *, create: bool, required: bool) -> list[MountPlan]:
    """Plan one mount of the configuration."""
    if mount.type == "dev":
        return plan_devices(run, mount.target)
    attributes = 0
    options = []
    for option in mount.options:
        if option in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[option]
        elif option not in _PLAIN:
            options.append(option)
    kind = "" if mount.type == "bind" else mount.type
    source_kind = Source.NEW if kind else Source.BIND
    return [
        MountPlan(
            source_kind,
            mount.source or kind,
            mount.target,
            kind=kind,
            options=tuple(options),
            attributes=attributes,
            create_target=create,
            required=required or mount.type != "sysfs",  # needs a network namespace of its own
        )
    ]


def plan_devices(run: _Run, at: str) -> list[MountPlan]:
    """Plan a /dev that needs no mknod, which a user namespace forbids."""
    dev = MOUNT_ATTR_NOSUID
    return [
        MountPlan(Source.NEW, "tmpfs", at, kind="tmpfs", options=("mode=0755", "size=64k"),
                  attributes=dev, create_target=True),
        *(MountPlan(Source.BIND, f"/dev/{name}", f"{at}/{name}", create_target=True)
          for name in DEVICES),
        plan_terminals(run, f"{at}/pts", create=True),
        MountPlan(Source.NEW, "tmpfs", f"{at}/shm", kind="tmpfs", options=("mode=1777",),
                  attributes=dev | MOUNT_ATTR_NODEV, create_target=True),
        *(MountPlan(Source.SYMLINK, text, f"{at}/{name}") for text, name in DEVICE_LINKS),
    ]  # fmt: skip


def plan_terminals(run: _Run, at: str, *, create: bool = False) -> MountPlan:
    """Plan a devpts of the container's own; its group only where the map has it."""
    has_group = "user" not in run.kinds or to_outside(run.gid_map, 5) != OVERFLOW_ID
    options = ("newinstance", "ptmxmode=0666", "mode=0620", *(("gid=5",) if has_group else ()))
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
    return MountPlan(Source.NEW, "devpts", at, "devpts", options, attributes, create_target=create)


def plan_process(run: _Run) -> Process:
    """Plan the program: of a directory root a container's, of a FUSE root the person's shell."""
    config, host = run.config, run.host
    is_container = config.root.path is not None
    environment = {} if config.clear_env or is_container else dict(host.environment)
    environment.setdefault("PATH", DEFAULT_PATH)
    if "TERM" in host.environment:
        environment["TERM"] = host.environment["TERM"]
    home = host.user.home if host.user is not None else "/root"
    environment["HOME"] = home if is_container else host.person.home
    environment |= dict(config.env)
    return Process(
        argv=config.command or (("/bin/sh",) if is_container else (host.person.shell, "-l")),
        env=tuple(f"{name}={value}" for name, value in environment.items()),
        cwd=config.cwd if is_container or config.cwd != "/" else host.cwd,
        cwd_fallback=config.cwd,
        credentials=credentials_of(run),
        terminal=host.interactive if config.terminal == "auto" else config.terminal,
    )


def credentials_of(run: _Run) -> Credentials:
    """Return a container's default rights, or for a FUSE root all that the person has."""
    user = run.host.user
    if run.config.root.path is None:
        return Credentials()
    mask = CONTAINER_CAPABILITIES
    full = CapabilitySets(permitted=mask, effective=mask, bounding=mask)
    if user is None or user.uid == 0:
        return Credentials(capabilities=full)
    groups = user.groups if may_set_groups(run) else None
    return Credentials(user.uid, user.gid, groups, CapabilitySets(bounding=mask))
