"""The file of --trace: what is written comes back, and what is not a trace is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import tracefile
from launcher.tracefile import TraceFileError
from tests import recorded

REFERENCE = Path(__file__).parents[2] / "docs/reference/trace.md"


def test_events_of_real_processes_come_back_as_they_were(tmp_path: Path) -> None:
    """A trace survives the file: header and all events, in the same order."""
    events = recorded.two_processes()

    tracefile.write(tmp_path / "t", events, {"command": ["run", "x"]})
    trace = tracefile.read(tmp_path / "t")

    assert tuple(events) == trace.events
    assert {"trace": "launcher", "version": 1, "command": ["run", "x"]} == trace.about
    assert not trace.is_cut_off


def test_values_of_the_environment_are_not_in_the_file(tmp_path: Path) -> None:
    """A secret that a process got in its environment never reaches the disk."""
    tracefile.write(tmp_path / "t", recorded.two_processes(), {})

    assert "SECRET" not in (tmp_path / "t").read_text()


def test_file_name_that_is_not_utf8_survives(tmp_path: Path) -> None:
    """A path of a hostile container does not break the file, and no byte of it is lost."""
    script = recorded.Script()
    path = b"/c/bin/\xff\x1b[2J".decode(errors="surrogateescape")
    script.event("supervisor", "exec", subject=7, path=path)

    tracefile.write(tmp_path / "t", script.events, {})

    assert path == tracefile.read(tmp_path / "t").events[0]["path"]


@pytest.mark.parametrize("make", [recorded.attach, recorded.child_failure, recorded.killed_stage])
def test_a_receive_never_comes_before_its_send(
    tmp_path: Path, make: Callable[[], list[recorded.Event]]
) -> None:
    """Whatever the order of the lines in a file, the events are read in causal order."""
    tracefile.write(tmp_path / "t", reversed(make()), {})
    sent: set[tuple[str, str, str]] = set()

    for event in tracefile.read(tmp_path / "t").events:
        if event["kind"] == "word.sent":
            sent.add((event["process"], event["peer"], event["word"]))
        if event["kind"] == "word.received":
            assert (event["peer"], event["process"], event["word"]) in sent


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    """What a killed writer wrote before its death is readable."""
    events = recorded.two_processes()
    tracefile.write(tmp_path / "t", events, {})
    whole = (tmp_path / "t").read_text()
    (tmp_path / "t").write_text(whole[:-20])

    trace = tracefile.read(tmp_path / "t")

    assert tuple(events[:-1]) == trace.events
    assert trace.is_cut_off


def test_unknown_kinds_and_fields_are_kept(tmp_path: Path) -> None:
    """A newer launcher may tell more without a new version."""
    script = recorded.Script()
    script.event("manager", "telepathy", strength=11)
    tracefile.write(tmp_path / "t", script.events, {"weather": "fine"})

    trace = tracefile.read(tmp_path / "t")

    assert 11 == trace.events[0]["strength"]
    assert "fine" == trace.about["weather"]


HEADER = '{"trace":"launcher","version":1}\n'
GOOD = '{"clock":1,"time":1.5,"process":"manager","pid":1,"kind":"x"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a trace"),
        ("hello\n", "not a trace"),
        ("[1]\n", "not a trace"),
        ('{"trace":"launcher","version":2}\n', "trace version 2, this launcher reads version 1"),
        (HEADER + "{bad\n" + GOOD, "line 2: not JSON"),
        (HEADER + GOOD + "7\n", "line 3: an event is an object, not int"),
        (HEADER + GOOD.replace('"pid":1', '"pid":"1"'), "line 2: pid: int expected"),
        (HEADER + GOOD.replace('"x"', '"exit"'), "line 2: subject: int expected"),
        (HEADER + GOOD.replace('"x"', '"result"'), "line 2: error: str expected"),
        (HEADER + "\xff\xfe\n", "line 2: not JSON"),
    ],
)
def test_what_is_not_a_trace_is_refused_with_the_line(
    tmp_path: Path, text: str, message: str
) -> None:
    """The error names the file, the line and what was expected there."""
    (tmp_path / "t").write_bytes(text.encode("latin-1"))

    with pytest.raises(TraceFileError, match=re.escape(message)) as caught:
        tracefile.read(tmp_path / "t")

    assert str(caught.value).startswith(str(tmp_path / "t"))


def test_every_line_is_a_json_object_in_ascii(tmp_path: Path) -> None:
    """Any tool for JSON Lines reads the file."""
    tracefile.write(tmp_path / "t", recorded.attach(), {"command": ["Ünïcode"]})

    lines = (tmp_path / "t").read_bytes().decode("ascii").splitlines()

    assert {dict} == {type(json.loads(line)) for line in lines}
    assert len(recorded.attach()) + 1 == len(lines)


def test_reference_names_every_kind_and_field_that_is_checked() -> None:
    """docs/reference/trace.md is complete for what the reader insists on."""
    text = REFERENCE.read_text()
    fields = {field for wanted in tracefile._FIELDS_OF_KIND.values() for field in wanted}

    names = {*tracefile._FIELDS, *tracefile._FIELDS_OF_KIND, *fields}

    assert [] == sorted(name for name in names if f"`{name}`" not in text)
