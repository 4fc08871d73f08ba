"""The user's terminal: raw mode while a program has it, and the bytes between it and the pty.

The manager owns both, in its one thread and one poll loop. Nothing here waits, except drain() at
the end. The user's descriptors are shared with the shell that started the launcher, so none of
their flags is changed: a terminal is opened again for ourselves, non-blocking; anything else is
only read and written as far as poll(2) promised.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
import time
import tty
from contextlib import suppress
from types import TracebackType
from typing import Final

_READ_SIZE: Final = 16 * 1024
# POLLOUT promises room for this much in a pipe (PIPE_BUF), and a blocking one must never block us.
_WRITE_SIZE: Final = 4096
# A direction stops being read at this many bytes; the kernel then holds the writer back.
_HIGH_WATER: Final = 64 * 1024
_CLOSED: Final = -1
_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


def is_interactive(stdin_fd: int = 0, stdout_fd: int = 1) -> bool:
    """Tell whether both descriptors are terminals: only then the program gets a pty."""
    return os.isatty(stdin_fd) and os.isatty(stdout_fd)


class RawTerminal:
    """The terminal ``fd`` in raw mode for the length of a with block.

    Entering from the background stops the process with SIGTTOU, as for any program: the manager
    must not block that signal. SIGKILL is the one exit that leaves the terminal raw.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd

    def __enter__(self) -> RawTerminal:
        self._saved = termios.tcgetattr(self._fd)
        # TCSANOW: the default of tty.setraw throws away what the user has typed ahead.
        tty.setraw(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In the background the terminal is the shell's again, which has set its own attributes;
        # one that hung up has none left.
        if _has_foreground(self._fd):
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)


def _has_foreground(fd: int) -> bool:
    try:
        return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return True  # not our controlling terminal: no job control between it and us


class Pump:
    """Copies bytes between the user's descriptors and the master of the program's pty.

    Owns ``master_fd``. Bytes wait here, in order, while their reader is slow. A user's side that
    breaks hangs the pty up, as a closing terminal window does. Read ``descriptors()`` before every
    poll and pass what poll returns to ``handle()``.
    """

    def __init__(self, master_fd: int, stdin_fd: int = 0, stdout_fd: int = 1) -> None:
        os.set_blocking(master_fd, False)
        self._terminal_fd = next((fd for fd in (stdout_fd, stdin_fd) if os.isatty(fd)), None)
        self._master = master_fd
        self._stdin = _open_again(stdin_fd, os.O_RDONLY)
        self._stdout = _open_again(stdout_fd, os.O_WRONLY)
        self._input = bytearray()
        self._output = bytearray()
        self._line_is_open = False

    def __enter__(self) -> Pump:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the master, which hangs the pty up, and our descriptors of the user's side."""
        self._close_master()
        self._close_stdin()
        self._close_stdout()

    @property
    def is_finished(self) -> bool:
        """Tell whether the pty has ended and nothing waits for the user any more."""
        return self._master == _CLOSED and (self._stdout == _CLOSED or not self._output)

    def resize(self) -> None:
        """Give the pty the size of the user's terminal. At the start and at each SIGWINCH."""
        if self._terminal_fd is None or self._master == _CLOSED:
            return
        with suppress(OSError):  # a terminal that hung up has no size
            size = fcntl.ioctl(self._terminal_fd, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def descriptors(self) -> list[tuple[int, int]]:
        """Return the (descriptor, events) to poll for now; empty once finished."""
        wanted = []
        if self._stdin != _CLOSED and len(self._input) < _HIGH_WATER:
            wanted.append((self._stdin, select.POLLIN))
        if self._stdout != _CLOSED and self._output:
            wanted.append((self._stdout, select.POLLOUT))
        events = select.POLLIN if len(self._output) < _HIGH_WATER else 0
        events |= select.POLLOUT if self._input else 0
        # Without an event to wait for, poll would still return POLLHUP at once, for ever.
        if self._master != _CLOSED and events:
            wanted.append((self._master, events))
        return wanted

    def handle(self, fd: int, events: int) -> None:
        """Move bytes for one result of poll; a descriptor closed meanwhile is ignored."""
        if fd == self._stdin:
            self._read_stdin()
        elif fd == self._stdout:
            self._write_stdout()
        elif fd == self._master:
            if events & _GONE:
                self._input.clear()
            if events & (select.POLLIN | _GONE) and len(self._output) < _HIGH_WATER:
                self._read_master()
            if events & select.POLLOUT:
                self._write_master()

    def drain(self, seconds: float, quiet: float = 0.1) -> bool:
        """Deliver what the program wrote before it ended; its input is over.

        Waits until the last slave is closed, or for ``quiet`` seconds of silence when somebody
        still holds one, and at most ``seconds`` in all. Returns whether the user's side has taken
        everything that came.
        """
        self._close_stdin()
        self._input.clear()
        deadline = time.monotonic() + seconds
        while (watched := self.descriptors()) and (left := deadline - time.monotonic()) > 0:
            ready = _poll(watched, left if self._output else min(left, quiet))
            if not ready:
                break
            for fd, events in ready:
                self.handle(fd, events)
        return not self._output

    def _read_stdin(self) -> None:
        data = _read(self._stdin)
        if data is None:
            return
        if data:
            self._input += data
            self._line_is_open = not data.endswith((b"\n", b"\r"))
            return
        self._input += self._end_of_file()
        self._close_stdin()

    def _end_of_file(self) -> bytes:
        """Return what tells the program that the input is over, in place of a closed pipe."""
        if self._master == _CLOSED:
            return b""
        character: bytes = termios.tcgetattr(self._master)[6][termios.VEOF]
        if character == b"\0":  # switched off (_POSIX_VDISABLE)
            return b""
        # In the middle of a line the first one only hands over the line (termios(3)).
        return character * (2 if self._line_is_open else 1)

    def _read_master(self) -> None:
        data = _read(self._master)
        if data:
            self._output += data
        elif data is not None:
            self._close_master()
            self._close_stdin()

    def _write_master(self) -> None:
        if self._master != _CLOSED and not _write(self._master, self._input):
            self._input.clear()

    def _write_stdout(self) -> None:
        if self._stdout != _CLOSED and not _write(self._stdout, self._output):
            self._close_stdout()
            self._close_stdin()
            self._close_master()

    def _close_master(self) -> None:
        self._master = _close(self._master)

    def _close_stdin(self) -> None:
        self._stdin = _close(self._stdin)

    def _close_stdout(self) -> None:
        self._stdout = _close(self._stdout)


def _open_again(fd: int, mode: int) -> int:
    """Return a descriptor of our own for the same file; non-blocking when it is a terminal."""
    if os.isatty(fd):
        flags = mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{fd}", flags)
        with suppress(OSError):  # after su(1) the terminal's file belongs to somebody else
            os.tcgetpgrp(fd)  # fails unless /dev/tty is this terminal
            return os.open("/dev/tty", flags)
    return os.dup(fd)


def _close(fd: int) -> int:
    if fd != _CLOSED:
        os.close(fd)
    return _CLOSED


def _poll(watched: list[tuple[int, int]], seconds: float) -> list[tuple[int, int]]:
    poller = select.poll()
    for fd, events in watched:
        poller.register(fd, events)
    return poller.poll(seconds * 1000)


def _read(fd: int) -> bytes | None:
    """Return what is there, b"" when no more will come (a pty says so by EIO), None for now."""
    try:
        return os.read(fd, _READ_SIZE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _write(fd: int, pending: bytearray) -> bool:
    """Take from ``pending`` what ``fd`` accepts; return False when nobody reads it any more."""
    try:
        del pending[: os.write(fd, pending[:_WRITE_SIZE])]
    except BlockingIOError:
        pass
    except OSError:
        return False
    return True
