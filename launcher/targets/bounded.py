"""Reads that a hostile process can block, done in a child that can be killed.

A process's environment may lie in memory that its own FUSE file or userfaultfd never delivers, a
container's /etc/passwd may be on such a file system: the reader then sleeps in the kernel until it
is killed. So it is a forked child, and the manager waits for it no longer than a deadline.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from errno import EIO
from typing import Final

_HEADER: Final = struct.Struct("<iI")  # errno, length
_MAX_FDS: Final = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """What the child found out; whoever receives it owns ``fds``."""

    data: bytes
    fds: tuple[int, ...] = ()


def in_child(job: Callable[[], Answer], *, timeout: float) -> Answer:
    """Run ``job`` in a forked child; its OSError is raised here.

    Called by the single-threaded manager. Raises TimeoutError ``timeout`` seconds after the last
    byte came; the child is gone on return in every case.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        _be_child(job, theirs)
    with ours:
        theirs.close()
        try:
            ours.settimeout(timeout)
            return _receive(ours)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _be_child(job: Callable[[], Answer], connection: socket.socket) -> None:
    status = 1
    try:
        errno, answer = _attempt(job)
        socket.send_fds(connection, [_HEADER.pack(errno, len(answer.data))], list(answer.fds))
        connection.sendall(answer.data)
        status = 0
    finally:
        os._exit(status)


def _attempt(job: Callable[[], Answer]) -> tuple[int, Answer]:
    """Return the job's answer; of an OSError its number and, as data, the file it names."""
    try:
        return 0, job()
    except OSError as error:
        return error.errno or EIO, Answer(os.fsencode(error.filename or ""))


def _receive(connection: socket.socket) -> Answer:
    header, fds, _, _ = socket.recv_fds(connection, _HEADER.size, _MAX_FDS)
    if len(header) < _HEADER.size:
        raise ChildProcessError("the reading process died")
    errno, length = _HEADER.unpack(header)
    data = bytearray()
    while len(data) < length and (piece := connection.recv(length - len(data))):
        data += piece
    if errno:
        raise OSError(errno, os.strerror(errno), os.fsdecode(bytes(data)))
    return Answer(bytes(data), tuple(fds))
