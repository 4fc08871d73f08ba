"""The file of `--trace`: a header line, then one JSON object per event, in causal order.

docs/reference/trace.md describes every kind and field. The reader takes what newer writers of the
same version add, and a last line that was cut off when the writer was killed; anything else that
is not a trace is refused with the number of the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from launcher.errors import LauncherError

VERSION: Final = 1
_MAGIC: Final = "launcher"
_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "clock": (int,),
    "time": (int, float),
    "process": (str,),
    "pid": (int,),
    "kind": (str,),
}

# What an event of a kind must have; kinds that are not here may have anything.
_FIELDS_OF_KIND: Final[Mapping[str, Mapping[str, tuple[type, ...]]]] = {
    "process.end": {"status": (int,)},
    "word.sent": {"peer": (str,), "word": (str,), "payload": (dict,)},
    "word.received": {"peer": (str,), "word": (str,), "payload": (dict,)},
    "step": {"step": (str,), "syscall": (str,), "errno": (int,), "duration_us": (int,)},
    "skipped": {"target": (str,)},
    "exec": {"subject": (int,), "path": (str,)},
    "fork": {"subject": (int,), "parent": (int,)},
    "exit": {"subject": (int,), "status": (int,)},
    "failed": {"stage": (str,), "step": (str,), "text": (str,)},
    "result": {"status": (int, type(None)), "error": (str,)},
}

Event = Mapping[str, Any]


class TraceFileError(LauncherError):
    """The file is not a trace that this launcher can read; says which line and why."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A recorded run. ``about`` is the header; ``is_cut_off`` tells of an incomplete last line."""

    about: Mapping[str, Any]
    events: tuple[Event, ...]
    is_cut_off: bool = False


def write(path: str | os.PathLike[str], events: Iterable[Event], about: Mapping[str, Any]) -> None:
    """Write ``events``, sorted as nsstages.trace.read_sink() returns them. Raises OSError.

    Called by the manager at the end of the run, also of a failed one.
    """
    header = {"trace": _MAGIC, "version": VERSION, **about}
    with open(path, "w", encoding="ascii") as file:
        # Escapes beyond ASCII keep the bytes of file names that are not UTF-8 (surrogates).
        file.writelines(
            json.dumps(record, separators=(",", ":"), default=str) + "\n"
            for record in (header, *events)
        )


def read(path: str | os.PathLike[str]) -> Trace:
    """Read a trace. Raises TraceFileError, or OSError when there is no such file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().split("\n")
    name = os.fspath(path)
    about = _parse_header(lines[0], name)
    events = []
    is_cut_off = False
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        try:
            events.append(_parse_event(line, f"{name}, line {number}"))
        except TraceFileError:
            # Every complete line ends in a newline, so only the last piece can be half a line.
            if number < len(lines):
                raise
            is_cut_off = True
    return Trace(about, _in_order(events), is_cut_off)


def _in_order(events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: (event["clock"], event["time"])))


def _parse_header(line: str, name: str) -> Mapping[str, Any]:
    try:
        header = json.loads(line)
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("trace") != _MAGIC:
        raise TraceFileError(
            f"{name}: not a trace of the launcher",
            hint="a trace is written by `launcher run|exec|attach --trace FILE`",
        )
    version = header.get("version")
    if version != VERSION:
        raise TraceFileError(
            f"{name}: trace version {version!r}, this launcher reads version {VERSION}"
        )
    return header


def _parse_event(line: str, where: str) -> Event:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise TraceFileError(f"{where}: not JSON ({error})") from error
    if not isinstance(event, dict):
        raise TraceFileError(f"{where}: an event is an object, not {type(event).__name__}")
    wanted_fields = {**_FIELDS, **_FIELDS_OF_KIND.get(str(event.get("kind")), {})}
    for field, types in wanted_fields.items():
        if not isinstance(event.get(field), types):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise TraceFileError(f"{where}: {field}: {wanted} expected")
    return event
