"""A sequence diagram for a terminal of 80 columns.

├── WORD ─►│   a word of the handshake; ─✗ when nobody received it
├╌╌ fork ╌►┬   a process begins; ┴ it ends
●  ✗  ◆        a step, a failed step, a change of what the process lives in
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from launcher.diagram.model import Diagram, End, Item, Message, Note, Start, Step
from launcher.recorded import Participant, printable
from nsstages.errors import Failure
from nsstages.messages import Word

WIDTH: Final = 80
_REPEAT_TITLES_AFTER: Final = 40  # rows


def render(diagram: Diagram) -> str:
    """Return the diagram, at most 80 columns wide, each line ended by a newline."""
    canvas = _Canvas(_columns(diagram.participants))
    titles = _titles(diagram.participants, canvas.columns)
    for item in diagram.items:
        canvas.draw(item)
    lines = [*titles, *canvas.rows]
    if len(canvas.rows) > _REPEAT_TITLES_AFTER:
        lines += titles
    lines += ["", *_ending(diagram)]
    return "".join(line.rstrip() + "\n" for line in lines)


def _columns(participants: tuple[Participant, ...]) -> dict[str, int]:
    pitch = WIDTH // max(1, len(participants))
    return {p.name: pitch // 2 + number * pitch for number, p in enumerate(participants)}


def _titles(participants: tuple[Participant, ...], columns: Mapping[str, int]) -> list[str]:
    """Return the heads of the lanes: name, role, pid outside and, if another, inside."""
    rows = [[" "] * WIDTH for _ in range(4)]
    for participant in participants:
        first, _, second = participant.name.partition(" (" if "(" in participant.name else " ")
        pid, inside = participant.pid, participant.pid_inside
        texts = [
            printable(first),
            printable(second.rstrip(")")),
            "" if pid is None else str(pid),
            "",
        ]
        if inside not in (None, pid):
            texts[3] = f"({inside} inside)"
        for row, text in zip(rows, texts, strict=True):
            _put(row, columns[participant.name] - len(text) // 2, text)
    return [text for row in rows if (text := "".join(row)).strip()]


def _put(row: list[str], start: int, text: str) -> None:
    """Write ``text`` into ``row``, moved left as far as needed to fit."""
    text = text[:WIDTH]
    start = max(0, min(start, WIDTH - len(text)))
    row[start : start + len(text)] = text


def _put_between(row: list[str], left: int, right: int, label: str) -> None:
    """Write ``label`` in the middle between two lanes, with a space around it if there is room."""
    if len(label) + 2 < right - left:
        label = f" {label} "
    _put(row, (left + right + 1 - len(label)) // 2, label)


@dataclass(slots=True)
class _Canvas:
    """The rows so far. ``alive`` holds the names whose lifelines run through the next row."""

    columns: Mapping[str, int]
    alive: set[str] = field(default_factory=set)
    rows: list[str] = field(default_factory=list)

    def draw(self, item: Item) -> None:
        """Add the rows of ``item``."""
        match item:
            case Start():
                if item.parent in self.columns:
                    self._arrow(item.parent, item.child, item.how, "╌", "►", "┬")
                self.alive.add(item.child)
            case Message():
                self._message(item)
            case Step():
                self._beside(item.participant, "✗" if item.failed else "●", item.text)
            case Note():
                self._beside(item.participant, "◆", item.text)
            case End():
                self._beside(item.participant, "✗" if item.failed else "┴", item.text)
                self.alive.discard(item.participant)

    def _message(self, item: Message) -> None:
        label = printable(item.word)
        if not item.arrived:
            label += " (nobody received it)"
        with_note = f"{label} {printable(item.note)}"
        if item.note and len(with_note) <= self._room(item.sender, item.receiver):
            label = with_note
        line = "━" if item.word == Word.FAILED else "─"
        self._arrow(item.sender, item.receiver, label, line, "►" if item.arrived else "✗", "")

    def _lifelines(self) -> list[str]:
        row = [" "] * WIDTH
        for name in self.alive:
            row[self.columns[name]] = "│"
        return row

    def _room(self, one: str, other: str) -> int:
        """Return the length of the longest label that fits into the arrow between two lanes."""
        return abs(self.columns[one] - self.columns[other]) - 5

    def _arrow(self, source: str, target: str, label: str, line: str, head: str, end: str) -> None:
        start, stop = self.columns[source], self.columns[target]
        left, right = min(start, stop), max(start, stop)
        if len(label) > self._room(source, target):
            row = self._lifelines()
            _put_between(row, left, right, label)
            self.rows.append("".join(row))
            label = ""
        row = self._lifelines()
        row[left + 1 : right] = line * (right - left - 1)
        if label:
            _put_between(row, left, right, label)
        row[start] = "├" if start < stop else "┤"
        row[stop] = end or row[stop]
        row[stop - 1 if start < stop else stop + 1] = head if start < stop else _MIRRORED[head]
        self.rows.append("".join(row))

    def _beside(self, name: str, mark: str, text: str) -> None:
        """Write ``text`` on the side of a lifeline that has room for it, the right one first."""
        column = self.columns[name]
        right, left = WIDTH - column - 2, column - 1
        text = printable(text)
        is_right = len(text) <= right or right >= left
        for line in textwrap.wrap(text, right if is_right else left, max_lines=3, placeholder=" …"):
            row = self._lifelines()
            row[column] = mark or row[column]
            if is_right:
                _put(row, column + 1, f" {line} "[: right + 1])
            else:
                _put(row, column - len(line) - 1, f"{line} ")
            self.rows.append("".join(row))
            mark = ""


_MIRRORED: Final = {"►": "◄", "✗": "✗"}


def _ending(diagram: Diagram) -> list[str]:
    """Return the last lines: how the run ended, in a box when it failed."""
    if diagram.failure is not None:
        return _failure_box(diagram.failure)
    if diagram.status is None:
        return ["The trace ends before the run does."]
    return [f"Exit status {diagram.status}."]


def _failure_box(failure: Failure) -> list[str]:
    inner = WIDTH - 6
    texts = [printable(f"FAILED: {failure}")]
    if failure.hint:
        texts.append(printable(f"hint: {failure.hint}"))
    lines = [line for text in texts for line in textwrap.wrap(text, inner)]
    edge = "═" * (WIDTH - 2)
    return [f"╔{edge}╗", *(f"║  {line:<{inner}}  ║" for line in lines), f"╚{edge}╝"]
