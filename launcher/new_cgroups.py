"""Cgroups that a launch makes for itself and removes again."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_EMPTY_SECONDS: Final = 2.0


def create(directory: str) -> int:
    """Make a cgroup directory and those above it; return a descriptor. Raises OSError.

    A new v1 cpuset has no processors, and nobody can enter it: it gets its parent's.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    for name in ("cpuset.cpus", "cpuset.mems"):
        with suppress(FileNotFoundError, PermissionError):
            if not (path / name).read_text().strip():
                (path / name).write_text((path.parent / name).read_text())
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def remove(directory: str) -> None:
    """Remove a cgroup; its last process may still be on its way out, for two seconds."""
    deadline = time.monotonic() + _EMPTY_SECONDS
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
