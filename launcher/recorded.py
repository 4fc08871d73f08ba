"""What a recorded run tells: its processes, its failure, and the phrases for its events.

The report and the diagrams are made of these, so that both say the same. Nothing here draws.
"""

from __future__ import annotations

import errno as errno_module
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nsstages.errors import Failure
from nsstages.isolation import exit_status_text
from nsstages.messages import CHILD, FUSE, INIT, MANAGER, PARENT, SUPERVISOR, Word

PROGRAM: Final = "program"
ORDER: Final = (MANAGER, PARENT, CHILD, INIT, FUSE, SUPERVISOR, PROGRAM)

Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Participant:
    """A process of the run. ``pid`` is the host's number, ``pid_inside`` its own view of itself.

    Either is None when the trace does not tell it.
    """

    name: str
    pid: int | None
    pid_inside: int | None


def participants(events: Sequence[Event]) -> tuple[Participant, ...]:
    """Return the processes that the trace tells of, the program last."""
    own_pids: dict[str, list[int]] = defaultdict(list)
    for event in events:
        if event["pid"] not in own_pids[event["process"]]:
            own_pids[event["process"]].append(event["pid"])
    known = [name for name in ORDER if name in own_pids]
    others = [name for name in own_pids if name not in ORDER]
    outside = {name: own_pids[name][0] for name in own_pids if name != INIT}
    outside |= _pids_told(events)
    found = [Participant(n, outside.get(n), own_pids[n][0]) for n in (*known, *others)]
    if has_program(events):
        # The child of the reaper records under the name of stage 2 until it becomes the program.
        inside = own_pids[INIT][-1] if len(own_pids[INIT]) > 1 else None
        found.append(Participant(PROGRAM, program_pid(events), inside))
    return tuple(found)


def has_program(events: Iterable[Event]) -> bool:
    """Tell whether the trace knows the program as a process of its own."""
    return any(e["kind"] == "exec" or e.get("word") == Word.STARTED for e in events)


def failure_of(events: Sequence[Event]) -> Failure | None:
    """Return what made the run fail, as the first process that met it told it."""
    errors = [str(event.get("error") or "") for event in events if event["kind"] == "result"]
    if errors and not errors[-1]:
        return None
    told = [Failure.from_payload(dict(event)) for event in events if event["kind"] == "failed"]
    for failure in told:
        if errors and str(failure) == errors[-1]:
            return failure
    if told:
        return told[0]
    return Failure(MANAGER, "run", text=errors[-1]) if errors else None


def name_of_errno(number: int) -> str:
    """Return ENOENT and the like; the number itself for one without a name."""
    return errno_module.errorcode.get(number, str(number))


def printable(text: str) -> str:
    """Escape control characters and broken UTF-8: a container names its files as it likes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


def duration_text(microseconds: float) -> str:
    """Return a duration for people: `36µs`, `1.2ms`, `3.40s`."""
    if microseconds < 1000:
        return f"{microseconds:.0f}µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.1f}ms"
    return f"{microseconds / 1_000_000:.2f}s"


def word_note(event: Event) -> str:
    """Return what a word carries, as `key value`; "" when it is too much for a line."""
    payload = event.get("payload") or {}
    if event["word"] == Word.FAILED:
        return str(Failure.from_payload(payload))
    if event["word"] == Word.EXITED:
        return exit_status_text(payload.get("status", 0))
    values = [value for value in payload.values() if isinstance(value, (int, str))]
    if len(payload) > 3 or len(values) < len(payload):
        return ""
    return " ".join(f"{key} {value}" for key, value in payload.items())


def result_text(event: Event) -> str:
    """Return the event of the launcher's own end as one phrase."""
    status = event.get("status")
    return "failed" if status is None else f"exit status {status}"


def exec_text(event: Event) -> str:
    """Return an exec event as one phrase."""
    text = f"exec {event.get('path', '?')}"
    if event.get("routed"):
        text += " (routed into the container)"
    if event.get("errno"):
        text += f": {name_of_errno(event['errno'])}"
    return text


def _pids_told(events: Iterable[Event]) -> dict[str, int]:
    """Return the host's number of stage 2, which only the words carry."""
    for event in events:
        payload = event.get("payload") or {}
        if event.get("word") == Word.RECVPID_PLS and "pid" in payload:
            return {INIT: payload["pid"]}
        if event.get("word") == Word.PIDS and "stage2" in payload:
            return {INIT: payload["stage2"]}
    return {}


def program_pid(events: Iterable[Event]) -> int | None:
    """Return the host's number of the program; None when nobody traced it."""
    return next((event.get("subject") for event in events if event["kind"] == "exec"), None)
