"""The recorder: steps and their failures, secrets, and many writers of one sink."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.errors import StageFailed
from nsstages.trace import VERSION, Recorder, create_sink, read_sink


@pytest.fixture
def sink() -> Iterator[int]:
    """A sink."""
    fd = create_sink()
    yield fd
    os.close(fd)


def test_an_event_says_who_when_and_what(sink: int) -> None:
    """Version, clock, time, process and pid come with every event."""
    Recorder("manager", sink).event("state", uid=0)
    (event,) = read_sink(sink)

    assert (VERSION, "manager", os.getpid(), "state", 0) == (
        event["v"], event["process"], event["pid"], event["kind"], event["uid"]
    )  # fmt: skip
    assert {"clock", "time"} < event.keys()


def test_without_a_sink_nothing_is_kept() -> None:
    """The clock goes on nevertheless: it travels in the words."""
    recorder = Recorder("manager")
    first = recorder.word_sent("peer", "RUN", {})

    assert recorder.word_sent("peer", "RUN", {}) > first


def test_the_clock_never_goes_back(sink: int) -> None:
    """Each event of a process is later than the one before, and than what it has heard."""
    recorder = Recorder("manager", sink)
    recorder.word_received("peer", "PIDS", {}, 2**62)
    recorder.event("state")

    clocks = [event["clock"] for event in read_sink(sink)]
    assert clocks[0] > 2**62
    assert clocks[1] > clocks[0]


def test_a_step_that_succeeds(sink: int) -> None:
    """Name, system call, errno 0, duration, and the objects that were touched."""
    with Recorder("stage", sink).step("join net", "setns", namespace="net"):
        pass
    (event,) = read_sink(sink)

    assert ("step", "join net", "setns", 0, "net") == (
        event["kind"], event["step"], event["syscall"], event["errno"], event["namespace"]
    )  # fmt: skip
    assert event["duration_us"] >= 0


@pytest.mark.parametrize(
    ("error", "errno", "line"),
    [
        (OSError(1, "Not permitted"), 1, "s: t: unshare: Not permitted [EPERM]"),
        (OSError(2, "No such file", "/x"), 2, "s: t: unshare: /x: No such file [ENOENT]"),
        (PermissionError(1, "not in /etc/subuid", "newuidmap"), 1,
         "s: t: unshare: newuidmap: not in /etc/subuid [EPERM]"),
        (OSError("no number"), 0, "s: t: unshare: no number"),
        (OSError(2, "No such file", b"/\xff"), 2, "s: t: unshare: /\udcff: No such file [ENOENT]"),
    ],
)  # fmt: skip
def test_a_step_that_fails(sink: int, error: OSError, errno: int, line: str) -> None:
    """The failure names process, step, system call, object and errno, and carries the hint."""
    with (
        pytest.raises(StageFailed) as raised,
        Recorder("s", sink).step("t", "unshare", hint="try this"),
    ):
        raise error
    (event,) = read_sink(sink)

    assert line == str(raised.value)
    assert "try this" == raised.value.hint
    assert errno == event["errno"] == raised.value.failure.errno


def test_other_errors_pass_through(sink: int) -> None:
    """What no system call says is not a failed step."""
    with pytest.raises(ValueError, match="mine"), Recorder("s", sink).step("t"):
        raise ValueError("mine")


def test_secrets_are_not_recorded(sink: int) -> None:
    """Of an environment the trace has the number of variables, at any depth."""
    payload = {"process": {"env": ["TOKEN=secret", "A=1"], "argv": ["x"]}, "environment": ["B=c"]}
    recorder = Recorder("manager", sink)
    recorder.word_sent("peer", "CONFIG", payload)
    recorder.word_received("peer", "CONFIG", payload, 0)

    for event in read_sink(sink):
        assert "<2 variables>" == event["payload"]["process"]["env"]
        assert "<1 variables>" == event["payload"]["environment"]
        assert ["x"] == event["payload"]["process"]["argv"]
    assert b"secret" not in os.pread(sink, 1 << 16, 0)


def test_big_values_are_shortened(sink: int) -> None:
    """Filters and long lists appear as their size."""
    Recorder("m", sink).word_sent("p", "CONFIG", {"filter": b"x" * 80, "list": list(range(9))})
    (event,) = read_sink(sink)

    assert {"filter": "<80 bytes>", "list": "<9 items>"} == event["payload"]


def test_processes_share_a_sink(sink: int) -> None:
    """Many processes append at once; every event is whole, in order of the clock."""
    pids = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            recorder = Recorder(f"p{number}", sink)
            for turn in range(50):
                recorder.event("turn", turn=turn, text="x" * 100)
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    events = read_sink(sink)

    assert 200 == len(events)
    assert events == sorted(events, key=lambda event: (event["clock"], event["time"]))
    for number in range(4):
        turns = [event["turn"] for event in events if event["process"] == f"p{number}"]
        assert list(range(50)) == turns


def test_a_half_written_event_is_left_out(sink: int, tmp_path: Path) -> None:
    """What a killed process did not finish does not spoil the rest."""
    Recorder("m", sink).event("whole")
    os.write(sink, b"\x10")

    assert ["whole"] == [event["kind"] for event in read_sink(sink)]


def test_any_value_can_be_recorded(sink: int) -> None:
    """Bytes of names that are not text, and objects that msgpack does not know."""
    Recorder("m", sink).event("skipped", target="/\udcff", path=Path("/x"))
    (event,) = read_sink(sink)

    assert ("/\udcff", "/x") == (event["target"], event["path"])
