"""attach: the host's tools inside a running container."""

from __future__ import annotations

import dataclasses

from launcher import settings
from launcher.attach_plan import plan_attach
from launcher.attachment import Attachment
from launcher.engine import Common, Operations
from launcher.host import read_host, refuse_frozen
from launcher.joins import target_spec
from launcher.plan import Plan
from launcher.targets import find
from launcher.targets.snapshot import Snapshot, take
from nsstages.channel import close_all

_SECCOMP_MODE_FILTER = 2


class Attach(Operations[settings.Attach]):
    """The attach of seed 1: join, nest, FUSE root, the container's tree at /c, a routed shell."""

    name = "attach"

    def __init__(self) -> None:
        self._config = settings.Attach()
        self._target: Snapshot | None = None
        self._files: list[int] = []

    def config(self) -> settings.Attach:
        """Return the zero value."""
        return settings.Attach()

    def init_config(self, common: Common[settings.Attach], *, privileged: bool) -> None:
        """Store the configuration."""
        del privileged
        self._config = common.config

    def prepare_config(self) -> Plan:
        """Find the target, read it once, plan."""
        target = take(find(target_spec(self._config.target)))
        self._target = target
        refuse_frozen(target)
        host = read_host(self._config, target)
        self._files = [reference.fd for reference in host.namespace_files.values()]
        # Where nothing is routed they are not needed, and the kernel shows none to the filtered.
        routes = Attachment(self._config, target, host).routes
        if routes and target.seccomp_mode == _SECCOMP_MODE_FILTER:
            from launcher.supervisor.filters import read_filters

            filters = read_filters(target.pid)
            target = self._target = dataclasses.replace(target, seccomp_filters=filters)
        return plan_attach(self._config, target, host)

    def cleanup_container(self, error: BaseException | None, status: int | None) -> None:
        """Close what the snapshot held."""
        del error, status
        if self._target is not None:
            self._target.close()
            self._target = None
        close_all(self._files)
