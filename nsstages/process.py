"""The frame of every forked process: name, descriptors, one job, one report, one end."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterable
from typing import NoReturn

from nsstages.channel import Channel
from nsstages.errors import Failure, NsstagesError, PeerDied, StageFailed
from nsstages.isolation import close_all_but
from nsstages.messages import Word
from nsstages.syscalls import set_name


def run_to_exit(
    job: Callable[[], None], up: Channel, comm: str, keep: Iterable[int], status: int = 0
) -> NoReturn:
    """Run ``job`` in a just forked process, report a failure up, and leave by _exit.

    Never returns into the caller's stack: two processes must not run the manager's clean-up.
    """
    try:
        gc.freeze()  # the manager's sockets must not be collected: their numbers are reused here
        set_name(comm)
        close_all_but([*keep, up.fileno()])
        signal.set_wakeup_fd(-1)
        reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        up.recorder.event("process.start", role=up.me, comm=comm)
        job()
        up.recorder.event("process.end", role=up.me, status=status)
    except BaseException as error:  # noqa: BLE001  # a forked process ends here, whatever it was
        status = 1
        report(up, error)
    finally:
        os._exit(status)


def reset_signals() -> None:
    """Take back Python's handlers and the manager's; what nohup(1) ignores stays ignored."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def report(up: Channel, error: BaseException) -> None:
    """Say FAILED upward; when nobody listens any more there is nobody to tell."""
    if isinstance(error, StageFailed):
        failure = error.failure
    elif isinstance(error, OSError):
        failure = Failure(up.me, "unexpected", "", error.errno or 0, str(error))
    else:
        step = f"after {up.last_received or up.last_sent or 'start'}"
        kind = "" if isinstance(error, NsstagesError) else f"{type(error).__name__}: "
        failure = Failure(up.me, step, text=f"{kind}{error}")
    up.recorder.event("failed", **failure.to_payload())
    try:
        up.send(Word.FAILED, failure.to_payload())
    except (PeerDied, OSError):
        return
