"""The word CONFIG: what stage 2 makes of the namespaces it was born into, and what it becomes.

Typed and checked like the bootstrap. It is sent when stages 0 and 1 are gone and, with a FUSE
root, when the FUSE server answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from nsstages.credentials import Credentials


class Root(StrEnum):
    """How stage 2 gets its root directory."""

    KEEP = "keep"  # that of the mount namespace it is in
    CHROOT = "chroot"  # the first descriptor of CONFIG, a directory
    DIRECTORY = "directory"  # `root_path`, as a mount of its own, by pivot_root
    FUSE = "fuse"  # the FUSE mount of the name `root_path` that stage 1 made, by pivot_root


class Source(StrEnum):
    """Where a mount comes from."""

    TREE = "tree"  # cloned by stage 1; `source` is the Tree's name
    BIND = "bind"  # a path of the old root, asked from the manager where stage 2 may not go
    NEW = "new"  # a new file system of type `kind`
    SYMLINK = "symlink"  # no mount: a link at `target` with the text `source`


@dataclass(frozen=True, slots=True)
class MountPlan:
    """One mount below the new root, in order. ``target`` is resolved inside the new root."""

    source_kind: str
    source: str
    target: str
    kind: str = ""
    options: tuple[str, ...] = ()  # key or key=value, for a new file system
    attributes: int = 0  # MOUNT_ATTR_*
    create_target: bool = False
    required: bool = True


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A resource limit; ``resource`` is the number of RLIMIT_*, -1 means infinity."""

    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Process:
    """The program: ``env`` as K=V, ``cwd`` inside the new root, ``argv`` never empty."""

    argv: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str = "/"
    cwd_fallback: str = "/"
    umask: int | None = None
    credentials: Credentials = field(default_factory=Credentials)
    rlimits: tuple[Rlimit, ...] = ()
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class InitConfig:
    """All of stage 2's work after the handshake. Empty strings and tuples mean: not wanted."""

    process: Process
    root: str = Root.KEEP
    root_path: str = ""
    root_read_only: bool = False
    mounts: tuple[MountPlan, ...] = ()
    unmounts: tuple[str, ...] = ()  # paths below the new root to detach or, if locked, cover
    hostname: str = ""
    domainname: str = ""
    loopback: bool = False
    new_pid_namespace: bool = False
    reaper: bool = False  # stay above the program
    seccomp_notify: bytes = b""  # a sock_filter array; the listener goes to the supervisor
    vessel: str = ""  # path whose descriptor goes to the supervisor
    last_capability: int = 40
    rootless: bool = False  # the supervisor has no rights over a process that is not dumpable
    timeout: int = 10
