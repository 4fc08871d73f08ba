"""User and group id maps: values, their text in /proc, translation, and how stage 0 writes them.

The writer is always a process outside the new user namespace (user_namespaces(7)): it writes
directly when the kernel allows it, else through newuidmap and newgidmap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OVERFLOW_ID: Final = 65534


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids: ``inside`` the namespace are ``outside`` (in the writer's namespace)."""

    inside: int
    outside: int
    count: int


IdMap = tuple[IdRange, ...]
IDENTITY: Final[IdMap] = (IdRange(0, 0, 4294967295),)


def parse(text: str) -> IdMap:
    """Parse the text of /proc/PID/uid_map or gid_map."""
    return tuple(IdRange(*(int(field) for field in line.split())) for line in text.splitlines())


def render(id_map: Iterable[IdRange]) -> str:
    """Return the text that the kernel wants in uid_map and gid_map."""
    return "".join(f"{r.inside} {r.outside} {r.count}\n" for r in id_map)


def read_maps() -> tuple[str, str]:
    """Return the text of this process's own uid_map and gid_map; empty without a /proc."""
    try:
        return Path("/proc/self/uid_map").read_text(), Path("/proc/self/gid_map").read_text()
    except OSError:
        return "", ""


def to_outside(id_map: Sequence[IdRange], inside: int) -> int:
    """Translate an id of the namespace; unmapped ids become 65534."""
    for r in id_map:
        if r.inside <= inside < r.inside + r.count:
            return r.outside + inside - r.inside
    return OVERFLOW_ID


def to_inside(id_map: Sequence[IdRange], outside: int) -> int:
    """Translate an id of the writer's namespace; unmapped ids become 65534."""
    for r in id_map:
        if r.outside <= outside < r.outside + r.count:
            return r.inside + outside - r.outside
    return OVERFLOW_ID


def write_maps(
    pid: int,
    uid_map: IdMap,
    gid_map: IdMap,
    *,
    setgroups: bool,
    newuidmap: str = "",
    newgidmap: str = "",
) -> None:
    """Write setgroups, gid_map and uid_map of ``pid``. Called by stage 0 for stage 1.

    setgroups comes first: once gid_map is written by an unprivileged process the kernel refuses
    it. Raises OSError; a helper's refusal becomes PermissionError with the helper's own words.
    """
    proc = Path(f"/proc/{pid}")
    if not setgroups:
        (proc / "setgroups").write_text("deny")
    _write(proc / "gid_map", gid_map, newgidmap, pid)
    _write(proc / "uid_map", uid_map, newuidmap, pid)


def _write(path: Path, id_map: IdMap, helper: str, pid: int) -> None:
    try:
        path.write_text(render(id_map))
    except PermissionError:
        if not helper:
            raise
        _run_helper(helper, pid, id_map)


def _run_helper(helper: str, pid: int, id_map: IdMap) -> None:
    import subprocess

    words = [str(n) for r in id_map for n in (r.inside, r.outside, r.count)]
    done = subprocess.run([helper, str(pid), *words], capture_output=True, env={}, check=False)
    if done.returncode:
        raise PermissionError(1, done.stderr.decode(errors="replace").strip(), helper)
