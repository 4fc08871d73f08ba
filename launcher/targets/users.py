"""A container's users: its own /etc/passwd and /etc/group, read as data.

Never through NSS (a library of the container, or the host's idea of its users). The files are the
container's word: they are opened inside its root only, must be regular files, and are read up to a
bound by a child that can be killed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from launcher.errors import TargetMalformed, UnknownUser
from launcher.targets.bounded import Answer, in_child
from nsstages.syscalls import open_in_root

MAX_FILE: Final = 1024 * 1024
_MAX_ID: Final = 2**32 - 2  # the highest one is "no id" in setresuid(2)
_TIMEOUT: Final = 5.0


@dataclass(frozen=True, slots=True)
class User:
    """One user as ids of the container; ``name`` is empty for an id that has no entry."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"
    shell: str = ""


@dataclass(frozen=True, slots=True)
class Databases:
    """The text of /etc/passwd and /etc/group; empty where the container has none."""

    passwd: str
    group: str


def look_up(root_fd: int, spec: str) -> User:
    """Return the user that USER[:GROUP] means in the container whose root is ``root_fd``.

    Both parts are names or numbers; a number needs no entry. Called by the manager. Raises
    UnknownUser, TargetMalformed.
    """
    return choose(read_databases(root_fd), spec)


def read_databases(root_fd: int) -> Databases:
    """Read both files, at most MAX_FILE bytes of each."""
    texts = []
    for path in ("/etc/passwd", "/etc/group"):
        try:
            answer = in_child(partial(_read, root_fd, path), timeout=_TIMEOUT)
        except (FileNotFoundError, NotADirectoryError):
            answer = Answer(b"")
        except OSError as error:
            raise TargetMalformed(path, f"cannot be read in the container: {error}") from error
        texts.append(answer.data.decode("utf-8", "surrogateescape"))
    return Databases(*texts)


def _read(root_fd: int, path: str) -> Answer:
    place = open_in_root(root_fd, path, os.O_PATH)
    # Opening a fifo would block and opening a device would act on it: look before opening.
    if not stat.S_ISREG(os.fstat(place).st_mode):
        return Answer(b"")
    with open(f"/proc/self/fd/{place}", "rb", buffering=0) as file:
        data = bytearray()
        while len(data) < MAX_FILE and (piece := file.read(MAX_FILE - len(data))):
            data += piece
    return Answer(bytes(data))


def choose(databases: Databases, spec: str) -> User:
    """Return the user that ``spec`` means; a pure function.

    A group given replaces the user's own and the supplementary ones, as docker and podman do.
    """
    name, colon, group = spec.partition(":")
    user = _user(databases, name)
    if not colon:
        return user
    return User(user.uid, _gid(databases, group), (), user.name, user.home, user.shell)


def _user(databases: Databases, name: str) -> User:
    number = _number(name)
    entries = list(_entries(databases.passwd, 7))
    by_name = [entry for entry in entries if entry[0] == name]
    by_number = [e for e in entries if number is not None and _number(e[2]) == number]
    for login, _, uid, gid, _, home, shell in (*by_name, *by_number):
        ids = _number(uid), _number(gid)
        if ids[0] is None or ids[1] is None:
            raise TargetMalformed("/etc/passwd", f"user {login!r} has the ids {uid!r}:{gid!r}")
        groups = _groups_of(databases, login)
        return User(ids[0], ids[1], groups, login, home if home.startswith("/") else "/", shell)
    if number is None:
        raise UnknownUser(f"the container has no user {name!r} in its /etc/passwd")
    return User(number, 0)


def _gid(databases: Databases, name: str) -> int:
    for entry_name, _, gid, _ in _entries(databases.group, 4):
        number = _number(gid)
        if entry_name == name and number is not None:
            return number
    number = _number(name)
    if number is None:
        raise UnknownUser(f"the container has no group {name!r} in its /etc/group")
    return number


def _groups_of(databases: Databases, login: str) -> tuple[int, ...]:
    numbers = (
        _number(gid)
        for _, _, gid, members in _entries(databases.group, 4)
        if login in members.split(",")
    )
    return tuple(dict.fromkeys(number for number in numbers if number is not None))


def _entries(text: str, fields: int) -> Iterator[list[str]]:
    for line in text.split("\n"):
        parts = line.split(":")
        if len(parts) == fields and parts[0]:
            yield parts


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    number = int(text)
    return number if number <= _MAX_ID else None
