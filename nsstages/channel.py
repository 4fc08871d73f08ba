"""One socketpair per edge of the pipeline: typed words, descriptors, deadlines, dead peers.

Packets of an AF_UNIX SOCK_SEQPACKET pair carry a fixed header and a piece of a msgpack map. The
descriptors travel with the first packet. Each header carries the sender's logical clock, so that
the trace has one causal order over all processes. Deadlines are relative to each wait: a process
that joins a time namespace sees its monotonic clock jump.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import msgpack

from nsstages.errors import (
    DeadlineExceeded,
    Failure,
    Malformed,
    PeerDied,
    StageFailed,
    UnexpectedWord,
)
from nsstages.messages import Word, is_legal
from nsstages.trace import Recorder

VERSION: Final = 1
MAX_MESSAGE: Final = 4 * 1024 * 1024
MAX_DESCRIPTORS: Final = 64
_CHUNK: Final = 64 * 1024
_HEADER: Final = struct.Struct("<HHQI")  # version, descriptors, logical clock, payload length
_FD_SPACE: Final = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)


def pair() -> tuple[socket.socket, socket.socket]:
    """Return a connected SEQPACKET pair, close-on-exec, not inheritable."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


@dataclass(frozen=True, slots=True)
class Message:
    """A received word; whoever receives it owns ``fds``."""

    word: Word
    payload: Mapping[str, Any]
    fds: tuple[int, ...] = ()


class Channel:
    """One end of an edge: ``me`` talks to ``peer`` (names of messages.py)."""

    def __init__(self, sock: socket.socket, me: str, peer: str, recorder: Recorder) -> None:
        self._socket = sock
        self.recorder = recorder
        self.me = me
        self.peer = peer
        self.last_sent: Word | None = None
        self.last_received: Word | None = None

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end; the peer sees end of file."""
        self._socket.close()

    def hang_up(self) -> None:
        """End the waits of both ends, now and later: each sees the other one dead."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def send(
        self, word: Word, payload: Mapping[str, Any] | None = None, fds: Sequence[int] = ()
    ) -> None:
        """Say ``word``. The descriptors stay the caller's.

        Raises UnexpectedWord when it is not this word's turn, PeerDied when nobody listens.
        """
        if not is_legal(self.me, self.peer, word, self.last_sent):
            raise UnexpectedWord(self.me, self.me, f"a word legal after {self.last_sent}", word)
        body: bytes = msgpack.packb(
            [word.value, dict(payload or {})], use_bin_type=True, unicode_errors="surrogateescape"
        )
        if len(body) > MAX_MESSAGE:
            raise Malformed(word, f"{len(body)} bytes, at most {MAX_MESSAGE} allowed")
        clock = self.recorder.word_sent(self.peer, word, payload or {})
        header = _HEADER.pack(VERSION, len(fds), clock, len(body))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([header, body[:_CHUNK]], rights, socket.MSG_NOSIGNAL)
            for start in range(_CHUNK, len(body), _CHUNK):
                self._socket.send(body[start : start + _CHUNK], socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise PeerDied(self.me, self.peer, f"taking {word}") from error
        self.last_sent = word

    def expect(self, *words: Word, timeout: float) -> Message:
        """Wait for one of ``words``, at most ``timeout`` seconds.

        Raises StageFailed when the peer reports FAILED, PeerDied at end of file,
        DeadlineExceeded, and UnexpectedWord for any other word.
        """
        due = [w for w in words if is_legal(self.peer, self.me, w, self.last_received)]
        waiting_for = "/".join(due or words)
        message = self._receive(waiting_for, timeout)
        if message.word is Word.FAILED:
            raise StageFailed(Failure.from_payload(dict(message.payload)))
        if message.word not in words:
            close_all(message.fds)
            raise UnexpectedWord(self.me, self.peer, waiting_for, message.word)
        return message

    def _receive(self, waiting_for: str, timeout: float) -> Message:
        data, ancillary, flags, _ = self._next_packet(waiting_for, timeout)
        fds = _descriptors_of(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(data) < _HEADER.size:
                raise Malformed("packet", "truncated")
            version, count, clock, length = _HEADER.unpack_from(data)
            if version != VERSION:
                raise Malformed("version", f"{version}, this side speaks {VERSION}")
            if length > MAX_MESSAGE:
                raise Malformed("length", f"{length} bytes, at most {MAX_MESSAGE} allowed")
            if count != len(fds):
                raise Malformed("descriptors", f"{len(fds)} came, {count} announced")
            body = bytearray(data[_HEADER.size :])
            while len(body) < length:
                body += self._next_packet(waiting_for, timeout)[0]
            word, payload = _decode(bytes(body))
            if not is_legal(self.peer, self.me, word, self.last_received):
                raise UnexpectedWord(
                    self.me, self.peer, f"{waiting_for} after {self.last_received}", word
                )
        except BaseException:
            close_all(fds)
            raise
        self.last_received = word
        self.recorder.word_received(self.peer, word, payload, clock)
        return Message(word, payload, fds)

    def _next_packet(
        self, waiting_for: str, timeout: float
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if not poller.poll(timeout * 1000):
            raise DeadlineExceeded(self.me, self.peer, waiting_for, timeout)
        try:
            packet = self._socket.recvmsg(_HEADER.size + _CHUNK, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError as error:
            raise PeerDied(self.me, self.peer, waiting_for) from error
        if not packet[0]:
            raise PeerDied(self.me, self.peer, waiting_for)
        return packet


def _descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, ...]:
    fds = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return tuple(fds)


def _decode(body: bytes) -> tuple[Word, dict[str, Any]]:
    try:
        word, payload = msgpack.unpackb(
            body, raw=False, strict_map_key=False, unicode_errors="surrogateescape"
        )
        if not isinstance(payload, dict):
            raise Malformed("payload", f"a map expected, got {type(payload).__name__}")
        return Word(word), payload
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise Malformed("message", f"not a word of the handshake ({error})") from error


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that came with a message nobody wants."""
    for fd in fds:
        os.close(fd)
