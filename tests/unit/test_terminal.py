"""The pty of the container, and the bytes between it and the user's terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import stat
import struct
import termios
import time
import traceback
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.terminal import Pump, RawTerminal, is_interactive
from nsstages.syscalls import CLONE_NEWNS, CLONE_NEWUSER, MS_BIND, mount, unshare
from nsstages.terminal import UntrustedTerminal, make_controlling, open_verified_pty
from tests import needs

LIMIT = 10.0
PATTERN = b"".join(b"%07d\n" % number for number in range(40_000))


def run_forked(body: Callable[[], None]) -> str:
    """Run ``body`` in a forked process; return what it raised, "" when all is well."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            body()
            status = 0
        except BaseException:  # noqa: BLE001  # the parent reports it
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="utf-8") as report:
        text = report.read()
    _, status = os.waitpid(pid, 0)
    return text or ("" if status == 0 else f"wait status {status}")


def wait_readable(fd: int, seconds: float = LIMIT) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def pump_until(pump: Pump, done: Callable[[], bool]) -> None:
    """Drive ``pump`` as the manager's loop does, until ``done``."""
    deadline = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < deadline, "the pump did not get there"
        poller = select.poll()
        for fd, events in pump.descriptors():
            poller.register(fd, events)
        for fd, events in poller.poll(20):
            pump.handle(fd, events)


def pump_while_moving(pump: Pump) -> None:
    """Drive ``pump`` until nothing is ready for 100 ms: everybody is blocked on somebody."""
    while True:
        poller = select.poll()
        for fd, events in pump.descriptors():
            poller.register(fd, events)
        ready = poller.poll(100)
        if not ready:
            return
        for fd, events in ready:
            pump.handle(fd, events)


@dataclass
class Terminals:
    """``keyboard`` is the far end of the user's terminal, ``program`` the slave of the pty."""

    keyboard: int
    user: int
    master: int
    program: int

    def close_program(self) -> None:
        """End the program: its terminal has no slave any more."""
        os.close(self.program)
        self.program = -1


@pytest.fixture
def terminals() -> Iterator[Terminals]:
    """A user's terminal and a program's pty, both raw. The pump closes the master."""
    keyboard, user = pty.openpty()
    master, program = pty.openpty()
    tty.setraw(user)
    tty.setraw(program)
    ends = Terminals(keyboard, user, master, program)
    yield ends
    for fd in (ends.keyboard, ends.user, ends.program):
        if fd != -1:
            os.close(fd)


@contextmanager
def pipe_of(data: bytes) -> Iterator[int]:
    """The reading end of a pipe that a forked process fills with ``data``."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        with open(writer, "wb") as stream:
            stream.write(data)
        os._exit(0)
    os.close(writer)
    try:
        yield reader
    finally:
        os.close(reader)
        os.waitpid(pid, 0)


@contextmanager
def program_that_writes(program: int, data: bytes) -> Iterator[int]:
    """A forked process that writes ``data`` to its terminal; the pid."""
    pid = os.fork()
    if not pid:
        written = 0
        while written < len(data):
            written += os.write(program, data[written:])
        os._exit(0)
    try:
        yield pid
    finally:
        os.waitpid(pid, 0)


def read_all(fd: int, into: bytearray) -> None:
    while wait_readable(fd, 0):
        into += os.read(fd, 65536)


# --- the container's devpts ---------------------------------------------------------------------


@needs.root
def test_pty_of_the_real_devpts_carries_bytes_both_ways() -> None:
    """open_verified_pty() gives a working pair from a real devpts, close-on-exec."""
    master, slave = open_verified_pty()
    try:
        tty.setraw(slave)
        os.write(master, b"in")
        os.write(slave, b"out")

        assert b"in" == os.read(slave, 10)
        assert b"out" == os.read(master, 10)
        assert not os.get_inheritable(master)
        assert not os.get_inheritable(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_ordinary_directory_instead_of_devpts_is_refused(tmp_path: Path) -> None:
    """A container that has a plain directory at /dev/pts gets no descriptor opened."""
    (tmp_path / "ptmx").write_bytes(b"bait")

    with pytest.raises(UntrustedTerminal, match="not a devpts"):
        open_verified_pty(str(tmp_path / "ptmx"))


@needs.root
def test_device_node_with_the_right_numbers_outside_devpts_is_refused(tmp_path: Path) -> None:
    """A node 5:2 made by mknod in another file system is not believed."""
    os.mknod(tmp_path / "ptmx", 0o666 | stat.S_IFCHR, os.makedev(5, 2))

    with pytest.raises(UntrustedTerminal, match="not a devpts"):
        open_verified_pty(str(tmp_path / "ptmx"))


@needs.userns
@pytest.mark.parametrize("bait", ["/dev/null", "/dev/ptmx"])
def test_mount_over_ptmx_is_refused(bait: str) -> None:
    """A host device bound over the ptmx of a real devpts is not opened."""

    def body() -> None:
        unshare(CLONE_NEWUSER | CLONE_NEWNS)
        mount(bait, "/dev/pts/ptmx", None, MS_BIND)
        with pytest.raises(UntrustedTerminal):
            open_verified_pty()

    assert "" == run_forked(body)


def test_other_node_of_a_real_devpts_is_refused() -> None:
    """Only the ptmx node itself passes: a slave under that name does not."""
    master, slave = pty.openpty()
    try:
        with pytest.raises(UntrustedTerminal, match="not the ptmx"):
            open_verified_pty(os.ttyname(slave))
    finally:
        os.close(master)
        os.close(slave)


def test_symbolic_link_to_devpts_is_refused(tmp_path: Path) -> None:
    """A link at /dev/pts is not followed, wherever it leads."""
    (tmp_path / "pts").symlink_to("/dev/pts")

    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        open_verified_pty(str(tmp_path / "pts" / "ptmx"))


@pytest.mark.parametrize("already_leads", [False, True])
def test_controlling_terminal_is_stdin_stdout_and_stderr(already_leads: bool) -> None:
    """make_controlling() gives a session of its own, /dev/tty, and inheritable 0, 1 and 2."""

    def body() -> None:
        master, slave = pty.openpty()
        if already_leads:
            os.setsid()
        report = os.dup(2)
        make_controlling(slave)
        try:
            assert os.getpid() == os.getsid(0) == os.tcgetpgrp(0)
            assert [True] * 3 == [os.get_inheritable(fd) for fd in (0, 1, 2)]
            with open("/dev/tty", "wb") as terminal:
                terminal.write(b"here")
            assert b"here" == os.read(master, 10)
        finally:
            os.dup2(report, 2)

    assert "" == run_forked(body)


# --- raw mode ------------------------------------------------------------------------------------


def test_attributes_come_back_when_the_block_raises() -> None:
    """Whatever ends the block, the terminal is as it was; typed-ahead input is kept."""
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        os.write(master, b"typed ahead\n")

        with pytest.raises(RuntimeError), RawTerminal(slave):  # noqa: PT012
            raw = termios.tcgetattr(slave)
            assert b"typed ahead" in os.read(slave, 100)
            raise RuntimeError

        assert 0 == raw[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        assert before == termios.tcgetattr(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_terminal_that_hung_up_does_not_hide_the_error() -> None:
    """When the terminal is gone the block's own exception is the one that is seen."""
    master, slave = pty.openpty()
    try:
        with pytest.raises(KeyboardInterrupt), RawTerminal(slave):  # noqa: PT012
            os.close(master)
            raise KeyboardInterrupt
    finally:
        os.close(slave)


def test_background_process_leaves_the_shells_attributes_alone() -> None:
    """A launcher that ends in the background does not change the terminal under the shell."""

    def body() -> None:
        _master, slave = pty.openpty()
        report = os.dup(2)
        make_controlling(slave)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with RawTerminal(0):
            shell = os.fork()
            if not shell:
                os.setpgid(0, 0)
                os.tcsetpgrp(0, os.getpid())
                os.dup2(report, 2)
                signal.pause()
            while os.tcgetpgrp(0) == os.getpgrp():
                time.sleep(0.001)
            raw = termios.tcgetattr(0)
        after = termios.tcgetattr(0)
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        os.dup2(report, 2)
        assert raw == after

    assert "" == run_forked(body)


def test_interactive_means_stdin_and_stdout_are_terminals() -> None:
    """One end redirected is enough for no pty."""
    master, slave = pty.openpty()
    try:
        with pipe_of(b"") as pipe:
            assert is_interactive(slave, slave)
            assert not is_interactive(pipe, slave)
            assert not is_interactive(slave, pipe)
    finally:
        os.close(master)
        os.close(slave)


# --- the pump ------------------------------------------------------------------------------------


def test_keys_reach_the_program_and_its_output_the_user(terminals: Terminals) -> None:
    """Bytes go through unchanged, all 256 of them, in both directions."""
    every_byte = bytes(range(256))
    seen, typed = bytearray(), bytearray()
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.write(terminals.keyboard, every_byte)
        os.write(terminals.program, every_byte)

        def done() -> bool:
            read_all(terminals.keyboard, seen)
            read_all(terminals.program, typed)
            return len(seen) >= 256 and len(typed) >= 256

        pump_until(pump, done)

    assert every_byte == bytes(seen)
    assert every_byte == bytes(typed)


def test_flags_of_the_users_descriptors_stay_as_they_are(terminals: Terminals) -> None:
    """The shell shares the open file: O_NONBLOCK set there would break it."""
    before = fcntl.fcntl(terminals.user, fcntl.F_GETFL)

    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.write(terminals.program, b"x")
        pump_until(pump, lambda: wait_readable(terminals.keyboard, 0))
        during = fcntl.fcntl(terminals.user, fcntl.F_GETFL)

    assert before == during == fcntl.fcntl(terminals.user, fcntl.F_GETFL)
    assert 0 == before & os.O_NONBLOCK


def test_stopped_screen_holds_the_program_back_and_loses_nothing(terminals: Terminals) -> None:
    """While the user's terminal takes nothing the program waits; then all arrives in order."""
    seen = bytearray()
    with (
        Pump(terminals.master, terminals.user, terminals.user) as pump,
        program_that_writes(terminals.program, PATTERN) as pid,
    ):
        pump_while_moving(pump)
        is_running = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

        def done() -> bool:
            read_all(terminals.keyboard, seen)
            return len(seen) >= len(PATTERN)

        pump_until(pump, done)

    assert is_running
    assert PATTERN == bytes(seen)


def test_interrupt_passes_while_the_screen_is_stuck(terminals: Terminals) -> None:
    """Ctrl-C reaches a program whose output nobody takes at the moment."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        pid = os.fork()
        if not pid:
            while True:
                os.write(terminals.program, PATTERN)
        try:
            pump_while_moving(pump)
            os.write(terminals.keyboard, b"\x03")
            pump_until(pump, lambda: wait_readable(terminals.program, 0))

            assert b"\x03" == os.read(terminals.program, 10)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_slow_program_holds_the_input_back_and_loses_nothing(terminals: Terminals) -> None:
    """Input from a pipe waits for a program that does not read, then arrives in order."""
    typed = bytearray()
    with pipe_of(PATTERN) as stdin, Pump(terminals.master, stdin, terminals.user) as pump:
        pump_while_moving(pump)

        def done() -> bool:
            read_all(terminals.program, typed)
            return len(typed) >= len(PATTERN)

        pump_until(pump, done)

    assert PATTERN == bytes(typed[: len(PATTERN)])


@pytest.mark.parametrize("text", [b"a line\n", b"no newline", b""])
def test_end_of_stdin_ends_the_programs_input(terminals: Terminals, text: bytes) -> None:
    """A program in line mode reads the text and then end of file, also after half a line."""
    cooked = termios.tcgetattr(terminals.program)
    cooked[3] |= termios.ICANON
    termios.tcsetattr(terminals.program, termios.TCSANOW, cooked)
    parts: list[bytes] = []
    with pipe_of(text) as stdin, Pump(terminals.master, stdin, terminals.user) as pump:
        while not parts or parts[-1]:
            pump_until(pump, lambda: wait_readable(terminals.program, 0))
            parts.append(os.read(terminals.program, 100))
        pump_while_moving(pump)

        assert text == b"".join(parts)
        assert not wait_readable(terminals.program, 0), "end of file was said once too often"


def test_stdin_file_is_read_from_where_the_shell_left_it(
    terminals: Terminals, tmp_path: Path
) -> None:
    """A redirected file is not opened again, which would start at its beginning."""
    (tmp_path / "input").write_bytes(b"taken\nleft\n")
    with open(tmp_path / "input", "rb", buffering=0) as stdin:
        stdin.read(6)
        with Pump(terminals.master, stdin.fileno(), terminals.user) as pump:
            pump_until(pump, lambda: wait_readable(terminals.program, 0))

            assert os.read(terminals.program, 100).startswith(b"left\n")


def test_end_of_the_program_finishes_the_pump_after_its_last_output(terminals: Terminals) -> None:
    """What is written right before the end still arrives; then nothing is left to poll for."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.write(terminals.program, b"last words")
        terminals.close_program()
        pump_until(pump, lambda: pump.is_finished)

        assert b"last words" == os.read(terminals.keyboard, 100)
        assert [] == pump.descriptors()


def test_drain_delivers_everything_after_the_end(terminals: Terminals) -> None:
    """drain() returns True when all that the program wrote has reached the user."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.write(terminals.program, b"x" * 2000)
        terminals.close_program()

        assert pump.drain(LIMIT)
        assert b"x" * 2000 == os.read(terminals.keyboard, 3000)


def test_drain_does_not_wait_for_a_silent_holder_of_the_terminal(terminals: Terminals) -> None:
    """A background process that keeps the terminal open delays the end by the quiet time only."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.write(terminals.program, b"done")
        started = time.monotonic()

        assert pump.drain(LIMIT, quiet=0.05)
        assert time.monotonic() - started < LIMIT / 2
        assert b"done" == os.read(terminals.keyboard, 100)


def test_drain_gives_up_at_its_deadline(terminals: Terminals) -> None:
    """A screen that takes nothing, or a program that never stops writing, cannot hold us up."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        pid = os.fork()
        if not pid:
            while True:
                os.write(terminals.program, PATTERN)
        try:
            started = time.monotonic()

            assert not pump.drain(0.3)
            assert 0.3 <= time.monotonic() - started < LIMIT / 2
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_broken_stdout_hangs_the_programs_terminal_up(terminals: Terminals) -> None:
    """When nobody reads the output any more the program finds its terminal closed."""
    reader, writer = os.pipe()
    try:
        with Pump(terminals.master, terminals.user, writer) as pump:
            os.close(reader)
            os.write(terminals.program, b"to nobody")
            pump_until(pump, lambda: pump.is_finished)

            assert b"" == os.read(terminals.program, 10)
            assert [] == pump.descriptors()
    finally:
        os.close(writer)


def test_closed_user_terminal_ends_the_programs_input(terminals: Terminals) -> None:
    """A terminal window that is closed gives end of file, not a busy loop."""
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        os.close(terminals.keyboard)
        terminals.keyboard = -1
        pump_until(pump, lambda: wait_readable(terminals.program, 0))

        assert b"\x04" == os.read(terminals.program, 10)
        assert [] == [fd for fd, events in pump.descriptors() if not events]


def test_window_size_follows_the_users_terminal(terminals: Terminals) -> None:
    """resize() copies rows, columns and pixels to the program's terminal."""
    size = struct.pack("HHHH", 50, 132, 1320, 1000)
    with Pump(terminals.master, terminals.user, terminals.user) as pump:
        fcntl.ioctl(terminals.user, termios.TIOCSWINSZ, size)
        pump.resize()

        assert size == fcntl.ioctl(terminals.program, termios.TIOCGWINSZ, bytes(8))
