"""What an attach is made of: its configuration, its target, the facts about the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from launcher.people import Person
from launcher.settings import Attach, chosen
from launcher.targets.snapshot import NamespaceRef, Snapshot
from nsstages.namespaces import FLAGS
from nsstages.syscalls import MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID

GUARDED: Final = MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID
FUSE_ROOT: Final = "host"
PROGRAMS: Final = "/.launcher/bin"
VESSEL: Final = "/.launcher/vessel"
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KERNEL_DIRECTORIES: Final = ("/proc", "/dev", "/sys")
HOST_TOOL_OOM_SCORE: Final = 1000  # a 20 MiB host tool got a small container's own init killed


@dataclass(frozen=True, slots=True)
class Host:
    """The facts about this machine and user that a plan depends on, read once."""

    namespaces: Mapping[str, int]
    privileged: bool
    person: Person
    environment: Mapping[str, str]
    cwd: str
    last_capability: int
    cgroup_directories: tuple[str, ...]
    existing: frozenset[str]  # which of the paths to bind exist in the container
    directories: frozenset[str]  # which of those are directories
    native: tuple[str, ...]  # host subtrees to attach, without those inside others
    vessel: bytes
    filter_program: bytes
    interactive: bool
    namespace_files: Mapping[str, NamespaceRef]  # those that the configuration names by file
    is_supervised: bool  # by the supervisor of another attach, around this one
    root_is_served: bool  # by the FUSE server of another attach: what it has not, this has not


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attach before it is planned, with the decisions that several parts of the plan need."""

    config: Attach
    target: Snapshot
    host: Host

    @property
    def joins_user_namespace(self) -> bool:
        """Host root keeps the shell out of reach of the container's root (kernel's own rule)."""
        wanted = self.config.user_namespace
        if self.target.namespaces["user"].inode == self.host.namespaces["user"]:
            return False
        return wanted == "join" if wanted is not None else not self.host.privileged

    @property
    def supervises(self) -> bool:
        """Tell whether a supervisor is started: a process can have one only."""
        return self.config.supervise != "off" and not self.host.is_supervised

    @property
    def routes(self) -> bool:
        """Tell whether the container's programs run in its own view. Inside another attach the root
        is that one's, and the vessel in it, if there is one, is of the other container.
        """
        return self.config.routes and self.supervises and not self.host.root_is_served


def joined(attach: Attachment) -> dict[str, NamespaceRef]:
    """Return what to join: the target's kinds that are wanted and differ from the host's, and
    the files that the configuration names instead.
    """
    config, own = attach.config, attach.host.namespaces
    wanted = set(chosen(config.namespaces) or FLAGS) | {"mnt"}
    wanted -= {"user"} if not attach.joins_user_namespace else set()
    wanted -= {"pid"} if config.pid_mode == "host" else set()
    references = {**attach.target.namespaces, **attach.host.namespace_files}
    return {
        kind: reference
        for kind, reference in references.items()
        if kind in wanted and reference.inode != own.get(kind)
    }
