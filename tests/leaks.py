"""What a test must not leave behind: processes, descriptors, mounts, cgroups, files.

A worker is a child subreaper, so a process that lost its parent becomes its descendant, and
ancestry tells what a test started. The keeper's processes (the shared docker daemon) are no
test's. Names of other workers and sessions are theirs to answer for (session.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from tests.session import Session

GRACE: Final = 2.0  # seconds in which what ends by itself (a dying connection's server) may end
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OUR_FILES: Final = (  # the empty directories /run/launcher and /tmp/launcher-UID may stay
    (Path("/run"), "launcher/*"),
    (Path("/tmp"), "launcher-[0-9]*/*"),
    (Path("/tmp"), "launcher[!-]*"),
    (Path("/tmp"), "launcher-[!0-9]*"),
)

_forked: set[int] = set()


def record_forks() -> None:
    """Make os.fork note its children, so that an unreaped child is told from an adopted orphan."""
    plain_fork = os.fork

    def fork() -> int:
        pid = plain_fork()
        if pid:
            _forked.add(pid)
        else:
            _forked.clear()
        return pid

    os.fork = fork


@dataclass(frozen=True, slots=True)
class Belongings:
    """What exists at one moment and would be this worker's fault."""

    processes: frozenset[str]
    descriptors: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]


def take(session: Session, keeper: int) -> Belongings:
    """Look at everything. ``keeper`` is the pid whose descendants do not count."""
    return Belongings(
        processes=frozenset(_descendants(os.getpid(), keeper)),
        descriptors=frozenset(_descriptors()),
        mounts=frozenset(line for line in _mounts() if not session.is_others(line)),
        cgroups=frozenset(path for path in _cgroups() if not session.is_others(path)),
        files=frozenset(path for path in _files(session) if not session.is_others(path)),
    )


def left_behind(before: Belongings, look: Callable[[], Belongings]) -> list[str]:
    """Return what is there now and was not before, after at most GRACE seconds."""
    deadline = time.monotonic() + GRACE
    while True:
        leaked = _difference(before, look())
        if not leaked or time.monotonic() > deadline:
            return leaked
        time.sleep(0.02)


def _difference(before: Belongings, now: Belongings) -> list[str]:
    return [
        f"{field.name}: {item}"
        for field in fields(Belongings)
        for item in sorted(getattr(now, field.name) - getattr(before, field.name))
    ]


def _descendants(ancestor: int, keeper: int) -> Iterator[str]:
    """Yield "pid (comm) state" of every descendant; reap adopted orphans like an init would."""
    children: dict[int, list[tuple[int, str, str]]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            for pid, comm, state, parent in _stat(int(entry)):
                children.setdefault(parent, []).append((pid, comm, state))
    pending = [ancestor]
    while pending:
        parent = pending.pop()
        for pid, comm, state in children.get(parent, ()):
            if pid == keeper or _is_reaped(pid, state, adopted=parent == os.getpid()):
                continue
            pending.append(pid)
            yield f"{pid} ({comm}) {state if state == 'Z' else ''}".rstrip()


def _stat(pid: int) -> Iterator[tuple[int, str, str, int]]:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return
    comm = text[text.index("(") + 1 : text.rindex(")")]
    state, parent = text[text.rindex(")") + 2 :].split()[:2]
    yield pid, comm, state, int(parent)


def _is_reaped(pid: int, state: str, *, adopted: bool) -> bool:
    if state != "Z" or not adopted or pid in _forked:
        return False
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _descriptors() -> Iterator[str]:
    with os.scandir("/proc/self/fd") as entries:
        for entry in entries:
            try:
                target = os.readlink(entry.path)
            except FileNotFoundError:
                continue
            if not target.endswith(f"/proc/{os.getpid()}/fd"):
                yield f"{entry.name} -> {target}"


def _mounts() -> Iterator[str]:
    yield from _mount_table("/proc/self/mountinfo")
    try:
        same = os.stat("/proc/self/ns/mnt").st_ino == os.stat("/proc/1/ns/mnt").st_ino
    except PermissionError:
        return
    if not same:
        yield from _mount_table("/proc/1/mountinfo")


def _mount_table(path: str) -> Iterator[str]:
    # surrogateescape: a mount point can have any name
    yield from Path(path).read_text(errors="surrogateescape").splitlines()


def _cgroups() -> Iterator[str]:
    pending = [str(_CGROUPS)]
    while pending:
        path = pending.pop()
        try:
            with os.scandir(path) as entries:
                below = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            continue
        pending += below
        yield from below


def _files(session: Session) -> Iterator[str]:
    for directory, pattern in _OUR_FILES:
        for path in directory.glob(pattern):
            if path != session.directory:
                yield str(path)
    for path in session.temporary.iterdir():
        yield str(path)
