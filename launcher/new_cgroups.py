"""Cgroups that a launch makes for itself and removes again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_EMPTY_SECONDS: Final = 2.0


def create(directory: str, made: list[str]) -> int:
    """Make a cgroup directory and those above it; return a descriptor. Raises OSError.

    What did not exist before is appended to ``made``, outermost first, for `remove`.
    """
    path = Path(directory)
    for above in (*reversed(path.parents), path):
        try:
            above.mkdir()
        except OSError:
            if not above.is_dir():
                raise
            continue
        made.append(str(above))
        _inherit_cpuset(above)
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _inherit_cpuset(path: Path) -> None:
    """A new v1 cpuset has no processors, and nobody can enter it: it gets its parent's."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        with suppress(FileNotFoundError, PermissionError):
            if not (path / name).read_text().strip():
                (path / name).write_text((path.parent / name).read_text())


def remove(directory: str) -> None:
    """Remove a cgroup, unless others are below it by now; its last process may still be on its
    way out, for two seconds.
    """
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            if any(Path(directory).glob("*/")):
                return
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
