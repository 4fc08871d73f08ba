"""What the manager tells the supervisor: frozen values, built before the fork, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from nsstages.syscalls import Call

BOUND: Final = ("/dev", "/proc", "/sys")


class Mode(StrEnum):
    """Whom the supervisor traces."""

    TREE = "tree"  # the shell and everything that it starts
    ROUTED = "routed"  # a program only while it is being routed
    OFF = "off"  # nobody: execs are let through


@dataclass(frozen=True, slots=True)
class Routing:
    """How a program of the container gets into the container's own view.

    ``namespace_fds`` are pairs of a descriptor and its CLONE_NEW* flag in the order of joining,
    ``mnt`` always among them, ``user`` last. ``chroot`` asks for a chroot to
    ``container_root_fd`` after the joins. ``bound`` are the prefixes below which the shell sees
    the container's own mounts. ``calls`` are the target's credentials (nsstages.credentials),
    executed after the joins. ``environment`` is that of the container's init as K=V; variables
    named in ``keep`` come from the caller of execve instead, where it has them.
    """

    container_root_fd: int
    namespace_fds: tuple[tuple[int, int], ...]
    chroot: bool = False
    container_path: tuple[str, ...] = ()
    container_prefix: str = "/c"
    bound: tuple[str, ...] = BOUND
    program_directory: str = "/.launcher/bin"
    environment: tuple[str, ...] = ()
    keep: tuple[str, ...] = ("TERM", "COLUMNS", "LINES")
    cwd: str = "/"
    calls: tuple[Call, ...] = ()
    oom_score_adj: int | None = None
    source: str = "/"


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """Whom to trace, and how to route; without ``routing`` every exec is an ordinary one."""

    mode: str = Mode.TREE
    routing: Routing | None = None

    def descriptors(self) -> tuple[int, ...]:
        """Return the descriptors that the forked supervisor needs besides its channel."""
        if self.routing is None:
            return ()
        joined = (fd for fd, _ in self.routing.namespace_fds)
        return (self.routing.container_root_fd, *joined)
