"""From the events of a trace to what a sequence diagram shows, in order, without any layout.

A message stands where it was sent. Participants, messages and steps are those of the trace; only
who forked whom is known beforehand, from the pipeline's design. Unknown kinds are passed over, so
that a newer trace still gives a diagram.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from launcher.recorded import (
    PROGRAM,
    Event,
    Participant,
    duration_text,
    exec_text,
    failure_of,
    name_of_errno,
    participants,
    program_pid,
    result_text,
    word_note,
)
from nsstages.errors import Failure
from nsstages.isolation import exit_status_text
from nsstages.messages import CHILD, FUSE, INIT, MANAGER, PARENT, SUPERVISOR, Word

_FORKED_BY: Final = {
    PARENT: MANAGER,
    CHILD: PARENT,
    INIT: CHILD,
    FUSE: MANAGER,
    SUPERVISOR: MANAGER,
    PROGRAM: INIT,
}
_SHOWN_EXECS: Final = 12  # in a row; more are folded into one line


@dataclass(frozen=True, slots=True)
class Start:
    """``child`` begins to exist: ``how`` is fork or exec. The manager has no ``parent``."""

    parent: str
    child: str
    how: str


@dataclass(frozen=True, slots=True)
class Message:
    """A word, with its small payload as text; ``arrived`` is False when nobody received it."""

    sender: str
    receiver: str
    word: str
    note: str
    arrived: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Something a participant did by itself."""

    participant: str
    text: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Note:
    """A change of what a participant lives in."""

    participant: str
    text: str


@dataclass(frozen=True, slots=True)
class End:
    """A participant is gone."""

    participant: str
    text: str
    failed: bool = False


Item = Start | Message | Step | Note | End


@dataclass(frozen=True, slots=True)
class Diagram:
    """``items`` in causal order. ``failure`` is what ended the run, None when nothing failed."""

    participants: tuple[Participant, ...]
    items: tuple[Item, ...]
    failure: Failure | None
    status: int | None


def build(events: Sequence[Event]) -> Diagram:
    """Return the diagram of a run. ``events`` are in causal order."""
    builder = _Builder(_received(events), program_pid(events))
    for event in events:
        builder.add(event)
    results = [event for event in events if event["kind"] == "result"]
    return Diagram(
        participants(events),
        tuple(_fold(builder.items)),
        failure_of(events),
        results[-1].get("status") if results else None,
    )


def _received(events: Iterable[Event]) -> dict[tuple[str, str], list[str]]:
    """Return the words that arrived, by (sender, receiver), in order: channels keep it."""
    words: dict[tuple[str, str], list[str]] = defaultdict(list)
    for event in events:
        if event["kind"] == "word.received":
            words[event["peer"], event["process"]].append(event["word"])
    return words


@dataclass(slots=True)
class _Builder:
    """Turns events into items, one kind a method; ``alive`` are the lifelines that are drawn."""

    received: Mapping[tuple[str, str], list[str]]
    program_pid: int | None
    items: list[Item] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    namespaces: dict[str, Mapping[str, int]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Add what ``event`` shows; a kind that is not drawn adds nothing."""
        handler = _HANDLERS.get(event["kind"])
        if handler is not None:
            self._begin(event["process"])
            handler(self, event)

    def _begin(self, name: str, how: str = "fork") -> None:
        if name not in self.alive and not any(_is_end(item, name) for item in self.items):
            self.alive.add(name)
            self.items.append(Start(_FORKED_BY.get(name, ""), name, how))

    def _end(self, name: str, text: str, *, failed: bool = False) -> None:
        if name in self.alive:
            self.alive.remove(name)
            self.items.append(End(name, text, failed))

    def add_process_end(self, event: Event) -> None:
        self._end(event["process"], f"exit {event.get('status', 0)}")

    def add_word_sent(self, event: Event) -> None:
        edge = (event["process"], event["peer"])
        arrived = self.received.get(edge, [])[self.sent[edge] :][:1] == [event["word"]]
        self.sent[edge] += 1
        self._begin(event["peer"])
        if event["word"] == Word.STARTED:
            self._begin(PROGRAM, "exec")
        if event["word"] == Word.EXITED:
            self._end(PROGRAM, exit_status_text(event["payload"]["status"]))
        self.items.append(Message(*edge, event["word"], word_note(event), arrived))

    def add_step(self, event: Event) -> None:
        text = event["step"]
        if event.get("errno"):
            text += f": {event.get('syscall') or 'failed'}: {name_of_errno(event['errno'])}"
        else:
            text += f", {duration_text(event.get('duration_us', 0))}"
        self.items.append(Step(event["process"], text, bool(event.get("errno"))))

    def add_skipped(self, event: Event) -> None:
        reason = name_of_errno(event.get("errno") or 0)
        self.items.append(Step(event["process"], f"skipped {event.get('target')}: {reason}"))

    def add_state(self, event: Event) -> None:
        now: Mapping[str, int] = event.get("namespaces") or {}
        if not now:
            return
        before = self._namespaces_before(event["process"])
        self.namespaces[event["process"]] = now
        changed = [kind for kind in now if before and now[kind] != before.get(kind)]
        if changed:
            text = f"now in other namespaces: {' '.join(changed)}"
            if "pid" in changed and "pid_inside" in event:
                text += f" (as pid {event['pid_inside']})"
            self.items.append(Note(event["process"], text))

    def _namespaces_before(self, name: str) -> Mapping[str, int]:
        """Return those of the process itself or, at its first report, of its nearest ancestor."""
        while name and name not in self.namespaces:
            name = _FORKED_BY.get(name, "")
        return self.namespaces.get(name, {})

    def add_exec(self, event: Event) -> None:
        self._begin(PROGRAM, "exec")
        self.items.append(Step(PROGRAM, exec_text(event), bool(event.get("errno"))))

    def add_exit(self, event: Event) -> None:
        if event.get("subject") == self.program_pid:
            self._end(PROGRAM, exit_status_text(event.get("status", 0)))

    def add_failed(self, event: Event) -> None:
        failure = Failure.from_payload(dict(event))
        if failure.text.startswith("died"):
            self._end(failure.stage, failure.text, failed=True)
        elif failure.stage == event["process"] and not self._has_just_failed(failure.stage):
            text = f"{failure.step}: {failure.text or name_of_errno(failure.errno)}"
            self.items.append(Step(failure.stage, text, failed=True))

    def _has_just_failed(self, name: str) -> bool:
        last = self.items[-1] if self.items else None
        return isinstance(last, Step) and last.failed and last.participant == name

    def add_result(self, event: Event) -> None:
        if not event.get("error") and not any(_is_start(item, PROGRAM) for item in self.items):
            self._end(INIT, "became the program, and ended")
        self._end(event["process"], result_text(event), failed=bool(event.get("error")))


_HANDLERS: Final[Mapping[str, Callable[[_Builder, Event], None]]] = {
    "process.start": lambda _builder, _event: None,  # any first event begins a lifeline
    "process.end": _Builder.add_process_end,
    "word.sent": _Builder.add_word_sent,
    "step": _Builder.add_step,
    "skipped": _Builder.add_skipped,
    "state": _Builder.add_state,
    "exec": _Builder.add_exec,
    "exit": _Builder.add_exit,
    "failed": _Builder.add_failed,
    "result": _Builder.add_result,
}


def _is_start(item: Item, name: str) -> bool:
    return isinstance(item, Start) and item.child == name


def _is_end(item: Item, name: str) -> bool:
    return isinstance(item, End) and item.participant == name


def _fold(items: Iterable[Item]) -> Iterable[Item]:
    """Shorten long rows of the program's own steps; failed ones are always shown."""
    shown = hidden = 0
    for item in items:
        is_program = isinstance(item, Step) and item.participant == PROGRAM
        if isinstance(item, Step) and is_program and not item.failed:
            shown += 1
            if shown > _SHOWN_EXECS:
                hidden += 1
                continue
        if hidden:
            yield Step(PROGRAM, f"{hidden} more")
        if not is_program:
            shown = 0
        hidden = 0
        yield item
    if hidden:
        yield Step(PROGRAM, f"{hidden} more")
