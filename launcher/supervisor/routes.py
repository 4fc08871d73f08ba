"""Which view does an exec belong to? Pure: what it must know of the system it asks a Resolver.

The kernel's walk in the shell's mount namespace is followed component by component. Up to the
container's tree it goes over the host's files; from there on it belongs to the container, whose
absolute links mean the container's root, as they do for the container itself. Links of /proc
lead to whatever a process has open, which only the identity of the mount can tell (mounts.py).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Final, Protocol

from launcher.supervisor.mounts import is_below

_MAX_LINKS: Final = 40  # the kernel's own limit
_MAGIC_LINKS: Final = frozenset(("exe", "root", "cwd"))
_MAGIC_DIRECTORIES: Final = frozenset(("fd", "map_files"))
_PROC_LINKS: Final = MappingProxyType(
    {
        "thread-self": ("self", "task", "thread-self"),
        "net": ("self", "net"),
        "mounts": ("self", "mounts"),
    }
)


class Where(Enum):
    """Whose file system a place is in."""

    HOST = "host"
    CONTAINER = "container"
    FOREIGN = "foreign"  # a mount that the shell's namespace does not have


@dataclass(frozen=True, slots=True)
class Place:
    """A file or directory: ``path`` is absolute in the host's or the container's root."""

    where: Where
    path: str


@dataclass(frozen=True, slots=True)
class Target:
    """What an execve or execveat names. ``directory_fd`` None is the working directory.

    An empty ``path`` is the file behind ``directory_fd`` itself (AT_EMPTY_PATH).
    """

    path: str
    directory_fd: int | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """An ordinary exec; also one that will fail by itself, with the errno that the kernel says.

    ``watched``: the way led through something that the container can exchange before the kernel
    walks it again, so what is executed must be looked at. ``doubtful``: it can be a link.
    """

    watched: bool = False
    doubtful: bool = False


@dataclass(frozen=True, slots=True)
class Container:
    """A program of the container, by its path there."""

    path: str


@dataclass(frozen=True, slots=True)
class Refused:
    """An exec that must not happen."""

    error: int


Decision = Host | Container | Refused
HOST: Final = Host()


class Resolver(Protocol):
    """What a decision asks about one caller; links that cannot be read are no links."""

    def host_link(self, path: str) -> str | None:
        """Return the text of a symbolic link of the host."""

    def container_link(self, path: str) -> str | None:
        """Return the text of a symbolic link of the container."""

    def container_program(self, name: str) -> str | None:
        """Return the container's path of a program in its PATH."""

    def start(self, directory_fd: int | None) -> Place:
        """Return the working directory of the caller, or what its descriptor is."""

    def process_link(self, process: str, link: str) -> Place | None:
        """Return where /proc/``process``/``link`` leads; None when there is no such link."""


@dataclass(frozen=True)
class Layout:
    """Where the shell sees what: the paths of Routing."""

    container_prefix: str
    bound: frozenset[str]
    program_directory: str

    @cached_property
    def doors(self) -> frozenset[str]:
        """Return the paths at which a walk over the host's files leaves them."""
        return self.bound | {self.container_prefix, self.program_directory, "/proc"}

    @property
    def container_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes below which the container's own mounts are."""
        return (self.container_prefix, *sorted(self.bound))

    def place_of(self, path: str) -> Place:
        """Return the place of a canonical path of the shell in the container's tree."""
        if any(is_below(path, prefix) for prefix in self.bound):
            return Place(Where.CONTAINER, path)
        return Place(Where.CONTAINER, path.removeprefix(self.container_prefix) or "/")


def decide(target: Target, layout: Layout, resolver: Resolver) -> Decision:
    """Return the view that an exec of ``target`` belongs to."""
    if target.path.startswith("/"):
        if _is_plain(target.path, layout, resolver):
            return HOST
        return _Walk(layout, resolver).follow(target.path)
    walk = _Walk(layout, resolver)
    place = resolver.start(target.directory_fd)
    if place.where is Where.FOREIGN:
        return Refused(errno.EACCES)
    if not target.path:
        return Container(place.path) if place.where is Where.CONTAINER else HOST
    if is_below(place.path, "/proc"):
        # From the top, since the links below it are not what their text says.
        return walk.follow(f"{place.path}/{target.path}")
    walk.stand_at(place)
    return walk.follow(target.path)


def _is_plain(path: str, layout: Layout, resolver: Resolver) -> bool:
    """Tell whether a walk meets nothing but the host's: the shortest decision, for most execs.

    A path with a ".." is left to the long walk.
    """
    at = ""
    links = 0
    pending = path.split("/")[::-1]
    while pending:
        component = pending.pop()
        if not component or component == ".":
            continue
        candidate = f"{at}/{component}"
        if component == ".." or candidate in layout.doors:
            return False
        link = resolver.host_link(candidate)
        if link is None:
            at = candidate
            continue
        links += 1
        if links > _MAX_LINKS:
            return True  # ELOOP, says the kernel
        at = "" if link.startswith("/") else at
        pending += link.split("/")[::-1]
    return True


class _Walk:
    """One walk. ``_at`` is the position without a trailing slash, "" for the root."""

    def __init__(self, layout: Layout, resolver: Resolver) -> None:
        self._layout = layout
        self._resolver = resolver
        self._at = ""
        self._inside = False  # in the container's root
        self._by_prefix = False  # below the container prefix: /proc there is a plain directory
        self._pending: list[str] = []  # components still to walk, the next one last
        self._from_caller = 0  # how many of the first pending come from the caller or the host
        self._links = 0
        self._watched = False
        self._doubtful = False

    def stand_at(self, place: Place) -> None:
        """Go on from ``place``."""
        self._inside = place.where is Where.CONTAINER
        self._at = "" if place.path == "/" else place.path
        self._by_prefix = self._inside and not any(
            is_below(self._at, prefix) for prefix in self._layout.bound
        )

    def follow(self, path: str) -> Decision:
        """Walk ``path`` from here."""
        self._push(path)
        self._from_caller = len(self._pending)
        while self._pending:
            if self._by_prefix and ".." not in self._pending:
                break  # what is left, the kernel resolves inside the container
            component = self._pending.pop()
            of_container = len(self._pending) >= self._from_caller
            self._from_caller = min(self._from_caller, len(self._pending))
            decision = self._step(component, of_container=of_container)
            if decision is not None:
                return decision
        if not self._inside:
            return self._host()
        rest = "".join(f"/{component}" for component in reversed(self._pending))
        return Container(self._at + rest or "/")

    def _host(self) -> Decision:
        return Host(self._watched, self._doubtful) if self._watched else HOST

    def _push(self, path: str) -> None:
        if path.startswith("/"):
            self._at = ""
        self._pending.extend(c for c in reversed(path.split("/")) if c and c != ".")

    def _step(self, component: str, *, of_container: bool) -> Decision | None:
        if component == "..":
            self._up(of_container=of_container)
            return None
        candidate = f"{self._at}/{component}"
        if candidate == "/proc" and not self._by_prefix:
            return self._enter_proc()
        if not self._inside and candidate in self._layout.doors:
            return self._enter(candidate)
        return self._enter_ordinary(candidate)

    def _up(self, *, of_container: bool) -> None:
        """Walk "..". A link of the container stays below its root, the caller's path does not."""
        if self._inside and not of_container:
            if self._by_prefix and not self._at:
                self._inside = self._by_prefix = False
                self._at = self._layout.container_prefix
            elif not self._by_prefix and self._at in self._layout.bound:
                self._inside = False
        self._at = self._at.rpartition("/")[0]

    def _enter(self, door: str) -> Decision | None:
        if door == self._layout.program_directory:
            return self._enter_programs()
        self._inside = self._watched = True
        self._by_prefix = door == self._layout.container_prefix
        self._at = "" if self._by_prefix else door
        return None

    def _enter_ordinary(self, candidate: str) -> Decision | None:
        read = self._resolver.container_link if self._inside else self._resolver.host_link
        link = read(candidate)
        if link is None:
            self._at = candidate
            return None
        self._links += 1
        if self._links > _MAX_LINKS:
            return self._host()
        self._push(link)
        if self._inside:
            self._doubtful = True
        else:
            self._from_caller = len(self._pending)
        return None

    def _enter_programs(self) -> Decision | None:
        """In the program directory: its entries are programs of the container, found by name."""
        if not self._pending or self._pending[-1] == "..":
            self._at = self._layout.program_directory
            return None
        path = self._resolver.container_program(self._pending[-1])
        return self._host() if path is None or len(self._pending) > 1 else Container(path)

    def _enter_proc(self) -> Decision | None:
        """In /proc: nothing is a program but what the links of processes lead to."""
        self._at = "/proc"
        self._watched = True
        self._inside = self._inside or "/proc" in self._layout.bound
        inner: list[str] = []
        while self._pending:
            component = self._pending.pop()
            if component == ".." and not inner:
                self._up(of_container=False)
                return None
            if component == "..":
                inner.pop()
                continue
            inner += _PROC_LINKS.get(component, (component,)) if not inner else (component,)
            link = _process_link(inner)
            place = self._resolver.process_link(*link) if link is not None else None
            if place is not None:
                return self._go_on_from(place)
        return self._host()

    def _go_on_from(self, place: Place) -> Decision | None:
        if place.where is Where.FOREIGN:
            return Refused(errno.EACCES)
        if not self._pending:
            return Container(place.path) if place.where is Where.CONTAINER else self._host()
        self._from_caller = min(self._from_caller, len(self._pending))
        self.stand_at(place)
        return None


def _process_link(inner: list[str]) -> tuple[str, str] | None:
    """Return (process, link) when a path below /proc ends at a link of a process."""
    process, rest = inner[0], inner[1:]
    if len(rest) > 2 and rest[0] == "task":
        process, rest = rest[1], rest[2:]
    if len(rest) == 1 and rest[0] in _MAGIC_LINKS:
        return process, rest[0]
    if len(rest) == 2 and rest[0] in _MAGIC_DIRECTORIES:
        return process, "/".join(rest)
    return None
