"""Containers of `launcher run`: the state files that it writes, and how they are found by name.

The directory belongs to one user and is closed to all others (a state file names the process that
a later command acts on): /run/launcher for root, else $XDG_RUNTIME_DIR/launcher, else
/tmp/launcher-UID, whose owner and mode are checked on the open descriptor. A state whose process
has ended, or whose number another process has now, is stale: it is ignored and removed.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from launcher.errors import EngineUnavailable, LauncherError
from launcher.targets.lookup import MAX_STATE, Engine, Found, is_plain_name
from launcher.targets.process import is_running

VERSION: Final = 1
_NAME: Final = "launcher"
_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class State:
    """One container: its first process, when that started (ticks), and what it runs.

    ``pid_namespace`` is the inode of the one in which ``pid`` counts: from inside an attached
    shell, which sees the host's files, the number would be somebody else's.
    """

    version: int
    name: str
    pid: int
    start_time: int
    command: tuple[str, ...]
    created: float
    pid_namespace: int


def write_state(name: str, pid: int, start_time: int, command: Sequence[str]) -> None:
    """Record a running container. The manager calls it once its first process exists.

    Raises LauncherError when a running container has the name already or there is no safe place.
    """
    if not is_plain_name(name) or name.isdigit():
        raise LauncherError(f"{name!r} cannot be the name of a container")
    created = time.time()
    state = State(VERSION, name, pid, start_time, tuple(command), created, _pid_namespace())
    with _directory(create=True) as directory_fd:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)
        if other := _read(directory_fd, name + _SUFFIX):
            raise LauncherError(
                f"a container named {name!r} is running (process {other.pid})",
                hint="choose another name, or end that one",
            )
        _write(directory_fd, name + _SUFFIX, msgspec.json.encode(state))


def remove_state(name: str, pid: int) -> None:
    """Forget the container ``name`` if it is still ``pid``'s; doing so twice is no error."""
    with suppress(FileNotFoundError), _directory(create=False) as directory_fd:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)
        state = _decode(directory_fd, name + _SUFFIX)
        if state is not None and state.pid == pid:
            os.unlink(name + _SUFFIX, dir_fd=directory_fd)


def list_states() -> tuple[State, ...]:
    """Return this user's running containers by name; stale states are removed."""
    with suppress(FileNotFoundError), _directory(create=False) as directory_fd:
        fcntl.flock(directory_fd, fcntl.LOCK_EX)
        names = sorted(name for name in os.listdir(directory_fd) if name.endswith(_SUFFIX))
        return tuple(state for name in names if (state := _read(directory_fd, name)))
    return ()


def _look_up(name: str) -> Found | None:
    for state in list_states() if is_plain_name(name) else ():
        if state.name == name:
            return Found(_NAME, name, state.pid, state.start_time)
    return None


def _path() -> str:
    uid = os.geteuid()
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid == 0:
        return "/run/launcher"
    return os.path.join(own, "launcher") if os.path.isabs(own) else f"/tmp/launcher-{uid}"


@contextmanager
def _directory(*, create: bool) -> Iterator[int]:
    """Open the directory. FileNotFoundError without one, EngineUnavailable if it is not ours."""
    path = _path()
    try:
        if create:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineUnavailable(_NAME, f"{path}: {error.strerror}") from error
    try:
        facts = os.fstat(fd)
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o077:
            raise EngineUnavailable(
                _NAME,
                f"{path} does not belong to user {os.geteuid()} alone",
                hint=f"make it owned by user {os.geteuid()} with mode 0700, or remove it",
            )
        yield fd
    finally:
        os.close(fd)


def _read(directory_fd: int, file_name: str) -> State | None:
    """Return the state in ``file_name``, or None and no file when its process has ended."""
    state = _decode(directory_fd, file_name)
    if state is not None and state.pid_namespace != _pid_namespace():
        return None
    if state is not None and is_running(state.pid, state.start_time):
        return state
    with suppress(FileNotFoundError):
        os.unlink(file_name, dir_fd=directory_fd)
    return None


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _decode(directory_fd: int, file_name: str) -> State | None:
    try:
        fd = os.open(file_name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        try:
            return msgspec.json.decode(file.read(MAX_STATE), type=State)
        except msgspec.DecodeError:  # also what another version wrote
            return None


def _write(directory_fd: int, file_name: str, data: bytes) -> None:
    temporary = f".{file_name}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600, dir_fd=directory_fd), "wb") as file:
        file.write(data)
    os.rename(temporary, file_name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)


SANDBOX = Engine(_NAME, _look_up)
