"""What every technology answers when it is asked for a container by name.

A technology is one file with one `Engine` value in it. `look_up` is asked for every name, so it
reads state files or a local socket and starts no program; `ask` may be slow and is called only
when nobody knew the name or when the engine was named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from launcher.errors import AmbiguousTarget

MAX_STATE: Final = 16 * 1024 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@-]{0,254}")


@dataclass(frozen=True, slots=True)
class Found:
    """A running container's first process. ``start_time`` (ticks) is None where unrecorded."""

    engine: str
    name: str
    pid: int
    start_time: int | None = None

    @property
    def spec(self) -> str:
        """Return the spec that names just this one."""
        return f"{self.engine}:{self.name}"


LookUp = Callable[[str], Found | None]


@dataclass(frozen=True, slots=True)
class Engine:
    """One technology. Both functions return None for a name they do not know.

    They raise TargetNotRunning for a container without a process, AmbiguousTarget for a prefix
    of several ids, EngineUnavailable when the technology is absent or refuses.
    """

    name: str
    look_up: LookUp
    ask: LookUp | None = None


def is_plain_name(name: str) -> bool:
    """Tell whether ``name`` is one path component that an engine could have accepted."""
    return _NAME.fullmatch(name) is not None


def choose_id(name: str, ids: Mapping[str, Sequence[str]], engine: str) -> str | None:
    """Return the id that ``name`` means: a full id, a name, or the prefix of just one id.

    ``ids`` maps each id to its names. Raises AmbiguousTarget for the prefix of several.
    """
    if name in ids:
        return name
    exact = [identity for identity, names in ids.items() if name in names]
    matches = exact or [identity for identity in ids if identity.startswith(name)]
    if len(matches) > 1:
        raise AmbiguousTarget(name, [f"{engine}:{identity}" for identity in sorted(matches)])
    return matches[0] if matches else None


def decode_json(data: bytes) -> Any:
    """Decode an engine's JSON; None when it is not JSON (a file that is being written)."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return None


def dig(value: Any, kind: type, *keys: str) -> Any:
    """Return ``value[key]...`` when it is there and of type ``kind``, else that type's zero."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, kind) else kind()
