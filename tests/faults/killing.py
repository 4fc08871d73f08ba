"""A launch in which something happens at one word of the handshake: one process is killed, say.

All processes of a launch are forks of the manager, so what a forked test process patches in the
channel is patched in all of them.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from launcher import cli
from nsstages.channel import Channel, Message
from nsstages.messages import INIT, LEGAL, MANAGER, Word

LONGEST: Final = 20.0
_TIME: Final = struct.Struct("d")


@dataclass(frozen=True, slots=True)
class Point:
    """Where ``victim`` says ``word`` to ``peer``, a moment before, or has heard it from it."""

    victim: str
    peer: str
    word: Word
    is_sending: bool

    def __str__(self) -> str:
        verb = "before saying" if self.is_sending else "after hearing"
        return f"{self.victim} {verb} {self.word}"


def points(*, without: frozenset[Word], manager: bool = False) -> list[Point]:
    """Return every point of the handshake but those of words that do not come up."""
    return [
        Point(victim, peer, word, is_sending)
        for (speaker, listener), words in LEGAL.items()
        for word in words
        for victim, peer, is_sending in ((speaker, listener, True), (listener, speaker, False))
        if word not in without and (victim == MANAGER) == manager
    ]


Strike = Callable[[int], None]  # what the test does at a point; it is told the launcher's pid


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a launch that was struck ended; ``seconds`` from the strike to the launcher's end."""

    status: int
    errors: str
    seconds: float
    was_killed: bool


def launch_and_kill(
    point: Point, arguments: list[str], directory: Path, strike: Strike | None = None
) -> Outcome:
    """Run the command line in a forked process and kill the victim at its point; with ``strike``
    let it wait there instead until that has been done.
    """
    errors = directory / "stderr"
    killed_at = mmap.mmap(-1, _TIME.size + 1)  # shared with every process of the launch
    pid = os.fork()
    if not pid:
        _be_launcher(arguments, errors, lambda: _patch(point, killed_at, waits=bool(strike)))
    deadline = time.monotonic() + LONGEST
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the launcher hangs: {errors.read_text()}")
        if _TIME.unpack_from(killed_at)[0] and not killed_at[_TIME.size]:
            if strike is not None:
                strike(pid)
                killed_at[_TIME.size] = 1
            elif point.victim == INIT:
                _kill_first_processes(pid)
        time.sleep(0.01)
    (when,) = _TIME.unpack_from(killed_at)
    killed_at.close()
    seconds = time.time() - when if when else 0.0
    return Outcome(os.waitstatus_to_exitcode(done[1]), errors.read_text(), seconds, bool(when))


def launch_and_strike(comm: str, arguments: list[str], directory: Path) -> Outcome:
    """Run the command line, whose program is `sleep`; kill the process ``comm`` while it runs."""
    errors = directory / "stderr"
    pid = os.fork()
    if not pid:
        _be_launcher(arguments, errors, lambda: None)
    deadline = time.monotonic() + LONGEST
    while "sleep" not in descendants(pid).values():
        assert time.monotonic() < deadline, f"no program: {errors.read_text()}"
        time.sleep(0.01)
    (victim,) = [child for child, name in descendants(pid).items() if name == comm]
    os.kill(victim, signal.SIGKILL)
    struck = time.monotonic()
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline, f"the launcher hangs: {errors.read_text()}"
        time.sleep(0.01)
    seconds = time.monotonic() - struck
    return Outcome(os.waitstatus_to_exitcode(done[1]), errors.read_text(), seconds, was_killed=True)


def descendants(ancestor: int) -> dict[int, str]:
    """Return the processes below one, by pid, with their names."""
    found: dict[int, str] = {}
    pending = [ancestor]
    while pending:
        above = pending.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            for child in Path(f"/proc/{above}/task/{above}/children").read_text().split():
                found[int(child)] = Path(f"/proc/{child}/comm").read_text().strip()
                pending.append(int(child))
    return found


def survivors() -> list[str]:
    """Return the processes of a launch that came to us as orphans; reap those that are dead."""
    left = []
    for pid, comm in descendants(os.getpid()).items():
        if comm.startswith("ns:[") or comm == "sleep":
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            left.append(f"{pid} {comm}")
    return left


def _kill_first_processes(launcher: int) -> None:
    """Kill stage 2 where it waits as pid 1 of its namespace: a child of the launcher."""
    try:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    except FileNotFoundError:
        return
    for child in children:
        with suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{child}/status").read_text()
            numbers = status[status.index("NSpid:") :].splitlines()[0].split()
            if numbers[-1] == "1" and len(numbers) > 2:
                os.kill(int(child), signal.SIGKILL)


def _be_launcher(arguments: list[str], errors: Path, prepare: Callable[[], None]) -> NoReturn:
    try:
        null = os.open("/dev/null", os.O_RDWR)
        log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for fd, stream in ((null, 0), (null, 1), (log, 2)):
            os.dup2(fd, stream)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        prepare()
        status = cli.main(arguments)
        sys.stderr.flush()
        os._exit(status)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(99)


def _patch(point: Point, killed_at: mmap.mmap, *, waits: bool) -> None:
    send, expect = Channel.send, Channel.expect

    def meet(channel: Channel, word: Word, *, is_sending: bool) -> None:
        here = Point(channel.me, channel.peer, word, is_sending)
        if here == point:
            _TIME.pack_into(killed_at, 0, time.time())
            if not waits:
                os.kill(os.getpid(), signal.SIGKILL)
            deadline = time.time() + LONGEST
            # The first process of a PID namespace can only be killed from outside.
            while not killed_at[_TIME.size] and time.time() < deadline:
                time.sleep(0.005)

    def sending(self: Channel, word: Word, *rest: Any, **more: Any) -> None:
        meet(self, word, is_sending=True)
        send(self, word, *rest, **more)

    def expecting(self: Channel, *words: Word, timeout: float) -> Message:
        message = expect(self, *words, timeout=timeout)
        meet(self, message.word, is_sending=False)
        return message

    Channel.send = sending  # type: ignore[method-assign]  # the point of this module
    Channel.expect = expecting  # type: ignore[method-assign]
