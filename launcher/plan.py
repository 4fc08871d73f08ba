"""The plan: everything a launch will do, as one frozen value, before anything is done.

Pure data. Engines build it from a configuration and a target snapshot; `explain` prints it and
lifecycle.py executes it: there is no second source of what a launch does.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from launcher.hostfs.options import HostfsOptions
from launcher.supervisor.options import SupervisorOptions
from nsstages.bootstrap import Bootstrap
from nsstages.idmap import IdMap
from nsstages.init_config import InitConfig


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor that travels with the bootstrap; the plan's owner closes it.

    With ``maps`` (uid and gid) it is a user namespace that exists only to map an idmapped mount:
    the session makes it just before the first fork, so that `explain` forks nothing. With
    ``new_cgroup`` it is that cgroup's directory, made then too and removed at the end.
    """

    fd: int
    what: str
    maps: tuple[IdMap, IdMap] | None = None
    new_cgroup: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run. Descriptor indexes in ``bootstrap`` point into ``descriptors``."""

    engine: str
    bootstrap: Bootstrap
    init: InitConfig
    descriptors: tuple[Descriptor, ...] = ()
    config_descriptors: tuple[Descriptor, ...] = ()
    cgroup_directories: tuple[str, ...] = ()
    hostfs: tuple[HostfsOptions, ...] = ()  # one FUSE server for each of bootstrap.fuse
    supervisor: SupervisorOptions | None = None
    target_pidfd: int = -1
    target_name: str = ""
    forward_signals: bool = True
    time_limit: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Descriptors:
    """Collects the descriptors of a plan and hands out their indexes."""

    def __init__(self) -> None:
        self._all: list[Descriptor] = []

    def add(
        self,
        fd: int,
        what: str,
        maps: tuple[IdMap, IdMap] | None = None,
        new_cgroup: str = "",
    ) -> int:
        """Return the index of ``fd``."""
        self._all.append(Descriptor(fd, what, maps, new_cgroup))
        return len(self._all) - 1

    def all(self) -> tuple[Descriptor, ...]:
        """Return all of them, in order."""
        return tuple(self._all)


def describe(plan: Plan) -> dict[str, Any]:
    """Return the plan as JSON values. Values of the environment and filters are abbreviated."""
    described = _plain(plan)
    if not isinstance(described, dict):
        raise TypeError("a plan is a dataclass")
    return described


def _plain(value: Any) -> Any:
    if isinstance(value, Descriptor):
        return value.what
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _field(name, getattr(value, name)) for name in names}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return value


def _field(name: str, value: Any) -> Any:
    if name in ("env", "environment"):
        return [entry.partition("=")[0] for entry in value]
    return _plain(value)
