"""/proc/PID/status: ids, capabilities, seccomp. Pure parsing, every field refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import TargetMalformed
from nsstages.credentials import CapabilitySets

Ids = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Status:
    """What proc_pid_status(5) says; ids are of the reader's user namespace.

    ``nspid`` holds the process's number in each pid namespace from the reader's down to its own.
    """

    tgid: int
    nspid: tuple[int, ...]
    uids: Ids
    gids: Ids
    groups: tuple[int, ...]
    umask: int
    capabilities: CapabilitySets
    no_new_privs: bool
    seccomp_mode: int


def parse_status(text: str) -> Status:
    """Parse the text of /proc/PID/status. Raises TargetMalformed naming the field."""
    fields = dict(line.partition(":")[::2] for line in text.split("\n"))
    tgid = _numbers(fields, "Tgid", count=1)[0]
    return Status(
        tgid=tgid,
        nspid=_numbers(fields, "NSpid") if "NSpid" in fields else (tgid,),
        uids=_four(fields, "Uid"),
        gids=_four(fields, "Gid"),
        groups=_numbers(fields, "Groups"),
        umask=_numbers(fields, "Umask", base=8, count=1)[0],
        capabilities=CapabilitySets(
            inheritable=_numbers(fields, "CapInh", base=16, count=1)[0],
            permitted=_numbers(fields, "CapPrm", base=16, count=1)[0],
            effective=_numbers(fields, "CapEff", base=16, count=1)[0],
            bounding=_numbers(fields, "CapBnd", base=16, count=1)[0],
            ambient=_numbers(fields, "CapAmb", base=16, count=1)[0],
        ),
        no_new_privs=bool(_numbers(fields, "NoNewPrivs", count=1)[0]),
        seccomp_mode=_numbers(fields, "Seccomp", count=1)[0],
    )


def _four(fields: Mapping[str, str], name: str) -> Ids:
    real, effective, saved, filesystem = _numbers(fields, name, count=4)
    return real, effective, saved, filesystem


def _numbers(
    fields: Mapping[str, str], name: str, *, base: int = 10, count: int | None = None
) -> tuple[int, ...]:
    if name not in fields:
        raise TargetMalformed(name, "not in /proc/PID/status of this kernel")
    words = fields[name].split()
    try:
        numbers = tuple(int(word, base) for word in words)
    except ValueError:
        raise TargetMalformed(name, f"numbers expected, got {fields[name].strip()!r}") from None
    if (count is not None and len(numbers) != count) or any(number < 0 for number in numbers):
        raise TargetMalformed(name, f"{count or 'natural'} numbers expected, got {numbers}")
    return numbers
