"""What no single key can say: keys of a configuration that contradict each other.

Pure functions of settings.py's values. Each yields every problem it sees; a problem of two keys
stands at one of them and names the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, Final

from launcher.errors import Problem
from launcher.settings import MAX_ID, Attach, Exec, IdMapping, Mount, Run, Target, chosen

_MAX_RANGES: Final = 340  # lines that the kernel accepts in uid_map, user_namespaces(7)
_NEVER_SERVED: Final = ("/proc", "/dev", "/sys")


def attach_problems(config: Attach) -> Iterator[Problem]:
    """Yield what is contradictory in an attach.json."""
    yield from _target_problems(config.target)
    yield from _command_problems(config.command)
    yield from _attach_namespace_problems(config)
    yield from _routing_problems(config)
    yield from _attach_root_problems(config)


def exec_problems(config: Exec) -> Iterator[Problem]:
    """Yield what is contradictory in the options of exec."""
    yield from _target_problems(config.target)
    yield from _command_problems(config.command)


def run_problems(config: Run) -> Iterator[Problem]:
    """Yield what is contradictory in a run.json."""
    yield from _command_problems(config.command)
    yield from _run_root_problems(config)
    yield from _run_namespace_problems(config)
    for index, mount in enumerate(config.mounts):
        yield from _mount_problems(f"mounts[{index}]", mount)
    for key, id_map in (("uid_map", config.uid_map), ("gid_map", config.gid_map)):
        if id_map != "auto":
            yield from _id_map_problems(key, id_map)


def _target_problems(target: str | Target | None) -> Iterator[Problem]:
    if not isinstance(target, Target):
        return
    given = {key for key in ("pid", "engine", "name") if getattr(target, key) is not None}
    if given not in ({"pid"}, {"engine", "name"}):
        yield Problem("target", "expected `pid` alone, or `engine` and `name`")


def _command_problems(command: Sequence[str]) -> Iterator[Problem]:
    if command and not command[0]:
        yield Problem("command[0]", "expected a program, got an empty string")


def _attach_namespace_problems(config: Attach) -> Iterator[Problem]:
    kinds = chosen(config.namespaces)
    if kinds is None:
        return
    if kinds.get("mnt", "absent") is not None:
        yield Problem("namespaces", "expected the target's mnt among them: its files are shown")
    for kind, key in (("pid", "pid_namespace"), ("user", "user_namespace")):
        setting = getattr(config, key)
        if setting == "host" and kind in kinds:
            yield Problem(key, f'"host" contradicts `namespaces`, which has {kind}')
        if setting not in (None, "host") and kind not in kinds:
            yield Problem(key, f'"{setting}" contradicts `namespaces`, which has no {kind}')


def _routing_problems(config: Attach) -> Iterator[Problem]:
    if config.routing and config.pid_mode == "host":
        key = "pid_namespace" if config.pid_namespace else "namespaces"
        yield Problem(
            "routing", f"true contradicts `{key}`: without the target's pid namespace no routing"
        )
    if config.routing and config.supervise == "off":
        yield Problem("routing", 'true contradicts `supervise`, which is "off"')
    if config.routing is False and config.supervise == "routed":
        yield Problem("routing", 'false contradicts `supervise`, which is "routed"')


def _attach_root_problems(config: Attach) -> Iterator[Problem]:
    root = config.root
    if not root.fuse:
        yield Problem("root.fuse", "an attach has its root over FUSE; `native` lists what is not")
    if root.container_path.strip("/") == "":
        yield Problem("root.container_path", "expected a directory below /")
    inside = (*_NEVER_SERVED, *root.from_container)
    yield from _overlaps("root.container_path", root.container_path, "root.from_container", inside)
    yield from _overlaps("root.container_path", root.container_path, "root.native", root.native)
    for index, path in enumerate(root.native):
        key = f"root.native[{index}]"
        if path.strip("/") == "":
            yield Problem(key, "expected a directory below /: all of it would be native")
        if any(is_below(path, never) for never in _NEVER_SERVED):
            yield Problem(key, f"{path} is the container's, expected no part of /proc, /dev, /sys")
    for index, path in enumerate(root.from_container):
        if path.strip("/") == "":
            yield Problem(f"root.from_container[{index}]", "expected a path below /")


def _overlaps(key: str, path: str, other_key: str, others: Sequence[str]) -> Iterator[Problem]:
    for other in dict.fromkeys(others):
        if other.strip("/") and is_below(path, other):
            yield Problem(key, f"{path} is in {other}, which `{other_key}` covers")


def is_below(path: str, directory: str) -> bool:
    """Tell whether ``path`` is ``directory`` or inside it, by name."""
    return f"{path}/".startswith(directory.rstrip("/") + "/")


def _run_root_problems(config: Run) -> Iterator[Problem]:
    root = config.root
    if root.path is not None and root.source is not None:
        yield Problem("root.path", "contradicts `root.source`: expected one of them")
    if root.fuse and root.source is None:
        yield Problem("root.fuse", "true needs `root.source`")
    if root.source is not None and not root.fuse:
        yield Problem("root.source", "needs `root.fuse` true; a directory itself is `root.path`")


def _run_namespace_problems(config: Run) -> Iterator[Problem]:
    kinds = chosen(config.namespaces)
    if kinds is None:
        return
    new = {kind for kind, file in kinds.items() if file is None}
    needs: tuple[tuple[str, Any, str], ...] = (
        ("root", config.root.path or config.root.source, "mnt"),
        ("mounts", config.mounts, "mnt"),
        ("hostname", config.hostname, "uts"),
        ("domainname", config.domainname, "uts"),
        ("loopback", config.loopback, "net"),
        ("time_offsets", config.time_offsets, "time"),
        ("uid_map", config.uid_map != "auto", "user"),
        ("gid_map", config.gid_map != "auto", "user"),
        ("setgroups", config.setgroups is not None, "user"),
    )
    for key, value, kind in needs:
        if value and kind not in new:
            yield Problem(key, f"needs a new {kind} namespace, which `namespaces` does not have")


def _mount_problems(key: str, mount: Mount) -> Iterator[Problem]:
    if mount.target.strip("/") == "":
        yield Problem(f"{key}.target", "expected a path below /: the root is `root`")
    if mount.type == "bind" and mount.source is None:
        yield Problem(f"{key}.source", "missing, a bind mount needs it")
    if mount.type != "bind" and mount.source is not None:
        yield Problem(f"{key}.source", f"a {mount.type} mount has none, expected a bind mount")


def _id_map_problems(key: str, id_map: Sequence[IdMapping] | str) -> Iterator[Problem]:
    if isinstance(id_map, str):
        return
    if not 1 <= len(id_map) <= _MAX_RANGES:
        yield Problem(key, f"expected 1 to {_MAX_RANGES} ranges, got {len(id_map)}")
    for side in ("inside", "outside"):
        spans = [(getattr(ids, side), ids.count) for ids in id_map]
        for index, (first, count) in enumerate(spans):
            if first + count - 1 > MAX_ID:
                yield Problem(f"{key}[{index}]", f"ends above {MAX_ID}, the highest id ({side})")
        for (i, (first, count)), (j, (other, others)) in combinations(enumerate(spans), 2):
            if first < other + others and other < first + count:
                yield Problem(f"{key}[{j}]", f"overlaps `{key}[{i}]` ({side})")
