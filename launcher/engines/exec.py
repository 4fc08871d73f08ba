"""exec: one program in a running container, as one of the container's own."""

from __future__ import annotations

import dataclasses
import os

from launcher import settings
from launcher.engine import Common, Operations
from launcher.errors import ConfigError, Problem
from launcher.exec_plan import ExecHost, plan_exec
from launcher.host import cgroup_directories, refuse_frozen
from launcher.joins import open_namespace_files, target_spec
from launcher.plan import Plan
from launcher.targets import find
from launcher.targets.snapshot import Snapshot, take
from launcher.targets.users import look_up
from launcher.terminal import is_interactive
from nsstages import namespaces
from nsstages.channel import close_all
from nsstages.credentials import last_capability

_SECCOMP_MODE_FILTER = 2


class Exec(Operations[settings.Exec]):
    """Join all of the target and become a program with its environment, limits and rights."""

    name = "exec"

    def __init__(self) -> None:
        self._config = settings.Exec()
        self._target: Snapshot | None = None
        self._files: list[int] = []

    def config(self) -> settings.Exec:
        """Return the zero value."""
        return settings.Exec()

    def init_config(self, common: Common[settings.Exec], *, privileged: bool) -> None:
        """Store the configuration."""
        del privileged
        self._config = common.config

    def prepare_config(self) -> Plan:
        """Find the target, read it once, look the user up in its own files, plan."""
        if not self._config.command:
            raise ConfigError("configuration", [Problem("command", "missing: what to execute")])
        target = take(find(target_spec(self._config.target)))
        self._target = target
        refuse_frozen(target)
        if target.seccomp_mode == _SECCOMP_MODE_FILTER:
            from launcher.supervisor.filters import read_filters

            filters = read_filters(target.pid)
            target = self._target = dataclasses.replace(target, seccomp_filters=filters)
        return plan_exec(self._config, target, self._read_host(target))

    def _read_host(self, target: Snapshot) -> ExecHost:
        files = open_namespace_files(self._config.namespaces)
        self._files = [reference.fd for reference in files.values()]
        user = self._config.user
        return ExecHost(
            namespaces=namespaces.inodes(),
            namespace_files=files,
            privileged=os.geteuid() == 0,
            terminal=os.environ.get("TERM", "xterm"),
            cgroup_directories=cgroup_directories(target),
            last_capability=last_capability(),
            interactive=is_interactive(),
            user=look_up(target.root_fd, user) if user is not None else None,
        )

    def cleanup_container(self, error: BaseException | None, status: int | None) -> None:
        """Close what the snapshot held."""
        del error, status
        if self._target is not None:
            self._target.close()
            self._target = None
        close_all(self._files)
