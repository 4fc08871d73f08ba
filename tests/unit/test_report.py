"""The report: every table says what the trace says, in at most 100 columns."""

from __future__ import annotations

import pytest

from launcher.report import render
from tests import recorded


def section(report: str, title: str) -> list[str]:
    """Return the lines of one section, without its title."""
    for block in report.split("\n\n"):
        first, *lines = block.strip("\n").split("\n")
        if first.startswith(title):
            return lines
    return []


@pytest.fixture(scope="module")
def attach() -> str:
    return render(
        recorded.attach(), {"trace": "launcher", "version": 1, "command": ["attach", "w"]}
    )


def test_summary_has_command_counts_and_result(attach: str) -> None:
    """The first section says what was run, how much happened and how it ended."""
    lines = section(attach, "Run")

    assert "  command   attach w" == lines[0]
    assert "7 processes, 24 words, 5 steps, 2 execs (1 routed)" in lines[3]
    assert "  result    exit status 3" == lines[-1]


def test_processes_have_pids_outside_and_inside(attach: str) -> None:
    """Stage 2 is 4705 for the host and 1 for itself; the program is the one that was traced."""
    rows = {line[2:18].strip(): line[18:].split() for line in section(attach, "Processes")}

    assert ["4705", "1"] == rows["stage 2 (INIT)"][:2]
    assert ["4700", "4700"] == rows["manager"][:2]
    assert "4706" == rows["program"][0]
    assert ["exit", "3"] == rows["program"][-2:]


def test_namespaces_that_are_not_the_managers_are_marked(attach: str) -> None:
    """Stage 1 has a new user namespace, and still the old PID namespace that its child left."""
    rows = {line.split()[0]: line.split()[1:] for line in section(attach, "Namespaces")}

    assert ["4026531830", "4026532251*", "4026532251*"] == rows["user"]
    assert ["4026531832", "4026531832", "4026532252*"] == rows["pid"]
    assert ["4026531833"] * 3 == rows["net"]


def test_id_maps_are_a_row_for_each_range(attach: str) -> None:
    """Who wrote which map, and that an identity map covers all ids."""
    rows = [line.split()[-4:] for line in section(attach, "Id maps")]

    assert ["uid_map", "0", "100000", "65536"] in rows
    assert ["gid_map", "0", "0", "all"] in rows


def test_steps_have_duration_result_and_objects(attach: str) -> None:
    """A step shows its system call and what it touched; a skipped mount why."""
    steps = section(attach, "Steps")

    cells = [" ".join(line.split()[1:]) for line in steps]
    assert "stage 1 (CHILD) 42µs ok unshare create user namespace" in cells
    assert any("ENOENT" in line and "skipped target='/etc/hosts'" in line for line in steps)


def test_words_are_in_the_order_in_which_they_were_said(attach: str) -> None:
    """The table of words is the handshake, first to last."""
    words = [line.split("  ")[-1].split() for line in section(attach, "Words")[1:]]
    text = "\n".join(section(attach, "Words"))
    said = ["BOOTSTRAP", "USERMAP_PLS", "USERMAP_ACK", "PIDS", "CONFIG", "READY", "STARTED"]

    assert sorted(said, key=text.index) == said
    assert ["exit", "3"] == words[-1]


def test_execs_tell_routed_from_not_routed(attach: str) -> None:
    """The host's shell is in the host's view, the container's ls in the container's."""
    execs = section(attach, "Execs")

    assert execs[1].split()[1:] == ["4706", "host", "ok", "/bin/bash"]
    assert execs[2].split()[1:] == ["4707", "container,", "routed", "ok", "/c/bin/ls"]


def test_exits_are_told_by_status_or_signal() -> None:
    """A killed program shows its signal, and is named as the program."""
    script = recorded.Script()
    script.event("supervisor", "exec", subject=9, path="/bin/sh")
    script.event("supervisor", "exit", subject=9, status=9)

    lines = section(render(script.events), "Exits")

    assert ["9", "SIGKILL", "(the", "program)"] == lines[1].split()[1:]


def test_failure_is_in_the_summary_and_not_cut() -> None:
    """However long, the message and its hint can be read to the end."""
    events = recorded.child_failure()
    for event in events:
        if event["kind"] == "failed":
            event["text"] = "word " * 60 + "END"
            event["hint"] = "do something"
    summary = "\n".join(section(render(events), "Run"))

    assert "END [EPERM]" in " ".join(summary.split())
    assert "hint      do something" in summary
    assert "result    failed" in summary


def test_trace_without_a_result_says_so() -> None:
    """A manager that was killed leaves a trace that ends early."""
    events = [event for event in recorded.attach() if event["kind"] != "result"]

    assert "  result    the trace ends early" in section(render(events), "Run")


def test_empty_trace_gives_a_report() -> None:
    """A run of which nothing is known is no error."""
    assert "Run\n  events    none\n" == render([])


def test_no_line_is_longer_than_100_columns_nor_has_control_characters() -> None:
    """A container cannot move the reader's cursor with the names of its files."""
    script = recorded.Script()
    path = "/c/\x1b[2J\n" + "long" * 100 + "\udcff"
    script.event("supervisor", "exec", subject=9, path=path)
    script.step("manager", path, path, value=path)

    report = render(script.events, {"command": [path]})

    assert "\x1b" not in report
    assert 100 >= max(len(line) for line in report.splitlines())
    assert report == report.encode().decode()


def test_report_of_real_processes() -> None:
    """What two real processes recorded is reported: the step of one, the words of both."""
    report = render(recorded.two_processes())

    assert "look at ourselves path='/proc/self'" in report
    assert "stage1 11 stage2 12" in report
