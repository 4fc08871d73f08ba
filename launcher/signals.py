"""Signals as bytes to read in the manager's poll loop (signalfd's job; 3.11 has none)."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Final

FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the number is in the wake-up pipe."""


class Signals:
    """While entered, forwarded signals, SIGWINCH and SIGCHLD can be read and do nothing else.

    What this process was told to ignore, by nohup(1) say, stays ignored, as in the program.
    """

    def __init__(self, *, forward: bool = True) -> None:
        self._numbers = (signal.SIGWINCH, signal.SIGCHLD, *(FORWARDED if forward else ()))
        self._old_handlers: dict[int, signal._HANDLER] = {}
        self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_wakeup = -1

    def __enter__(self) -> Signals:
        self._old_wakeup = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, _noted)
        # One that came before the handlers stood is found by the first look at the children.
        os.write(self._write_fd, bytes([signal.SIGCHLD]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._read_fd

    def read(self) -> list[int]:
        """Return the signals that came since the last call."""
        try:
            return list(dict.fromkeys(os.read(self._read_fd, 4096)))
        except BlockingIOError:
            return []
