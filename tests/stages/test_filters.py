"""Reading a target's seccomp filters while somebody else traces it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.errors import TargetError
from launcher.supervisor import filters
from launcher.supervisor.filters import read_filters
from launcher.targets.bounded import Answer, in_child
from nsstages.syscalls import (
    PR_SET_NO_NEW_PRIVS,
    SECCOMP_SET_MODE_FILTER,
    Call,
    Packed,
    execute,
    prctl,
)
from tests import needs

PTRACE_SEIZE = 0x4206
ALLOW = bytes.fromhex("060000000000ff7f")


FilteredAs = Callable[[Callable[[], object]], int]


def install(filter_: bytes) -> None:
    """Install a seccomp filter in this process."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    packed = Packed("HxxxxxxQ", (len(filter_) // 8, filter_))
    execute(Call("seccomp", (SECCOMP_SET_MODE_FILTER, 0, packed)))


@pytest.fixture
def filtered_as() -> Iterator[FilteredAs]:
    """Start a process with one filter that then does something."""
    started: list[int] = []

    def start(job: Callable[[], object]) -> int:
        reader, writer = os.pipe()
        started.append(os.fork())
        if not started[-1]:
            install(ALLOW)
            os.write(writer, b"x")
            job()
            os._exit(1)
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        return started[-1]

    yield start
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def filtered(filtered_as: FilteredAs) -> int:
    """The pid of a process with one filter."""
    return filtered_as(signal.pause)


@contextmanager
def traced(pid: int, seconds: float) -> Iterator[int]:
    """Have another process trace ``pid`` for some seconds from now on; yield its pid."""
    reader, writer = os.pipe()
    tracer = os.fork()
    if not tracer:
        execute(Call("ptrace", (PTRACE_SEIZE, pid, 0, 0)))
        os.write(writer, b"x")
        time.sleep(seconds)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    yield tracer
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)


@needs.root
def test_two_launches_read_one_target(filtered: int) -> None:
    """A launch waits for the moment in which another one reads the same target."""
    with traced(filtered, 0.1):
        found = read_filters(filtered)

    assert (ALLOW,) == found


@needs.root
def test_a_debugger_is_not_waited_for(filtered: int) -> None:
    """A target that stays traced is refused, and the hint says by whom."""
    with traced(filtered, 60) as tracer, pytest.raises(TargetError) as refused:
        read_filters(filtered)

    assert f"process {tracer} traces it, a debugger or strace: end that first" == refused.value.hint


@needs.root
def test_a_launcher_with_a_filter_of_its_own(filtered: int) -> None:
    """The kernel shows filters only to a process without one; the hint says that, and no more."""

    def install_and_read() -> Answer:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        install(ALLOW)
        with pytest.raises(TargetError) as refused:
            read_filters(filtered)
        return Answer(refused.value.hint.encode())

    hint = in_child(install_and_read, timeout=10).data.decode()

    assert hint.startswith("this launcher runs under a seccomp filter itself, ")
    assert hint.endswith("start it outside")


@needs.root
def test_a_target_that_does_not_stop(
    tmp_path: Path, filtered_as: FilteredAs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher waits no longer than its deadline for a target that stands still in the kernel."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    actions = [(os.POSIX_SPAWN_OPEN, 5, str(fifo), os.O_RDONLY, 0)]  # the parent waits, as in vfork
    pid = filtered_as(lambda: os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions))
    while not Path(f"/proc/{pid}/task/{pid}/children").read_text():
        os.sched_yield()
    monkeypatch.setattr(filters, "_SECONDS", 0.1)

    with pytest.raises(TargetError, match="timed out") as refused:
        read_filters(pid)
    os.close(os.open(fifo, os.O_WRONLY))

    assert "it does not stop: is it frozen, or stuck in the kernel?" == refused.value.hint
