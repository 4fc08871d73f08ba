"""Reading a target's seccomp filters while somebody else traces it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from launcher.errors import TargetError
from launcher.supervisor.filters import read_filters
from nsstages.syscalls import PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, Call, Packed, execute
from tests import needs

PTRACE_SEIZE = 0x4206
ALLOW = bytes.fromhex("060000000000ff7f")


@pytest.fixture
def filtered() -> Iterator[int]:
    """The pid of a process with one filter."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        execute(Call("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
        packed = Packed("HxxxxxxQ", (1, ALLOW))
        execute(Call("seccomp", (SECCOMP_SET_MODE_FILTER, 0, packed)))
        os.write(writer, b"x")
        signal.pause()
        os._exit(1)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@contextmanager
def traced(pid: int, seconds: float) -> Iterator[None]:
    """Have another process trace ``pid`` for some seconds from now on."""
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
    yield
    os.kill(tracer, signal.SIGKILL)
    os.waitpid(tracer, 0)


@needs.root
def test_two_launches_read_one_target(filtered: int) -> None:
    """A launch waits for the moment in which another one reads the same target."""
    with traced(filtered, 0.1):
        filters = read_filters(filtered)

    assert (ALLOW,) == filters


@needs.root
def test_a_debugger_is_not_waited_for(filtered: int) -> None:
    """A target that stays traced is refused, and the hint says why."""
    with traced(filtered, 60), pytest.raises(TargetError) as refused:
        read_filters(filtered)

    assert "is it being debugged?" == refused.value.hint
