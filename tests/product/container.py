"""A running test container and what every engine that starts one can do.

The classes of the engines differ in three methods: start one, run a program in it, remove it.
"""

from __future__ import annotations

import os
import select
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tests.leaks import GRACE
from tests.product.images import Image, image
from tests.product.view import View
from tests.session import Session

MARK: Final = "CONTAINER_MARK"  # in every container's environment, with the container's name
COMMAND: Final = ("/bin/pause",)
SCRATCH: Final = "/scratch"  # a tmpfs in every container: a mount below its root
_CGROUPS: Final = Path("/sys/fs/cgroup")
_GONE: Final = 5.0  # seconds in which all traces of a removed container must disappear


@dataclass(frozen=True, slots=True)
class Wish:
    """The container that a test wants. ``capabilities`` come on top of the engine's own set."""

    image: Image
    command: tuple[str, ...]
    name: str
    userns: bool
    user: int | None
    capabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Container:
    """A running container; ``identity`` is the name that the engine's files and cgroups carry."""

    engine: Engine
    name: str
    pid: int
    image: Image
    userns: bool
    identity: str

    @property
    def spec(self) -> str:
        """How `launcher attach` is told to find it."""
        return f"{self.engine.name}:{self.name}"

    def exec(self, *argv: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program in it by the engine's own means and wait for it."""
        command = self.engine.exec_command(self, argv, user)
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env=os.environ | self.engine.environment,
        )

    def view(self) -> View:
        """Return how a process that the engine starts in it sees the world."""
        done = self.exec("/bin/onlyhere")
        assert (0, "") == (done.returncode, done.stderr)
        return View.parse(done.stdout)

    def processes(self) -> frozenset[int]:
        """Return the pids, as the host sees them, of its PID namespace; none when it has ended."""
        try:
            return frozenset(_processes_of(os.stat(f"/proc/{self.pid}/ns/pid").st_ino))
        except OSError:  # also EINVAL, of a zombie
            return frozenset()

    def processes_beside(self, known: frozenset[int]) -> list[int]:
        """Return the processes in it that are not ``known`` and do not end in a moment."""
        deadline = time.monotonic() + GRACE
        while (others := self.processes() - known) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sorted(others)

    def stop(self) -> None:
        """Remove it. Raises AssertionError when its process, a mount or a cgroup stays."""
        with ends(self.pid, f"the first process of {self.spec}"):
            self.engine.remove(self)
        wait_until_gone(self)
        _remove_empty_cgroups(self.engine.session.cgroup)


class Engine(ABC):
    """One container engine on this machine, as one test worker uses it."""

    name: ClassVar[str]
    has_userns: ClassVar[bool]

    def __init__(self, session: Session) -> None:
        self.session = session
        self.live: list[Container] = []

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables with which the engine's client, and the launcher, find its containers."""
        return {}

    @abstractmethod
    def run(self, wish: Wish) -> Container:
        """Start a container and return when its first process runs."""

    @abstractmethod
    def exec_command(
        self, container: Container, argv: Sequence[str], user: int | None
    ) -> list[str]:
        """Return the command that runs ``argv`` in ``container``."""

    @abstractmethod
    def remove(self, container: Container) -> None:
        """Kill and remove it, also when it has ended already."""

    def start(
        self,
        image_name: str,
        command: Sequence[str] = COMMAND,
        *,
        userns: bool = False,
        user: int | None = None,
        name: str | None = None,
        capabilities: Sequence[str] = (),
    ) -> Container:
        """Start a container of an image of images.py; whoever starts it stops it."""
        wish = Wish(
            image=image(self.session, image_name),
            command=tuple(command),
            name=name or self.session.unique_name(),
            userns=userns,
            user=user,
            capabilities=tuple(capabilities),
        )
        container = self.run(wish)
        _wait_for_exec(container)
        self.live.append(container)
        return container

    def stop(self, container: Container) -> None:
        """Stop a container of this engine and check that nothing of it is left."""
        self.live.remove(container)
        container.stop()

    def call(self, *argv: str) -> str:
        """Run the engine's client and return what it prints; its error message is the failure."""
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env=os.environ | self.environment,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
        return done.stdout.strip()


@contextmanager
def ends(pid: int, what: str) -> Iterator[None]:
    """Check that the process ``pid``, if there is one, is gone soon after the body."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield
        return
    try:
        yield
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        assert poller.poll(_GONE * 1000), f"{what}: process {pid} survived"
    finally:
        os.close(pidfd)


def _wait_for_exec(container: Container) -> None:
    """Wait until the runtime's init has become the program; runc returns a moment before."""
    deadline = time.monotonic() + _GONE
    while Path(f"/proc/{container.pid}/comm").read_text().startswith("runc:["):
        assert time.monotonic() < deadline, f"{container.spec} does not execute its program"
        time.sleep(0.005)


def wait_until_gone(container: Container) -> None:
    """Wait until no mount and no cgroup carries the container's name. Raises AssertionError."""
    deadline = time.monotonic() + _GONE
    while traces := [*_mounts_of(container), *_cgroups_of(container)]:
        assert time.monotonic() < deadline, f"{container.spec} left {traces}"
        time.sleep(0.02)


def _mounts_of(container: Container) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if container.identity in line or f"/{container.name}/" in line:
            yield line


def _cgroups_of(container: Container) -> Iterator[str]:
    parent = container.engine.session.session_id
    for hierarchy in _hierarchies():
        for directory, subdirectories, _ in os.walk(hierarchy / parent):
            for name in subdirectories:
                if container.identity in name:
                    yield os.path.join(directory, name)


def _hierarchies() -> Iterator[Path]:
    """Yield every directory that can be the root of a cgroup hierarchy, of version 1 or 2."""
    yield _CGROUPS
    yield from _CGROUPS.iterdir()


def _remove_empty_cgroups(parent: str) -> None:
    """Remove what no other container of the worker uses; podman leaves a cgroup for monitors."""
    for hierarchy in _hierarchies():
        for directory, _, _ in os.walk(f"{hierarchy}{parent}", topdown=False):
            with suppress(OSError):
                os.rmdir(directory)


def _processes_of(namespace: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if os.stat(f"/proc/{entry}/ns/pid").st_ino == namespace:
                    yield int(entry)
