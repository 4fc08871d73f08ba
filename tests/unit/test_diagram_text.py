"""The sequence diagram as text: participants, order and failure are those of the trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher.diagram.model import Diagram, End, Message, Note, Start, Step, build
from launcher.diagram.text import render
from nsstages.messages import CHILD, FUSE, INIT, MANAGER, PARENT, SUPERVISOR, Word, is_legal
from tests import recorded

RUNS = [
    recorded.attach,
    recorded.child_failure,
    recorded.killed_stage,
    recorded.two_processes,
]


def words_of(diagram: Diagram) -> list[tuple[str, str, str]]:
    return [(m.sender, m.receiver, m.word) for m in diagram.items if isinstance(m, Message)]


# --- the model -----------------------------------------------------------------------------------


def test_participants_are_in_the_order_of_the_pipeline() -> None:
    """Manager, stages, FUSE server, supervisor, program, each with its pids."""
    found = [(p.name, p.pid, p.pid_inside) for p in build(recorded.attach()).participants]

    assert [
        (MANAGER, 4700, 4700),
        (PARENT, 4703, 4703),
        (CHILD, 4704, 4704),
        (INIT, 4705, 1),
        (FUSE, 4701, 4701),
        (SUPERVISOR, 4702, 4702),
        ("program", 4706, None),
    ] == found


def test_processes_that_did_not_run_are_not_drawn() -> None:
    """A run without FUSE and supervision has no lanes for them."""
    assert [MANAGER, PARENT] == [p.name for p in build(recorded.two_processes()).participants]


def test_messages_are_the_handshake_of_each_edge_in_legal_order() -> None:
    """Every word of the trace is there, in the order that nsstages.messages allows."""
    events = recorded.attach()
    said = words_of(build(events))
    previous: dict[tuple[str, str], Word] = {}

    for sender, receiver, word in said:
        assert is_legal(sender, receiver, Word(word), previous.get((sender, receiver)))
        previous[sender, receiver] = Word(word)
    assert len([e for e in events if e["kind"] == "word.sent"]) == len(said)


def test_nobody_acts_before_it_is_started_or_after_its_end() -> None:
    """A lifeline covers all that its process does."""
    alive: set[str] = set()
    for item in build(recorded.attach()).items:
        match item:
            case Start():
                assert item.parent in alive or not item.parent
                alive.add(item.child)
            case Message():
                assert {item.sender, item.receiver} <= alive
            case Step() | Note():
                assert item.participant in alive
            case End():
                alive.remove(item.participant)
    assert set() == alive


def test_double_clone_is_in_the_picture() -> None:
    """Who forked whom: the manager stage 0, stage 0 stage 1, stage 1 stage 2."""
    starts = {
        i.child: (i.parent, i.how) for i in build(recorded.attach()).items if isinstance(i, Start)
    }

    assert (MANAGER, "fork") == starts[PARENT]
    assert (PARENT, "fork") == starts[CHILD]
    assert (CHILD, "fork") == starts[INIT]
    assert (INIT, "exec") == starts["program"]


def test_word_that_nobody_received_is_told_apart() -> None:
    """The word to a stage that was killed meanwhile did not arrive, all others did."""
    lost = [i.word for i in build(recorded.killed_stage()).items
            if isinstance(i, Message) and not i.arrived]  # fmt: skip

    assert [Word.USERMAP_ACK] == lost


def test_failure_is_that_of_the_process_that_met_it() -> None:
    """Those above only pass it on; the failed step is marked once, in the right lane."""
    diagram = build(recorded.child_failure())
    failed = [(i.participant, i.text) for i in diagram.items if isinstance(i, Step) and i.failed]

    assert diagram.failure is not None
    assert (CHILD, "setns", 1) == (
        diagram.failure.stage, diagram.failure.syscall, diagram.failure.errno
    )  # fmt: skip
    assert [(CHILD, "join net namespace: setns: EPERM")] == failed


def test_killed_process_ends_where_its_death_was_noticed() -> None:
    """The lane of the dead stage ends with how it died."""
    ends = {i.participant: (i.text, i.failed) for i in build(recorded.killed_stage()).items
            if isinstance(i, End)}  # fmt: skip

    assert ("died (SIGKILL)", True) == ends[CHILD]


def test_error_of_the_manager_alone_is_a_failure() -> None:
    """An error that no stage reported, such as a deadline, is shown too."""
    script = recorded.Script()
    script.event(MANAGER, "result", status=None, error="manager: no PIDS within 12 s")

    failure = build(script.events).failure

    assert failure is not None
    assert "no PIDS within 12 s" in str(failure)


def test_stage_2_that_became_the_program_ends_with_it() -> None:
    """Without a reaper the last lane is stage 2's, and the picture says what it was."""
    script = recorded.Script()
    script.start(INIT)
    script.event(MANAGER, "result", status=0, error="")
    ends = {i.participant: i.text for i in build(script.events).items if isinstance(i, End)}

    assert "became the program, and ended" == ends[INIT]


def test_namespaces_are_noted_where_they_changed() -> None:
    """Stage 2 has what stage 1 made, but for the PID namespace that it is the first in."""
    notes = {i.participant: i.text for i in build(recorded.attach()).items if isinstance(i, Note)}

    assert "now in other namespaces: user mnt" == notes[CHILD]
    assert "now in other namespaces: pid (as pid 1)" == notes[INIT]


def test_long_row_of_execs_is_folded_but_no_refused_one() -> None:
    """A thousand programs in the shell are a dozen lines and a number."""
    script = recorded.Script()
    for number in range(1000):
        errno = 13 if number == 500 else 0
        script.event(SUPERVISOR, "exec", subject=7, path=f"/bin/{number}", errno=errno)
    steps = [i.text for i in build(script.events).items if isinstance(i, Step)]

    assert "exec /bin/500: EACCES" in steps
    assert 20 > len(steps)
    assert 999 == sum(
        int(t.split()[0]) if t.endswith(" more") else "EACCES" not in t for t in steps
    )


def test_unknown_kinds_are_passed_over() -> None:
    """A trace of a newer launcher still gives its diagram."""
    events = recorded.attach()
    known = build(events).items
    events.insert(5, {**events[5], "kind": "end"})

    assert known == build(events).items


# --- the text ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", RUNS)
def test_every_line_fits_80_columns(make: Callable[[], list[recorded.Event]]) -> None:
    """The diagram is for a terminal, and for a mail."""
    lines = render(build(make())).splitlines()

    assert 80 >= max(map(len, lines))
    assert [] == [line for line in lines if line != line.rstrip()]


@pytest.mark.parametrize("make", RUNS)
def test_every_word_is_readable_and_in_order(make: Callable[[], list[recorded.Event]]) -> None:
    """All words of the trace can be read in the picture from top to bottom."""
    diagram = build(make())
    text = render(diagram)
    position = 0
    for _, _, word in words_of(diagram):
        position = text.index(word, position) + len(word)


@pytest.mark.parametrize("make", RUNS)
def test_every_arrow_runs_between_the_lanes_of_its_word(
    make: Callable[[], list[recorded.Event]],
) -> None:
    """An arrow starts at the lane of who speaks and its head is at the lane of who listens."""
    diagram = build(make())
    lines = render(diagram).splitlines()
    columns = {p.name: n * (80 // len(diagram.participants)) + 80 // len(diagram.participants) // 2
               for n, p in enumerate(diagram.participants)}  # fmt: skip
    arrows = [line for line in lines if set("─━╌") & set(line) and set("►◄✗") & set(line)]
    expected = [i for i in diagram.items
                if isinstance(i, Message) or (isinstance(i, Start) and i.parent)]  # fmt: skip

    assert len(expected) == len(arrows)
    for item, line in zip(expected, arrows, strict=True):
        source, target = (
            (item.sender, item.receiver) if isinstance(item, Message) else (item.parent, item.child)
        )
        step = 1 if columns[source] < columns[target] else -1
        assert line[columns[source]] in "├┤"
        assert line[columns[target] - step] in "►◄✗"


def test_failure_is_the_last_and_largest_thing() -> None:
    """A box of full width with process, step, system call, errno and hint."""
    lines = render(build(recorded.child_failure())).splitlines()
    box = lines[lines.index("╔" + "═" * 78 + "╗") :]
    text = " ".join(line.strip("║ ") for line in box)

    assert "FAILED: stage 1 (CHILD): join net namespace: setns: Operation not permitted" in text
    assert "[EPERM]" in text
    assert "hint: does this user own the target?" in text
    assert "╚" + "═" * 78 + "╝" == lines[-1]
    assert any("━ FAILED ━" in line for line in lines)


def test_success_ends_with_the_exit_status() -> None:
    """A run that did not fail has no box."""
    text = render(build(recorded.attach()))

    assert text.endswith("\nExit status 3.\n")
    assert "╔" not in text


def test_trace_that_ends_early_is_drawn_as_far_as_it_goes() -> None:
    """Any beginning of a trace gives a diagram: the manager may be killed at any moment."""
    events = recorded.attach()
    for length in range(len(events)):
        text = render(build(events[:length]))

        assert "The trace ends before the run does." in text


def test_long_and_hostile_texts_stay_in_their_rows() -> None:
    """Control characters are escaped and long paths wrapped: the container names its files."""
    script = recorded.Script()
    script.event(SUPERVISOR, "exec", subject=7, path="/c/\x1b[2J\n" + "x" * 500 + "\udcff")

    text = render(build(script.events))

    assert "\x1b" not in text
    assert 80 >= max(map(len, text.splitlines()))
    assert text == text.encode().decode()
