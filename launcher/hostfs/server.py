"""The FUSE server process: takes the mounted descriptor, serves it until the mount is gone.

It never leaves the host's namespaces and never unmounts: the mount lives in a namespace that it
does not see. When it dies the connection aborts, because nobody else holds the descriptor.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import resource
import signal
from typing import Final

import pyfuse3
import trio

from launcher.hostfs.operations import HostOperations
from launcher.hostfs.options import HostfsOptions
from nsstages.channel import Channel
from nsstages.messages import Word
from nsstages.trace import Recorder
from nsstages.typed import from_payload

DESCRIPTOR_TIMEOUT: Final = 60.0  # seconds; the pipeline's own deadlines are shorter
MOST_HELD_DESCRIPTORS: Final = 4000
_TERMINAL_SIGNALS: Final = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGPIPE,
)  # fmt: skip


def serve_as_told(channel: Channel, recorder: Recorder) -> None:
    """Wait for OPTIONS, then serve; called in the forked server process."""
    message = channel.expect(Word.OPTIONS, timeout=DESCRIPTOR_TIMEOUT)
    options = from_payload(HostfsOptions, message.payload)
    if message.fds:
        # The descriptor has a number of its own here; "" stands for the tree that it is.
        root_fd = message.fds[0]
        source = options.source or f"/proc/self/fd/{root_fd}"
        options = dataclasses.replace(options, container_root_fd=root_fd, source=source)
    serve(channel, options, recorder)


def serve(channel: Channel, options: HostfsOptions, recorder: Recorder) -> None:
    """Serve until the mount is gone or the manager is; called in the forked server process.

    Waits for FUSE_FD and answers FUSE_SERVING. Raises NsstagesError when it cannot serve; whoever
    forked reports that.
    """
    _prepare_process(recorder)
    with recorder.step("open the host's root", "openat", source=options.source):
        operations = HostOperations(options, recorder, capacity=_capacity())
    device = channel.expect(Word.FUSE_FD, timeout=DESCRIPTOR_TIMEOUT).fds[0]
    with recorder.step("start the FUSE session"):
        _start_session(operations, device)
    # Requests wait in the kernel until the loop below reads them: the manager can go on already
    channel.send(Word.FUSE_SERVING)
    try:
        trio.run(_serve_until_the_end, channel)
    except Exception as error:  # noqa: BLE001 - the mount is lost whatever it was; say why
        recorder.event("fuse.error", operation="main", error=repr(error))
    operations.close()


def _start_session(operations: HostOperations, device: int) -> None:
    try:
        pyfuse3.init(operations, f"/dev/fd/{device}", set())
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error)) from error


async def _serve_until_the_end(channel: Channel) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_with_the_manager, channel)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _stop_with_the_manager(channel: Channel) -> None:
    """Wait for the end of the channel: the manager says nothing after FUSE_FD."""
    await trio.lowlevel.wait_readable(channel.fileno())
    pyfuse3.terminate()


def _capacity() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(MOST_HELD_DESCRIPTORS, soft // 2)


def _prepare_process(recorder: Recorder) -> None:
    # Modes come with the client's umask applied
    os.umask(0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # The keyboard's signals are for the program in the shell; we serve until it is gone
    for number in _TERMINAL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # libfuse prints what it thinks of the connection's end; the terminal belongs to the shell
    nowhere = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    logger = logging.getLogger("pyfuse3")
    logger.addHandler(_RecorderHandler(recorder))
    logger.propagate = False


class _RecorderHandler(logging.Handler):
    """pyfuse3's complaints go into the trace: the terminal belongs to the shell."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder

    def emit(self, record: logging.LogRecord) -> None:
        """Append one record to the trace."""
        self._recorder.event("fuse.log", text=record.getMessage())
