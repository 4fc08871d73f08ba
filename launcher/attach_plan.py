"""From attach.json and a snapshot to the plan of an attach: pure, every decision in one place."""

from __future__ import annotations

from pathlib import PurePosixPath

from launcher.attachment import (
    DEFAULT_PATH,
    FUSE_ROOT,
    GUARDED,
    HOST_TOOL_OOM_SCORE,
    KERNEL_DIRECTORIES,
    VESSEL,
    Attachment,
    Host,
    joined,
)
from launcher.container_tree import container_trees, plan_container_server
from launcher.errors import LauncherError
from launcher.hostfs.options import HostfsOptions, Mountpoint
from launcher.plan import Descriptors, Plan
from launcher.settings import Attach
from launcher.shell import plan_process, profile_files
from launcher.supervisor.options import Routing, SupervisorOptions
from launcher.targets.snapshot import Snapshot
from nsstages import credentials
from nsstages.bootstrap import Bootstrap, FuseMount, Tree
from nsstages.credentials import CAP_SYS_PTRACE
from nsstages.idmap import IDENTITY
from nsstages.init_config import InitConfig, MountPlan, Root, Source
from nsstages.namespaces import FLAGS, Join
from nsstages.syscalls import MOUNT_ATTR_RDONLY


def plan_attach(config: Attach, target: Snapshot, host: Host) -> Plan:
    """Return the plan. Raises LauncherError where the target may not be attached to like this."""
    attach = Attachment(config, target, host)
    refuse_reachable_shell(attach)
    refuse_impossible_inside(attach)
    descriptors = Descriptors()
    trees, mount_plans = plan_mounts(attach, descriptors)
    bootstrap = plan_bootstrap(attach, descriptors, trees)
    servers = (plan_hostfs(attach), *plan_container_server(attach)) if bootstrap.fuse else ()
    return Plan(
        engine="attach",
        bootstrap=bootstrap,
        init=plan_init(attach, mount_plans),
        descriptors=descriptors.all(),
        cgroup_directories=host.cgroup_directories if config.cgroup == "join" else (),
        hostfs=servers,
        supervisor=plan_supervisor(attach),
        target_pidfd=target.pidfd,
        target_name=f"{target.engine} container {target.name}",
        time_limit=config.timeout,
        notes=plan_notes(attach),
        warnings=plan_warnings(attach),
    )


def refuse_reachable_shell(attach: Attachment) -> None:
    """Refuse where the container's root could ptrace the shell and so act as the host's user."""
    config, target = attach.config, attach.target
    if config.trust_container or config.pid_mode == "host":
        return
    same = attach.joins_user_namespace or (
        target.namespaces["user"].inode == attach.host.namespaces["user"]
    )
    if same and target.capabilities.bounding >> CAP_SYS_PTRACE & 1:
        raise LauncherError(
            f"{target.name} holds CAP_SYS_PTRACE in the shell's user namespace:"
            " its root could take over the attached shell, and with it this host's files",
            hint="give --trust-container, or pid_namespace: host (no routing)",
        )


def refuse_impossible_inside(attach: Attachment) -> None:
    """Refuse inside another attach what it cannot have there and is demanded."""
    host = attach.host
    if attach.config.routing and not attach.routes:
        reason = "supervises this process already" if host.is_supervised else "serves this root"
        raise LauncherError(
            f"routing is not possible here: another attach {reason}",
            hint="leave the attached shell, or do without routing",
        )
    if host.root_is_served and attach.config.root.container_access == "fuse":
        raise LauncherError(
            "root.container_access: fuse is not possible inside another attach: no /dev/fuse there",
            hint="leave the attached shell, or take another access",
        )


def plan_bootstrap(
    attach: Attachment, descriptors: Descriptors, trees: tuple[Tree, ...]
) -> Bootstrap:
    """Plan the pipeline: join the target, nest a mount namespace, mount FUSE."""
    target = attach.target
    joins = tuple(
        Join(kind, descriptors.add(reference.fd, f"{kind} namespace"))
        for kind, reference in joined(attach).items()
    )
    return Bootstrap(
        create=("mnt",),
        joins=joins,
        target_pidfd=descriptors.add(target.pidfd, "pidfd of the target"),
        rootless=not attach.host.privileged,
        oom_score_adj=max(HOST_TOOL_OOM_SCORE, target.oom_score_adj),
        trees=(*outer_root(attach), *trees),
        fuse=fuse_mounts(attach),
    )


def outer_root(attach: Attachment) -> tuple[Tree, ...]:
    """Return the root of the attach around this one: its FUSE mount without what is on it."""
    if not attach.host.root_is_served:
        return ()
    return (Tree(FUSE_ROOT, "/", "outside", recursive=False),)


def fuse_mounts(attach: Attachment) -> tuple[FuseMount, ...]:
    """Return the host's root, and where it is wanted the container's tree with its own ids.

    Inside another attach there is no /dev/fuse, and no need of it: its root is cloned instead.
    """
    if attach.host.root_is_served:
        return ()
    root = FuseMount(FUSE_ROOT)
    if attach.config.root.container_access != "fuse":
        return (root,)
    return (root, FuseMount("c:/", GUARDED))


def plan_mounts(
    attach: Attachment, descriptors: Descriptors
) -> tuple[tuple[Tree, ...], tuple[MountPlan, ...]]:
    """Plan what is cloned in stage 1 and attached in stage 2, in the order of attaching."""
    root = descriptors.add(attach.target.root_fd, "root of the target")
    trees = list(container_trees(attach, descriptors, root))
    trees += [
        Tree(path, path, "inside", beneath=root, attributes=GUARDED, required=False)
        for path in bound_paths(attach)
    ]
    read_only = MOUNT_ATTR_RDONLY if attach.config.root.read_only else 0
    own_proc = ("/proc",) if attach.config.pid_mode == "host" else ()
    trees += [
        Tree(f"host {path}", path, "outside", attributes=read_only, required=False)
        for path in (*attach.host.native, *own_proc)
    ]
    prefix = attach.config.root.container_path
    served = [Tree(mount.name, "/", "inside") for mount in fuse_mounts(attach)[1:]]
    return tuple(trees), tuple(
        MountPlan(Source.TREE, tree.name, _target_of(tree, prefix), required=tree.required)
        for tree in (*served, *trees)
    )


def _target_of(tree: Tree, prefix: str) -> str:
    if tree.name.startswith("c:"):
        return str(PurePosixPath(prefix + tree.path))
    return tree.path


def bound_paths(attach: Attachment) -> tuple[str, ...]:
    """Return the container's paths that replace the host's, of those that exist there."""
    wanted = attach.config.root.from_container
    if attach.config.pid_mode != "join":
        wanted = tuple(path for path in wanted if path != "/proc")
    return tuple(path for path in wanted if path in attach.host.existing)


def plan_hostfs(attach: Attachment) -> HostfsOptions:
    """Plan the FUSE server: the host's tree, with a fixed mount point for all that is mounted."""
    config, target, host = attach.config, attach.target, attach.host
    paths = [config.root.container_path, *KERNEL_DIRECTORIES, *bound_paths(attach), *host.native]
    directories = {*KERNEL_DIRECTORIES, config.root.container_path, *host.native}
    mountpoints = tuple(
        Mountpoint(path, path in directories or path in host.directories)
        for path in dict.fromkeys(paths)
    )
    maps_ids = attach.joins_user_namespace
    return HostfsOptions(
        source=config.root.source,
        read_only=config.root.read_only,
        mountpoints=mountpoints,
        uid_map=target.uid_map if maps_ids else IDENTITY,
        gid_map=target.gid_map if maps_ids else IDENTITY,
        container_root_fd=target.root_fd if attach.routes else None,
        container_path=container_path(target) if attach.routes else (),
        program=host.vessel if attach.routes else b"",
        vessel=host.vessel if attach.routes else None,
        files=profile_files(attach),
    )


def container_path(target: Snapshot) -> tuple[str, ...]:
    """Return the directories of the container's own PATH."""
    variables = dict(entry.split("=", 1) for entry in target.environment if "=" in entry)
    path = variables.get("PATH", DEFAULT_PATH)
    return tuple(directory for directory in path.split(":") if directory.startswith("/"))


def plan_supervisor(attach: Attachment) -> SupervisorOptions | None:
    """Plan supervision and, where it is wanted and possible, routing."""
    config, target, host = attach.config, attach.target, attach.host
    if not attach.supervises:
        return None
    if not attach.routes:
        return SupervisorOptions(mode=config.supervise)
    routing = Routing(
        container_root_fd=target.root_fd,
        namespace_fds=vessel_joins(attach),
        chroot=not target.root_is_namespace_root,
        container_path=container_path(target),
        environment=target.environment,
        cwd=target.cwd,
        calls=credentials.calls(target.credentials, host.last_capability),
        container_prefix=config.root.container_path,
        bound=tuple(path for path in bound_paths(attach) if path in KERNEL_DIRECTORIES),
        oom_score_adj=target.oom_score_adj,
        source=config.root.source,
    )
    return SupervisorOptions(mode=config.supervise, routing=routing)


def vessel_joins(attach: Attachment) -> tuple[tuple[int, int], ...]:
    """Return what a routed program joins: its mount namespace, and where the shell is not in the
    target's already, the others; the user namespace last.
    """
    shell = {kind: reference.inode for kind, reference in joined(attach).items()}
    shell = {**attach.host.namespaces, **shell, "mnt": 0}
    return tuple(
        (attach.target.namespaces[kind].fd, flag)
        for kind, flag in FLAGS.items()
        if kind in attach.target.namespaces and kind != "pid"
        if attach.target.namespaces[kind].inode != shell.get(kind)
    )


def plan_init(attach: Attachment, mount_plans: tuple[MountPlan, ...]) -> InitConfig:
    """Plan stage 2: FUSE root, mounts, terminal, filter, the shell as the user."""
    config, host = attach.config, attach.host
    mounts = mount_plans
    if config.pid_mode == "new":
        mounts = (*mounts, MountPlan(Source.NEW, "proc", "/proc", kind="proc"))
    prefix = config.root.container_path
    return InitConfig(
        process=plan_process(attach),
        root=Root.FUSE,
        root_path=FUSE_ROOT,
        mounts=mounts,
        unmounts=tuple(f"{prefix}{path}" for path in KERNEL_DIRECTORIES),
        new_pid_namespace=config.pid_mode == "new",
        reaper=True,
        seccomp_notify=host.filter_program if attach.supervises else b"",
        vessel=VESSEL if attach.routes else "",
        last_capability=host.last_capability,
        rootless=not host.privileged,
    )


def plan_notes(attach: Attachment) -> tuple[str, ...]:
    """Return what a person at the terminal is told: one line."""
    prefix = attach.config.root.container_path
    writable = "read-only" if attach.config.root.read_only else "writable"
    return (
        f"attached to {attach.target.name}: its files are in {prefix},"
        f" all other files are this host's and {writable}",
    )


def plan_warnings(attach: Attachment) -> tuple[str, ...]:
    """Return what differs from what the configuration says."""
    if not attach.config.routes or attach.routes:
        return ()
    missing = "no routing" if attach.supervises else "no supervision and no routing"
    return (
        f"inside another attach: {missing} here,"
        f" programs in {attach.config.root.container_path} cannot be executed",
    )
