"""Who is at the keyboard: the host user whose shell, home and ids an attach uses."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ConfigError, Problem


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the host with all groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str


def invoking_person(environment: Mapping[str, str]) -> Person:
    """Return the user behind sudo when there is one, else who runs this process."""
    behind = environment.get("SUDO_UID", "")
    if os.geteuid() == 0 and behind.isdigit() and int(behind) != 0:
        return _of_entry(_entry(int(behind)))
    return _of_entry(_entry(os.geteuid()))


def person_named(spec: str) -> Person:
    """Return the host user NAME, UID or NAME:GROUP. Raises ConfigError naming the key ``user``."""
    name, _, group = spec.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        person = _of_entry(entry)
    except KeyError:
        problem = Problem("user", f"the host has no user {name!r}")
        raise ConfigError("configuration", [problem]) from None
    if not group:
        return person
    gid = _group_id(group)
    return Person(person.name, person.uid, gid, (gid,), person.home, person.shell)


def _group_id(name: str) -> int:
    import grp

    try:
        return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        problem = Problem("user", f"the host has no group {name!r}")
        raise ConfigError("configuration", [problem]) from None


def _entry(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        home = os.environ.get("HOME", "/")
        return pwd.struct_passwd((str(uid), "x", uid, os.getegid(), "", home, "/bin/sh"))


def _of_entry(entry: pwd.struct_passwd) -> Person:
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    shell = entry.pw_shell or "/bin/sh"
    return Person(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir, shell)


def subordinate_ids(path: str, user: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the (first, count) ranges of ``user`` in /etc/subuid or /etc/subgid."""
    ranges = []
    try:
        lines = Path(path).read_text().splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in (user, str(uid)) and first.isdigit() and count.isdigit():
            ranges.append((int(first), int(count)))
    return tuple(ranges)
