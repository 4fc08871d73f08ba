"""Whose rights a request is served with, and how ids look on either side of the mount.

The kernel has already checked the request against the attributes that it was told
(`default_permissions`). When those name real ids that check is exact, and the server only takes on
the caller's ids where they become an owner. When the file's owner has no id inside, the kernel saw
65534 instead and its verdict means nothing: then the host's kernel decides again, for the caller.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Final, Protocol

from launcher.hostfs.status import Status
from nsstages.idmap import IDENTITY, IdMap, to_inside, to_outside
from nsstages.syscalls import Call, execute

_CAPABILITY_VERSION_3: Final = 0x20080522
_GROUPS_VALID_SECONDS: Final = 1.0
_KEEP: Final = 0xFFFFFFFF  # (uid_t)-1: setfsuid(2) changes nothing and tells the current id
AS_SERVER: Final[AbstractContextManager[None]] = nullcontext()


class Caller(Protocol):
    """The part of pyfuse3.RequestContext that says who asks."""

    @property
    def uid(self) -> int:
        """File system uid of the caller, an inside id."""

    @property
    def gid(self) -> int:
        """File system gid of the caller, an inside id."""

    @property
    def pid(self) -> int:
        """Thread id of the caller in the mounter's PID namespace; 0 when it has none there."""


class Identity:
    """Translates ids and lends the caller's identity to single requests of a root server.

    A server that is an ordinary user serves everything with its own rights.
    """

    def __init__(self, uid_map: IdMap, gid_map: IdMap) -> None:
        self.is_plain = uid_map == IDENTITY and gid_map == IDENTITY
        self._uid_map = uid_map
        self._gid_map = gid_map
        self.inside_uid: Callable[[int], int] = cache(lambda uid: to_inside(uid_map, uid))
        self.inside_gid: Callable[[int], int] = cache(lambda gid: to_inside(gid_map, gid))
        self._can_switch = os.geteuid() == 0
        self.is_partial = self._can_switch and not self.is_plain
        self._own_groups = tuple(os.getgroups())
        self._all_capabilities = _capset_data()
        self._groups: dict[int, tuple[float, tuple[int, ...]]] = {}

    def outside_uid(self, uid: int) -> int:
        """Return the host's uid for an inside one."""
        return to_outside(self._uid_map, uid)

    def outside_gid(self, gid: int) -> int:
        """Return the host's gid for an inside one."""
        return to_outside(self._gid_map, gid)

    def creating(self, caller: Caller, *directories: Status) -> AbstractContextManager[None]:
        """Act as the caller while something is created: the caller becomes its owner.

        ``directories`` are needed when `is_partial`.
        """
        if not self._can_switch or (self.is_plain and caller.uid == 0 == caller.gid):
            return AS_SERVER
        return self._acting(caller, is_checked=self._is_exact(directories))

    def touching(self, caller: Caller, *files: Status) -> AbstractContextManager[None]:
        """Act as the caller when the kernel could not check its rights on one of the files."""
        if not self.is_partial or self._is_exact(files):
            return AS_SERVER
        return self._acting(caller, is_checked=False)

    def _is_exact(self, files: tuple[Status, ...]) -> bool:
        return all(
            _is_mapped(self._uid_map, file.uid) and _is_mapped(self._gid_map, file.gid)
            for file in files
        )

    def _acting(self, caller: Caller, *, is_checked: bool) -> _Acting:
        uid, gid = self.outside_uid(caller.uid), self.outside_gid(caller.gid)
        capabilities = self._all_capabilities if is_checked else None
        return _Acting(uid, gid, self._groups_of(caller.pid), self._own_groups, capabilities)

    def _groups_of(self, pid: int) -> tuple[int, ...]:
        now = time.monotonic()
        deadline, groups = self._groups.get(pid, (0.0, ()))
        if deadline < now:
            if len(self._groups) > 1000:
                self._groups.clear()
            groups = _supplementary_groups(pid)
            self._groups[pid] = now + _GROUPS_VALID_SECONDS, groups
        return groups


class _Acting:
    """Raw system calls, which change this thread only (libc's setgroups changes them all)."""

    __slots__ = ("_capabilities", "_gid", "_groups", "_own_groups", "_uid")

    def __init__(
        self,
        uid: int,
        gid: int,
        groups: tuple[int, ...],
        own_groups: tuple[int, ...],
        capabilities: tuple[bytes, bytes] | None,
    ) -> None:
        self._uid = uid
        self._gid = gid
        self._groups = groups
        self._own_groups = own_groups
        self._capabilities = capabilities

    def __enter__(self) -> None:
        try:
            _setgroups(self._groups)
            _set_id("setfsgid", self._gid)
            # Leaving fsuid 0 clears the capabilities that override file permissions
            _set_id("setfsuid", self._uid)
            if self._capabilities is not None:
                execute(Call("capset", self._capabilities))
        except OSError:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        _set_id("setfsuid", 0)
        _set_id("setfsgid", 0)
        _setgroups(self._own_groups)


def _set_id(call: str, value: int) -> None:
    """setfsuid(2) or setfsgid(2), which report no error: ask afterwards."""
    execute(Call(call, (value,)))
    if execute(Call(call, (_KEEP,))) != value:
        raise PermissionError(1, f"{call} refused", str(value))


def _setgroups(groups: tuple[int, ...]) -> None:
    packed = struct.pack(f"{len(groups)}I", *groups)
    execute(Call("setgroups", (len(groups), packed)))


def _is_mapped(id_map: IdMap, outside: int) -> bool:
    return any(r.outside <= outside < r.outside + r.count for r in id_map)


def _status_field(pid: int | str, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return line.removeprefix(field)
    raise ProcessLookupError(3, "no such field", field)


def _supplementary_groups(pid: int) -> tuple[int, ...]:
    """Return the groups of a process as the host sees them; none when it is gone or unseen."""
    try:
        return tuple(int(word) for word in _status_field(pid, "Groups:").split()) if pid else ()
    except (FileNotFoundError, ProcessLookupError):
        return ()


def _capset_data() -> tuple[bytes, bytes]:
    """Return the arguments of the capset(2) that restores this process's present sets."""
    fields = ("CapEff:", "CapPrm:", "CapInh:")
    masks = [int(_status_field("self", field), 16) for field in fields]
    words = [mask >> shift & 0xFFFFFFFF for shift in (0, 32) for mask in masks]
    return struct.pack("Ii", _CAPABILITY_VERSION_3, 0), struct.pack("6I", *words)
