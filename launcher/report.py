"""`launcher report`: a recorded run as plain tables, at most 100 columns wide.

What is in a table is in the trace; an empty table is left out. The diagrams show the same run as
a picture.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from launcher.recorded import (
    PROGRAM,
    Event,
    Participant,
    duration_text,
    failure_of,
    has_program,
    name_of_errno,
    participants,
    printable,
    program_pid,
    result_text,
    word_note,
)
from nsstages.idmap import IDENTITY, parse
from nsstages.isolation import exit_status_text
from nsstages.messages import Word

WIDTH: Final = 100
_KINDS: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_SETS: Final = ("inheritable", "permitted", "effective", "bounding", "ambient")
_STEP_FIELDS: Final = frozenset(
    {"v", "clock", "time", "process", "pid", "kind", "step", "syscall", "errno", "duration_us"}
)

Row = Sequence[object]


def render(events: Sequence[Event], about: Mapping[str, Any] | None = None) -> str:
    """Return the report. ``events`` are in causal order, ``about`` is the header of the file."""
    sections: tuple[tuple[str, Callable[[Sequence[Event]], Iterator[Row]]], ...] = (
        ("Processes", _processes),
        ("Namespaces (* differs from the first)", _namespaces),
        ("Id maps", _id_maps),
        ("Rights", _rights),
        ("Steps", _steps),
        ("Words", _words),
        ("Execs", _execs),
        ("Exits", _exits),
    )
    parts = [_summary(events, about or {})]
    parts += [_table(title, list(rows_of(events))) for title, rows_of in sections]
    return "\n".join(part for part in parts if part)


def _table(title: str, rows: list[Row]) -> str:
    """Lay out ``rows``, the first of which are the heads; cut only the last column."""
    if len(rows) <= 1:
        return ""
    texts = [["-" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)][:-1]
    lines = []
    for row in texts:
        padded = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        line = ("  " + "  ".join([*padded, row[-1]])).rstrip()
        lines.append(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    return "\n".join([title, *lines]) + "\n"


def _summary(events: Sequence[Event], about: Mapping[str, Any]) -> str:
    """Return the first section, where nothing is cut: the failure must be readable."""
    lines = ["Run"]
    for key, value in _run(events, about):
        label = f"  {key:<10}"
        lines += textwrap.wrap(
            printable(str(value)),
            WIDTH,
            initial_indent=label,
            subsequent_indent=" " * len(label),
            break_on_hyphens=False,
        )
    return "\n".join(lines) + "\n"


def _milliseconds(event: Event, events: Sequence[Event]) -> str:
    return f"{(event['time'] - events[0]['time']) * 1000:.1f}"


def _of_kind(events: Sequence[Event], *kinds: str) -> list[Event]:
    return [event for event in events if event["kind"] in kinds]


def _run(events: Sequence[Event], about: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in about.items():
        if key not in ("trace", "version") and value is not None:
            yield key, " ".join(map(str, value)) if isinstance(value, list) else value
    if not events:
        yield "events", "none"
        return
    yield "started", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(events[0]["time"]))
    yield "took", duration_text((max(e["time"] for e in events) - events[0]["time"]) * 1e6)
    routed = sum(bool(event.get("routed")) for event in _of_kind(events, "exec"))
    counts = (
        f"{len(participants(events))} processes",
        f"{len(_of_kind(events, 'word.sent'))} words",
        f"{len(_of_kind(events, 'step'))} steps",
        f"{len(_of_kind(events, 'exec'))} execs ({routed} routed)",
    )
    yield "recorded", ", ".join(counts)
    failure = failure_of(events)
    if failure is not None:
        yield "FAILED", failure
        if failure.hint:
            yield "hint", failure.hint
    results = _of_kind(events, "result")
    yield (
        "result",
        result_text(results[-1]) if results else "the trace ends early",
    )


def _processes(events: Sequence[Event]) -> Iterator[Row]:
    yield "process", "pid", "inside", "ps name", "from ms", "to ms", "end"
    for participant in participants(events):
        own = _events_of(participant, events)
        start = next(iter(_of_kind(own, "process.start")), {})
        yield (
            participant.name,
            participant.pid,
            participant.pid_inside,
            start.get("comm"),
            _milliseconds(own[0], events) if own else None,
            _milliseconds(own[-1], events) if own else None,
            _end_of(participant.name, participant.pid, events),
        )


def _events_of(participant: Participant, events: Sequence[Event]) -> list[Event]:
    """Return what tells of a process; of the program others do."""
    if participant.name != PROGRAM:
        return [event for event in events if event["process"] == participant.name]
    words = (Word.STARTED, Word.EXITED)
    return [
        event
        for event in events
        if (event["kind"] == "word.sent" and event["word"] in words)
        or (event["kind"] in ("exec", "exit") and event.get("subject") == participant.pid)
    ]


def _end_of(name: str, pid: int | None, events: Sequence[Event]) -> str | None:
    for event in reversed(events):
        if event["kind"] == "process.end" and event["process"] == name:
            return f"exit {event.get('status')}"
        if event["kind"] == "exit" and event.get("subject") == pid:
            return exit_status_text(event.get("status", 0))
        if name == PROGRAM and event.get("word") == Word.EXITED:
            return exit_status_text(event["payload"].get("status", 0))
        if event["kind"] == "failed" and event.get("stage") == name:
            text = str(event.get("text"))
            return text if text.startswith("died") else "failed"
        if event["kind"] == "result" and event["process"] == name:
            return result_text(event)
    return None


def _namespaces(events: Sequence[Event]) -> Iterator[Row]:
    """One column a process; its last state counts."""
    states = {e["process"]: e["namespaces"] for e in events if e.get("namespaces")}
    base: Mapping[str, int] = next(iter(states.values()), {})
    yield "kind", *states
    for kind in _KINDS:
        if any(kind in namespaces for namespaces in states.values()):
            yield kind, *(_marked(namespaces, base, kind) for namespaces in states.values())


def _marked(namespaces: Mapping[str, int], base: Mapping[str, int], kind: str) -> str | None:
    if kind not in namespaces:
        return None
    return f"{namespaces[kind]}{'' if namespaces[kind] == base.get(kind) else '*'}"


def _id_maps(events: Sequence[Event]) -> Iterator[Row]:
    yield "written or seen by", "map", "inside", "outside", "count"
    seen = set()
    for event in events:
        for name in ("uid_map", "gid_map"):
            text = event.get(name)
            if not isinstance(text, str) or (event["process"], name, text) in seen:
                continue
            seen.add((event["process"], name, text))
            for r in parse(text):
                count = "all" if (r,) == IDENTITY else r.count
                yield event["process"], name, r.inside, r.outside, count


def _rights(events: Sequence[Event]) -> Iterator[Row]:
    """Ids and capability sets, each time that they were told."""
    yield "ms", "process", "uid", "gid", *_SETS
    for event in _of_kind(events, "state"):
        if sets := event.get("capabilities"):
            yield (
                _milliseconds(event, events), event["process"], event.get("uid"), event.get("gid"),
                *(str(sets.get(name, "")).lstrip("0") or "0" for name in _SETS),
            )  # fmt: skip


def _steps(events: Sequence[Event]) -> Iterator[Row]:
    yield "ms", "process", "took", "result", "syscall", "step"
    for event in _of_kind(events, "step", "skipped"):
        objects = " ".join(f"{k}={v!r}" for k, v in event.items() if k not in _STEP_FIELDS)
        result = name_of_errno(event["errno"]) if event.get("errno") else "ok"
        took = duration_text(event["duration_us"]) if "duration_us" in event else None
        name = event.get("step", "skipped")
        yield (
            _milliseconds(event, events), event["process"], took, result,
            event.get("syscall") or None, f"{name} {objects}",
        )  # fmt: skip


def _words(events: Sequence[Event]) -> Iterator[Row]:
    yield "ms", "from", "to", "word", "carries"
    for event in _of_kind(events, "word.sent"):
        yield (
            _milliseconds(event, events),
            event["process"],
            event["peer"],
            event["word"],
            word_note(event),
        )


def _execs(events: Sequence[Event]) -> Iterator[Row]:
    yield "ms", "pid", "view", "result", "path"
    for event in _of_kind(events, "exec"):
        view = event.get("view", "?") + (", routed" if event.get("routed") else "")
        result = name_of_errno(event["errno"]) if event.get("errno") else "ok"
        yield _milliseconds(event, events), event.get("subject"), view, result, event.get("path")


def _exits(events: Sequence[Event]) -> Iterator[Row]:
    yield "ms", "pid", "status"
    program = program_pid(events) if has_program(events) else None
    for event in _of_kind(events, "exit"):
        status = exit_status_text(event.get("status", 0))
        is_program = event.get("subject") == program
        note = f"{status} (the program)" if is_program else status
        yield _milliseconds(event, events), event.get("subject"), note
