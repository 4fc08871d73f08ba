"""What a test must not leave behind: processes, descriptors, mounts, cgroups, files.

A worker is a child subreaper, so a process that lost its parent becomes its descendant, and
ancestry tells what a test started. The keeper's processes (the shared docker daemon) are no
test's. Names of other workers and sessions are theirs to answer for (session.py).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from tests.session import Session

GRACE: Final = 2.0  # seconds in which what ends by itself (a dying connection's server) may end
_CGROUPS: Final = Path("/sys/fs/cgroup")
# What the machine's own engines and service manager make at any time; no test goes there.
_MACHINES: Final = re.compile(
    r" /var/lib/(docker|containers?d?|lxc)/| /run/(docker|containerd|netns|user|snapd)/"
    r"|/(system|user|machine)\.slice\b|/(docker|libpod_parent|init\.scope)\b"
)
# Where state files go; the empty directories themselves may stay.
_STATE_FILES: Final = ((Path("/run"), "launcher/*"), (Path("/tmp"), "launcher-[0-9]*/*"))

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
class Process:
    """A process, which stays the same when it executes another program."""

    pid: int
    start: int  # in ticks since boot
    comm: str = field(compare=False)
    state: str = field(compare=False)
    parent: int = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.comm})" + (" is a zombie" if self.state == "Z" else "")


@dataclass(frozen=True, slots=True)
class Belongings:
    """What exists at one moment and would be this worker's fault."""

    processes: frozenset[Process]
    descriptors: frozenset[str]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]


def take(session: Session, keeper: int) -> Belongings:
    """Look at everything. ``keeper`` is the pid whose descendants do not count."""
    processes = frozenset(_descendants(os.getpid(), keeper))
    return Belongings(
        processes=processes,
        descriptors=frozenset(_descriptors()),
        mounts=_suspicious(session, _mounts()),
        cgroups=_suspicious(session, _cgroups()),
        files=_suspicious(session, _files(session, processes)),
    )


def _suspicious(session: Session, names: Iterable[str]) -> frozenset[str]:
    return frozenset(
        name for name in names if not session.is_others(name) and not _MACHINES.search(name)
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
        f"{kind.name}: {item}"
        for kind in fields(Belongings)
        for item in sorted(getattr(now, kind.name) - getattr(before, kind.name), key=str)
    ]


def _descendants(ancestor: int, keeper: int) -> Iterator[Process]:
    """Yield every descendant; reap adopted orphans, as an init would."""
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (process := _process(int(entry))):
            children.setdefault(process.parent, []).append(process)
    pending = [ancestor]
    while pending:
        for process in children.get(pending.pop(), ()):
            if process.pid != keeper and not _is_reaped(process):
                pending.append(process.pid)
                yield process


def _process(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    comm = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()  # from field 3 of proc(5) on
    return Process(pid, int(fields[19]), comm, fields[0], int(fields[1]))


def _is_reaped(process: Process) -> bool:
    adopted = process.parent == os.getpid() and process.pid not in _forked
    if process.state != "Z" or not adopted:
        return False
    try:
        return os.waitpid(process.pid, os.WNOHANG)[0] == process.pid
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


def _files(session: Session, own: frozenset[Process]) -> Iterator[str]:
    """Yield our files; a container that runs below another worker has a state file of its."""
    for directory, pattern in _STATE_FILES:
        for path in directory.glob(pattern):
            pid = _container_of(path)
            if pid in {process.pid for process in own} or not Path(f"/proc/{pid}").exists():
                yield str(path)
    yield from map(str, session.temporary.iterdir())


def _container_of(state_file: Path) -> int:
    try:
        return int(json.loads(state_file.read_bytes())["pid"])
    except (OSError, ValueError, KeyError):  # being written or removed, or none of ours
        return 0
