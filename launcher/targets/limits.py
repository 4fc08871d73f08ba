"""/proc/PID/limits as values. Pure parsing."""

from __future__ import annotations

import re
import resource
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from launcher.errors import TargetMalformed

_NAMES: Final = MappingProxyType(
    {
        "Max cpu time": resource.RLIMIT_CPU,
        "Max file size": resource.RLIMIT_FSIZE,
        "Max data size": resource.RLIMIT_DATA,
        "Max stack size": resource.RLIMIT_STACK,
        "Max core file size": resource.RLIMIT_CORE,
        "Max resident set": resource.RLIMIT_RSS,
        "Max processes": resource.RLIMIT_NPROC,
        "Max open files": resource.RLIMIT_NOFILE,
        "Max locked memory": resource.RLIMIT_MEMLOCK,
        "Max address space": resource.RLIMIT_AS,
        "Max file locks": 10,  # RLIMIT_LOCKS, which Python does not name
        "Max pending signals": resource.RLIMIT_SIGPENDING,
        "Max msgqueue size": resource.RLIMIT_MSGQUEUE,
        "Max nice priority": resource.RLIMIT_NICE,
        "Max realtime priority": resource.RLIMIT_RTPRIO,
        "Max realtime timeout": resource.RLIMIT_RTTIME,
    }
)
_LINE: Final = re.compile(r"(Max [a-z ]*[a-z]) +(\d+|unlimited) +(\d+|unlimited)\b.*")


def parse_limits(text: str) -> Mapping[int, tuple[int, int]]:
    """Return (soft, hard) by RLIMIT_* number; RLIM_INFINITY stands for unlimited."""
    limits = {}
    for line in text.split("\n")[1:]:
        match = _LINE.fullmatch(line)
        if match and match[1] in _NAMES:
            limits[_NAMES[match[1]]] = (_value(match[2]), _value(match[3]))
        elif line:
            raise TargetMalformed("limits", f"not a limit: {line!r}")
    return MappingProxyType(limits)


def _value(text: str) -> int:
    return resource.RLIM_INFINITY if text == "unlimited" else int(text)
