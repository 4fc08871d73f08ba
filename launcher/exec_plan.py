"""From the exec options and a snapshot to the plan of an exec: a program as one of the target's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.attachment import DEFAULT_PATH
from launcher.plan import Descriptor, Descriptors, Plan
from launcher.settings import Exec, chosen
from launcher.targets.snapshot import NamespaceRef, Snapshot
from launcher.targets.users import User
from nsstages.bootstrap import Bootstrap
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.init_config import InitConfig, Process, Rlimit, Root
from nsstages.namespaces import FLAGS, Join


@dataclass(frozen=True, slots=True)
class ExecHost:
    """The facts that an exec's plan depends on."""

    namespaces: Mapping[str, int]
    namespace_files: Mapping[str, NamespaceRef]
    privileged: bool
    terminal: str
    cgroup_directories: tuple[str, ...]
    last_capability: int
    interactive: bool
    user: User | None


def plan_exec(config: Exec, target: Snapshot, host: ExecHost) -> Plan:
    """Return the plan: join everything of the target, take its rights, exec."""
    descriptors = Descriptors()
    references = {**target.namespaces, **host.namespace_files}
    wanted = chosen(config.namespaces) or dict.fromkeys(FLAGS)
    joins = tuple(
        Join(kind, descriptors.add(reference.fd, f"{kind} namespace"))
        for kind, reference in references.items()
        if kind in wanted and reference.inode != host.namespaces.get(kind)
    )
    enters_root = "mnt" in wanted
    bootstrap = Bootstrap(
        joins=joins,
        target_pidfd=descriptors.add(target.pidfd, "pidfd of the target"),
        rootless=not host.privileged,
        oom_score_adj=target.oom_score_adj if host.privileged else None,
    )
    init = InitConfig(
        process=plan_process(config, target, host),
        root=Root.CHROOT if enters_root else Root.KEEP,
        last_capability=host.last_capability,
        rootless=not host.privileged,
    )
    root = (Descriptor(target.root_fd, "root of the target"),) if enters_root else ()
    return Plan(
        engine="exec",
        bootstrap=bootstrap,
        init=init,
        descriptors=descriptors.all(),
        config_descriptors=root,
        cgroup_directories=host.cgroup_directories if config.cgroup == "join" else (),
        target_pidfd=target.pidfd,
        target_name=f"{target.engine} container {target.name}",
        time_limit=config.timeout,
    )


def plan_process(config: Exec, target: Snapshot, host: ExecHost) -> Process:
    """Plan the program: the init's environment, directory, limits and rights, or the user's."""
    environment = {} if config.clear_env else _variables(target.environment)
    environment.setdefault("PATH", DEFAULT_PATH)
    if host.user is not None:
        environment["HOME"] = host.user.home
    terminal = host.interactive if config.terminal == "auto" else config.terminal
    if terminal:
        environment["TERM"] = host.terminal
    environment |= dict(config.env)
    return Process(
        argv=tuple(config.command),
        env=tuple(f"{name}={value}" for name, value in environment.items()),
        cwd=config.cwd or target.cwd,
        cwd_fallback=config.cwd or "/",
        umask=target.umask,
        credentials=credentials_of(target, host.user),
        rlimits=tuple(Rlimit(n, soft, hard) for n, (soft, hard) in target.limits.items()),
        terminal=terminal,
    )


def credentials_of(target: Snapshot, user: User | None) -> Credentials:
    """Return the target's rights; as another user than root without its effective sets."""
    rights = target.credentials
    if user is None:
        return rights
    groups = user.groups if target.setgroups_allowed else None
    capabilities = rights.capabilities
    if user.uid != 0 and capabilities is not None:
        capabilities = CapabilitySets(bounding=capabilities.bounding)
    return dataclasses.replace(
        rights, uid=user.uid, gid=user.gid, groups=groups, capabilities=capabilities
    )


def _variables(environment: tuple[str, ...]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in environment if "=" in entry)
