"""/proc/PID/mountinfo as values. Pure parsing; reads nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from launcher.errors import TargetMalformed

_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of proc_pid_mountinfo(5); paths are relative to the process's root."""

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    fs_type: str
    source: str
    super_options: frozenset[str]


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """Parse the text of a mountinfo file, in its order (a later mount hides an earlier one).

    Raises TargetMalformed. Names in it are the container's choice: they may hold any character.
    """
    return tuple(_parse_line(line) for line in text.split("\n") if line)


def _parse_line(line: str) -> Mount:
    before, dash, after = line.partition(" - ")
    head, tail = before.split(" "), after.split(" ")
    if not dash or len(head) < 6 or len(tail) < 3 or not (head[0] + head[1]).isdigit():
        raise TargetMalformed("mountinfo", f"not a mount: {line!r}")
    return Mount(
        mount_id=int(head[0]),
        parent_id=int(head[1]),
        device=head[2],
        root=_unescape(head[3]),
        mount_point=_unescape(head[4]),
        options=frozenset(head[5].split(",")),
        propagation=tuple(head[6:]),
        fs_type=tail[0],
        source=_unescape(tail[1]),
        super_options=frozenset(tail[2].split(",")),
    )


def _unescape(text: str) -> str:
    """Undo the octal escapes of space, tab, newline and backslash."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
