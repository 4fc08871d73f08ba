"""The calls that take a vessel from the shell's view into the container's, as data.

The order is the kernel's: undumpable before anything else, since after setns(user) root of the
container could read the process's memory; descriptors closed before the container can see them;
every other namespace before the user namespace, which takes the right to join them; credentials
and seccomp filters last before the exec.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from launcher.supervisor.inject import Step
from launcher.supervisor.options import Routing
from nsstages.namespaces import FLAGS
from nsstages.syscalls import PR_SET_DUMPABLE, Call, Packed

_CLONE_FS: Final = 0x200
_NAMES: Final = {flag: kind for kind, flag in FLAGS.items()}
_NOWHERE: Final = -1


@dataclass(frozen=True, slots=True)
class Departure:
    """What differs from exec to exec: the stopped vessel as it was found."""

    path: str  # of the program, in the container
    argv: int  # address of the argument pointers in the vessel
    environment: tuple[bytes, ...]  # of the caller, as K=V
    cwd: str  # in the container
    open_fds: tuple[int, ...]
    unwanted_fds: tuple[int, ...]


class Itinerary:
    """The steps of every routed exec of one supervisor."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing
        self.fds = tuple(fd for fd, _ in routing.namespace_fds)
        if routing.chroot:
            # Only a descriptor that is not O_PATH can be put into another process.
            root = f"/proc/self/fd/{routing.container_root_fd}"
            self.fds += (os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),)

    def close(self) -> None:
        """Close what was opened here."""
        if self._routing.chroot:
            os.close(self.fds[-1])

    def steps(self, departure: Departure, numbers: Sequence[int]) -> tuple[Step, ...]:
        """Return the batch. ``numbers`` are those of ``fds`` once they are in the vessel."""
        return (
            Step(Call("prctl", (PR_SET_DUMPABLE, 0, 0, 0, 0)), "hide the process's memory"),
            Step(Call("unshare", (_CLONE_FS,)), "unshare root and working directory"),
            *(Step(Call("close", (fd,)), f"close {fd}") for fd in departure.unwanted_fds),
            # Not executed: the supervisor answers its notification, with the descriptors.
            Step(Call("execveat", (_NOWHERE, 0, 0, 0, 0)), "receive the descriptors"),
            *self._joins(numbers),
            *self._directories(departure.cwd, numbers),
            *(Step(call, call.name) for call in self._routing.calls),
            self._exec(departure),
        )

    def _joins(self, numbers: Sequence[int]) -> Iterable[Step]:
        for (_, flag), number in zip(self._routing.namespace_fds, numbers, strict=False):
            yield Step(Call("setns", (number, flag)), f"join the {_NAMES[flag]} namespace")

    def _directories(self, cwd: str, numbers: Sequence[int]) -> Iterable[Step]:
        if self._routing.chroot:
            yield Step(Call("fchdir", (numbers[-1],)), "enter the container's root")
            yield Step(Call("chroot", (b".",)), "chroot")
        yield Step(Call("chdir", (b"/",)), "chdir /")
        for path in dict.fromkeys((self._routing.cwd, cwd)):
            # A directory may be gone; the one before it stays then.
            yield Step(Call("chdir", (os.fsencode(path),)), f"chdir {path}", may_fail=True)

    def _exec(self, departure: Departure) -> Step:
        environment = tuple(
            variable + b"\0" for variable in merged(self._routing, departure.environment)
        )
        pointers = Packed(f"={len(environment) + 1}Q", (*environment, 0))
        path = os.fsencode(departure.path)
        return Step(Call("execve", (path, departure.argv, pointers)), f"exec {departure.path}")


def merged(routing: Routing, of_caller: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the container's environment with the variables to keep from the caller's."""
    keep = {os.fsencode(name) for name in routing.keep}
    kept = {name: v for v in of_caller if (name := v.partition(b"=")[0]) in keep}
    own = (os.fsencode(variable) for variable in routing.environment)
    return (*(v for v in own if v.partition(b"=")[0] not in kept), *kept.values())
