"""The eight namespace kinds, the order in which to join them, and what each process lives in."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from nsstages import syscalls

# The order of the keys is the order of joining, but for the user namespace (see join_order).
FLAGS: Final = MappingProxyType(
    {
        "ipc": syscalls.CLONE_NEWIPC,
        "uts": syscalls.CLONE_NEWUTS,
        "net": syscalls.CLONE_NEWNET,
        "pid": syscalls.CLONE_NEWPID,
        "cgroup": syscalls.CLONE_NEWCGROUP,
        "time": syscalls.CLONE_NEWTIME,
        "mnt": syscalls.CLONE_NEWNS,
        "user": syscalls.CLONE_NEWUSER,
    }
)


@dataclass(frozen=True, slots=True)
class Join:
    """Join the namespace of ``kind``; ``fd`` is an index into the bootstrap's descriptors."""

    kind: str
    fd: int


def flags_of(kinds: Iterable[str]) -> int:
    """Return the CLONE_NEW* mask of ``kinds``."""
    mask = 0
    for kind in kinds:
        mask |= FLAGS[kind]
    return mask


def join_order(joins: Iterable[Join], *, rootless: bool) -> tuple[Join, ...]:
    """Sort joins. The user namespace comes last where the launcher has rights outside, since the
    other joins need them; first where it has none, since only it gives them (runc's passes).
    """
    order = list(FLAGS)
    if rootless:
        order = ["user", *order[:-1]]
    return tuple(sorted(joins, key=lambda join: order.index(join.kind)))


def inodes(pid: int | str = "self") -> dict[str, int]:
    """Return the inode number of each namespace of ``pid``, of those that /proc lets us see."""
    seen = {}
    for kind in FLAGS:
        try:
            seen[kind] = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
        except OSError:
            continue
    return seen
