"""What keeps the other side out of a stage that is about to join it.

After a join nothing may be loaded from there: no module, codec or locale (CVE-2019-14271 was
this). And nothing that the parent had open may leak into a stage.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec

from nsstages.syscalls import PR_SET_DUMPABLE, close_range, prctl


class _LateImport:
    """A finder that makes every further import an error."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        del path, target
        raise ImportError(f"{name}: nothing is imported after a join", name=name)


def seal() -> None:
    """Forbid imports from here on and make this process unreadable for the other side."""
    "".encode("ascii").decode("utf-8", "surrogateescape")  # codecs load on first use
    sys.path_hooks.clear()
    sys.meta_path[:] = [_LateImport()]
    prctl(PR_SET_DUMPABLE, 0)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not in ``keep``."""
    first = 3
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = max(first, fd + 1)
    close_range(first, 2**31 - 1)


def exit_status_text(status: int) -> str:
    """Say how a process ended, from its wait status: `exit 3` or `SIGKILL`."""
    if os.WIFSIGNALED(status):
        return _SIGNALS.get(os.WTERMSIG(status), f"signal {os.WTERMSIG(status)}")
    return f"exit {os.waitstatus_to_exitcode(status)}"


_SIGNALS = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM", 31: "SIGSYS",
}  # fmt: skip
