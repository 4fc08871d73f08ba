"""Why a launch failed: a signal or the container's end is told as itself, not as what it broke.

Both reach the launcher as the death of some stage. So a failure that leaves the session is looked
at once more, when every process of the launch is gone.
"""

from __future__ import annotations

import select
import signal
from contextlib import suppress
from types import FrameType, TracebackType

from launcher.errors import LauncherError
from launcher.signals import FORWARDED
from nsstages.channel import Channel


class TargetDied(LauncherError):
    """The container ended while the launch was in it."""

    exit_code = 137


class TimeLimit(LauncherError):
    """The program ran longer than the configuration's ``timeout``."""

    exit_code = 124


class Interrupted(LauncherError):
    """A signal came before the program was started."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} came before the program was started")
        self.exit_code = 128 + number


class Interruption:
    """While entered, the first of the forwarded signals ends the launch: it hangs up the channels
    that are watched, so that every wait ends and the processes at the other ends do.

    What this process was told to ignore, by nohup(1) say, stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self._channels: list[Channel] = []
        self._old_handlers: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interruption:
        for number in FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)

    def watch(self, *channels: Channel) -> None:
        """Hang these up when a signal comes, or if one has come."""
        self._channels += channels
        if self.number:
            self._hang_up()

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.number:
            raise Interrupted(self.number)

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        self.number = self.number or number
        self._hang_up()

    def _hang_up(self) -> None:
        for channel in self._channels:
            with suppress(OSError):  # one that is closed already
                channel.hang_up()


def has_ended(pidfd: int, seconds: float) -> bool:
    """Tell whether a process, if -1 does not stand for none, ends within ``seconds``."""
    if pidfd == -1:
        return False
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
