"""What the `target` and `namespaces` keys mean, for every engine that joins something."""

from __future__ import annotations

import os
from typing import Any

from launcher.errors import ConfigError, Problem
from launcher.settings import Target, chosen
from launcher.targets import TargetSpec, parse_spec
from launcher.targets.snapshot import NamespaceRef


def target_spec(target: str | Target | None) -> TargetSpec:
    """Return whom to act on. Raises ConfigError naming the key when nobody is named."""
    if target is None:
        raise ConfigError("configuration", [Problem("target", "missing: whom to act on")])
    if isinstance(target, str):
        return parse_spec(target)
    if target.pid is not None:
        return TargetSpec(str(target.pid), "pid")
    return TargetSpec(target.name or "", target.engine)


def open_namespace_files(namespaces: Any) -> dict[str, NamespaceRef]:
    """Open the namespaces that the key ``namespaces`` gives as files; the caller closes them.

    Raises ConfigError naming the key of one that cannot be opened.
    """
    opened: dict[str, NamespaceRef] = {}
    for kind, path in (chosen(namespaces) or {}).items():
        if path is None:
            continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            problem = Problem(f"namespaces.{kind}", f"{path}: {error.strerror}")
            raise ConfigError("configuration", [problem]) from error
        inode = os.fstat(fd).st_ino
        is_ours = inode == os.stat(f"/proc/self/ns/{kind}").st_ino
        opened[kind] = NamespaceRef(kind, inode, fd, is_ours=is_ours)
    return opened
