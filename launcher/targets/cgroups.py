"""Which cgroups a process is in, where they are mounted here, and whether one is frozen.

Parsing is pure. Version 1, version 2 and both at once (hybrid) are the same here: a process has
one membership in each hierarchy, and the one of version 2 has the number 0 and no controllers.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import TargetMalformed
from launcher.targets.mounts import Mount

_V1_THAWED = "THAWED"


@dataclass(frozen=True, slots=True)
class CgroupMembership:
    """One line of /proc/PID/cgroup, cgroups(7); ``path`` starts at the reader's cgroup root."""

    hierarchy_id: int
    controllers: tuple[str, ...]
    path: str


def parse_cgroup(text: str) -> tuple[CgroupMembership, ...]:
    """Parse the text of /proc/PID/cgroup. Raises TargetMalformed."""
    return tuple(_parse_line(line) for line in text.split("\n") if line)


def _parse_line(line: str) -> CgroupMembership:
    number, _, rest = line.partition(":")
    controllers, colon, path = rest.partition(":")
    if not (number.isdigit() and colon and path.startswith("/")):
        raise TargetMalformed("cgroup", f"not a membership: {line!r}")
    names = tuple(name for name in controllers.split(",") if name)
    return CgroupMembership(int(number), names, path.removesuffix(" (deleted)"))


def directories(
    memberships: Iterable[CgroupMembership], mounts: Sequence[Mount]
) -> Mapping[CgroupMembership, str]:
    """Return the directory of each membership whose hierarchy is mounted and shows it.

    ``mounts`` are the caller's own (/proc/self/mountinfo). Pure.
    """
    found = {}
    for membership in memberships:
        for mount in mounts:
            directory = _directory_in(mount, membership)
            if directory is not None:
                found[membership] = directory
                break
    return found


def _directory_in(mount: Mount, membership: CgroupMembership) -> str | None:
    if membership.hierarchy_id == 0:
        same_hierarchy = mount.fs_type == "cgroup2"
    else:
        same_hierarchy = (
            mount.fs_type == "cgroup" and set(membership.controllers) <= mount.super_options
        )
    # A path above the reader's cgroup namespace ("/../x") is in no mount that the reader has.
    if not same_hierarchy or membership.path.startswith("/.."):
        return None
    relative = posixpath.relpath(membership.path, mount.root)
    if relative.startswith(".."):
        return None
    return posixpath.normpath(posixpath.join(mount.mount_point, relative))


def frozen_directory(cgroup_directories: Iterable[str]) -> str | None:
    """Return the directory of a frozen (or freezing) cgroup, else None.

    A process that joins one stops at once, and SIGKILL does nothing to it on version 1. Both
    versions show here what an ancestor imposes too.
    """
    for directory in cgroup_directories:
        state = _read(Path(directory, "freezer.state")).strip()
        events = _read(Path(directory, "cgroup.events")).split("\n")
        if "frozen 1" in events or state not in ("", _V1_THAWED):
            return directory
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the root cgroup and other hierarchies have no such file
        return ""
