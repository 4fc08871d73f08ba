"""A bootstrapped Debian tree as an archive, kept on the machine from run to run.

`make test` makes it before the tests start, since a test has two minutes and a slow mirror more:

    python -m tests.product.debian
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CACHE: Final = Path("/var/cache/launcher-tests")
_SUITE: Final = "bookworm"
_RETRIES: Final = 'Acquire::Retries "5"'


def archive() -> Path:
    """Return the archive; making it takes 16 s and Debian's mirror. Raises RuntimeError."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    made = _CACHE / f"{_SUITE}-essential.tar"
    with locked(_CACHE / "lock"):
        if not made.exists():
            unfinished = made.with_suffix(".unfinished.tar")
            command = ["mmdebstrap", "--variant=essential", f"--aptopt={_RETRIES}", _SUITE]
            done = subprocess.run(
                [*command, unfinished], capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if done.returncode:
                raise RuntimeError(f"mmdebstrap: {done.stderr[-2000:]}")
            unfinished.rename(made)
    return made


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock ``path``, so that one process at a time makes a thing that all use."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__" and os.geteuid() == 0:
    archive()
