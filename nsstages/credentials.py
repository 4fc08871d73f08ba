"""Acting as a target: ids, capabilities, no_new_privs and seccomp as a list of system calls.

`calls()` is the one implementation. Stage 2 executes the list before its exec; the supervisor
injects the same list into the vessel of a routed exec. The order is the kernel's: groups before
ids, the bounding set while CAP_SETPCAP is still there, permitted sets after the ids, ambient after
the inheritable set, and the seccomp filters last, since they may forbid all the calls before them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nsstages import syscalls
from nsstages.syscalls import Call, Packed, execute

CAP_SYS_ADMIN: Final = 21
CAP_SYS_PTRACE: Final = 19
CAP_SETPCAP: Final = 8


def last_capability() -> int:
    """Return the highest capability that this kernel knows. Read it before any join."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text())


@dataclass(frozen=True, slots=True)
class CapabilitySets:
    """The five sets of capabilities(7) as bit masks."""

    inheritable: int = 0
    permitted: int = 0
    effective: int = 0
    bounding: int = 0
    ambient: int = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a program is allowed to be; None leaves an item as it is.

    ``groups`` None keeps the supplementary groups (a user namespace may deny setgroups).
    ``seccomp_filters`` are raw arrays of struct sock_filter, oldest first.
    """

    uid: int | None = None
    gid: int | None = None
    groups: tuple[int, ...] | None = None
    capabilities: CapabilitySets | None = None
    no_new_privs: bool = False
    seccomp_filters: tuple[bytes, ...] = field(default=())


def calls(credentials: Credentials, last_cap: int) -> tuple[Call, ...]:
    """Return the system calls that make a process of full rights become ``credentials``."""
    wanted: list[Call] = []
    capabilities = credentials.capabilities
    if credentials.groups is not None:
        packed = struct.pack(f"{len(credentials.groups)}I", *credentials.groups)
        wanted.append(Call("setgroups", (len(credentials.groups), packed)))
    if capabilities is not None:
        wanted += _drop_bounding(capabilities.bounding, last_cap)
        wanted.append(_prctl(syscalls.PR_SET_KEEPCAPS, 1))
    if credentials.gid is not None:
        wanted.append(Call("setresgid", (credentials.gid,) * 3))
    if credentials.uid is not None:
        wanted.append(Call("setresuid", (credentials.uid,) * 3))
    if credentials.no_new_privs:
        wanted.append(_prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1))
    if credentials.seccomp_filters and capabilities is not None:
        # Leaving uid 0 emptied the effective set, and seccomp(2) wants CAP_SYS_ADMIN in it.
        working = capabilities.permitted | 1 << CAP_SYS_ADMIN | 1 << CAP_SETPCAP
        wanted.append(_capset(working, working, 0))
    # A filter without no_new_privs needs CAP_SYS_ADMIN: install it before the last rights go.
    wanted += [seccomp(filter_) for filter_ in credentials.seccomp_filters[:-1]]
    if capabilities is not None and credentials.no_new_privs:
        wanted += _set_capabilities(capabilities)
        wanted += [seccomp(filter_) for filter_ in credentials.seccomp_filters[-1:]]
    else:
        wanted += [seccomp(filter_) for filter_ in credentials.seccomp_filters[-1:]]
        wanted += _set_capabilities(capabilities) if capabilities is not None else []
    return tuple(wanted)


def apply(wanted: Sequence[Call]) -> None:
    """Execute ``calls()`` in this single-threaded process (stage 2)."""
    for call in wanted:
        execute(call, call.name)


def own() -> dict[str, Any]:
    """Return ids and capability sets of this process, the sets as /proc/PID/status writes them.

    By system calls alone: after a join /proc is the container's.
    """
    effective, permitted, inheritable = syscalls.capget()
    bounding = _asked(syscalls.PR_CAPBSET_READ)
    ambient = _asked(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_IS_SET)
    sets = CapabilitySets(inheritable, permitted, effective, bounding, ambient)
    capabilities = {name: f"{getattr(sets, name):016x}" for name in sets.__slots__}
    ids = {"uid": os.geteuid(), "gid": os.getegid(), "groups": os.getgroups()}
    return {**ids, "capabilities": capabilities}


def _asked(*option: int) -> int:
    """Return the set of capabilities for which prctl says 1; it knows no end but EINVAL."""
    found = 0
    for number in range(64):
        try:
            found |= syscalls.prctl(*option, number) << number
        except OSError:
            break
    return found


def _prctl(option: int, *arguments: int) -> Call:
    return Call("prctl", (option, *(*arguments, 0, 0, 0, 0)[:4]))


def _drop_bounding(keep: int, last_cap: int) -> list[Call]:
    gone = (number for number in range(last_cap + 1) if not keep >> number & 1)
    return [_prctl(syscalls.PR_CAPBSET_DROP, number) for number in gone]


def _capset(effective: int, permitted: int, inheritable: int) -> Call:
    header = struct.pack("Ii", syscalls.CAPABILITY_VERSION_3, 0)
    sets = (effective, permitted, inheritable)
    data = b"".join(
        struct.pack("III", *(s >> shift & 0xFFFFFFFF for s in sets)) for shift in (0, 32)
    )
    return Call("capset", (header, data))


def _set_capabilities(sets: CapabilitySets) -> list[Call]:
    ambient = [
        _prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
        for number in range(64)
        if sets.ambient >> number & 1
    ]
    return [
        _capset(sets.effective, sets.permitted, sets.inheritable),
        _prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL),
        *ambient,
    ]


def seccomp(filter_: bytes, flags: int = 0) -> Call:
    """Return the call that installs a filter, an array of struct sock_filter."""
    program = Packed("HxxxxxxQ", (len(filter_) // 8, filter_))
    return Call("seccomp", (syscalls.SECCOMP_SET_MODE_FILTER, flags, program))
