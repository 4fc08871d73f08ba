"""Who this test process is, and which names, directories and cgroups are therefore its own.

Workers run side by side, and other test sessions may share the machine. So every name that a test
gives to a container, a cgroup, a mount point or a file carries the session and the worker, and
whoever finds something left behind can tell whose it is.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_TOKEN: Final = re.compile(r"\b(lt[0-9a-f]{8})(?:[-/](gw\d+|main|shared))?")


def new_session_id() -> str:
    """Return an id that no other session on this machine has."""
    return "lt" + secrets.token_hex(4)


@dataclass(frozen=True, slots=True)
class Session:
    """One pytest process: the session it belongs to and its worker name ("main" without xdist)."""

    session_id: str
    worker: str
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def directory(self) -> Path:
        """The directory of the whole session; the keeper removes it."""
        return Path("/tmp", f"launcher-{self.session_id}")

    @property
    def own(self) -> Path:
        """The part of the directory that only this worker writes."""
        return self.directory / self.worker

    @property
    def temporary(self) -> Path:
        """Where this worker's temporary files go; what a test leaves there is its leak."""
        return self.own / "tmp"

    @property
    def shared(self) -> Path:
        """The part that belongs to no single worker: images, the docker daemon."""
        return self.directory / "shared"

    @property
    def keeper_socket(self) -> Path:
        """Where the keeper of the session listens."""
        return self.directory / "keeper.sock"

    @property
    def cgroup(self) -> str:
        """The parent, in every hierarchy, of the cgroups that this worker's containers get."""
        return f"/{self.session_id}/{self.worker}"

    def unique_name(self, what: str = "c") -> str:
        """Return a new name for a container, file or cgroup of this worker."""
        return f"{self.session_id}-{self.worker}-{what}{next(self._numbers)}"

    def make_directories(self) -> None:
        """Create the directories. Containers with maps must be able to pass through: 0755."""
        for path in (self.directory, self.own, self.shared, self.temporary):
            path.mkdir(exist_ok=True)
            os.chmod(path, 0o755)
        os.chmod(self.temporary, 0o1777)

    def is_others(self, text: str) -> bool:
        """Tell whether a name or path belongs to another worker, another session, or to all."""
        tokens = _TOKEN.findall(text)
        return any(token != (self.session_id, self.worker) for token in tokens)
