"""What can only be learned by looking into the target: its environment, its namespace's root.

Both are read by a forked child (bounded.py). The environment lies in memory that the target may
keep from being delivered; the root of a mount namespace shows only to a process that joins it.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Final

from launcher.errors import TargetError
from launcher.targets.bounded import Answer, in_child
from launcher.targets.proc_directory import read_up_to
from nsstages.syscalls import CLONE_NEWNS, CLONE_NEWUSER, setns

MAX_ENVIRONMENT: Final = 1024 * 1024
_TIMEOUT: Final = 5.0
_VARIABLE: Final = re.compile(rb"[^=]+=.*", re.DOTALL)


def look_inside(
    environ_fd: int, root_fd: int, mnt_fd: int | None, user_fd: int | None
) -> tuple[tuple[str, ...], bool]:
    """Return the environment, and whether ``root_fd`` is its mount namespace's root directory.

    ``mnt_fd`` and ``user_fd`` are the namespaces to join for that, None where they are ours. The
    second answer is False where it cannot be found out. Raises TargetError.
    """
    try:
        answer = in_child(partial(_look, environ_fd, mnt_fd, user_fd), timeout=_TIMEOUT)
    except OSError as error:
        raise TargetError(f"the target's environment cannot be read: {error}") from error
    try:
        is_root = any(_place_of(fd) == _place_of(root_fd) for fd in answer.fds)
    finally:
        for fd in answer.fds:
            os.close(fd)
    return parse_environment(answer.data), is_root


def _look(environ_fd: int, mnt_fd: int | None, user_fd: int | None) -> Answer:
    environment = read_up_to(environ_fd, MAX_ENVIRONMENT)
    try:
        if mnt_fd is not None:
            _enter(mnt_fd, user_fd)
        return Answer(environment, (os.open("/", os.O_PATH | os.O_DIRECTORY),))
    except OSError:
        return Answer(environment)


def _enter(mnt_fd: int, user_fd: int | None) -> None:
    try:
        setns(mnt_fd, CLONE_NEWNS)
    except PermissionError:
        # An ordinary user gains the right to join by joining the user namespace that owns it.
        if user_fd is None:
            raise
        setns(user_fd, CLONE_NEWUSER)
        setns(mnt_fd, CLONE_NEWNS)


def _place_of(fd: int) -> tuple[str, int, int]:
    """Return mount, device and inode: the mount number tells a bind mount from its source."""
    info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    mount = next((line for line in info.splitlines() if line.startswith("mnt_id:")), "")
    facts = os.fstat(fd)
    return mount, facts.st_dev, facts.st_ino


def parse_environment(data: bytes) -> tuple[str, ...]:
    """Return the "NAME=value" entries of /proc/PID/environ, without anything else it holds.

    What was cut off at MAX_ENVIRONMENT is dropped as a whole. Bytes that are not UTF-8 survive
    as surrogates.
    """
    entries = data.split(b"\0")
    if len(data) >= MAX_ENVIRONMENT:
        entries.pop()
    return tuple(
        entry.decode("utf-8", "surrogateescape") for entry in entries if _VARIABLE.fullmatch(entry)
    )


def path_inside(root: str, path: str) -> str:
    """Return ``path`` as a process with the root directory ``root`` names it; "/" if it cannot.

    Both as /proc shows them; a deleted directory and one outside the root have no name.
    """
    prefix = root.rstrip("/")
    if path.endswith(" (deleted)") or not path.startswith(f"{prefix}/"):
        return "/"
    return path.removeprefix(prefix)
