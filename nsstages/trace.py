"""What every process did: steps, words, states, in one causal order.

All processes of a run append to one memfd that they inherit: appends are atomic, need no reader,
and what a killed process wrote before its death stays. Without a trace the Recorder costs a test
of None. Events are ordered by a logical clock that travels in every message, so a receive never
comes before its send, and carry wall-clock time, which no time namespace shifts.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgpack

from nsstages.errors import Failure, StageFailed

VERSION: Final = 1
_LENGTH: Final = struct.Struct("<I")
_REDACTED: Final = frozenset({"env", "environment"})


def create_sink() -> int:
    """Return an append-only memfd that all processes of one run share."""
    fd = os.memfd_create("launcher-trace", os.MFD_CLOEXEC)
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
    return fd


def read_sink(fd: int) -> list[dict[str, Any]]:
    """Return the events so far in causal order; the manager calls it at the end."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    events = []
    position = 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        body = data[position : position + length]
        events.append(msgpack.unpackb(body, raw=False, unicode_errors="surrogateescape"))
        position += length
    events.sort(key=lambda event: (event["clock"], event["time"]))
    return events


class Recorder:
    """The trace as one process sees it; ``sink`` None records nothing."""

    def __init__(self, process: str, sink: int | None = None, *, clock: int = 0) -> None:
        self.process = process
        self.sink = sink
        self.clock = clock

    def for_process(self, process: str) -> Recorder:
        """Return the recorder that a forked ``process`` continues with."""
        return Recorder(process, self.sink, clock=self.clock)

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event. Fields are msgpack values."""
        # A hybrid clock: causal through the messages, and near real time where there are none.
        self.clock = max(self.clock + 1, time.time_ns() // 1000)
        if self.sink is None:
            return
        record = {
            "v": VERSION,
            "clock": self.clock,
            "time": time.time(),
            "process": self.process,
            "pid": os.getpid(),
            "kind": kind,
            **fields,
        }
        body = msgpack.packb(
            record, use_bin_type=True, default=str, unicode_errors="surrogateescape"
        )
        os.write(self.sink, _LENGTH.pack(len(body)) + body)

    def word_sent(self, peer: str, word: str, payload: Mapping[str, Any]) -> int:
        """Record a sent word; return the clock that travels with it."""
        self.event("word.sent", peer=peer, word=str(word), payload=_summary(payload))
        return self.clock

    def word_received(self, peer: str, word: str, payload: Mapping[str, Any], clock: int) -> None:
        """Record a received word; move our clock past the sender's."""
        self.clock = max(self.clock, clock)
        self.event("word.received", peer=peer, word=str(word), payload=_summary(payload))

    @contextmanager
    def step(
        self, step: str, syscall: str = "", *, hint: str = "", **fields: Any
    ) -> Iterator[None]:
        """Record a step and its duration; an OSError becomes StageFailed naming this step."""
        started = time.perf_counter_ns()
        try:
            yield
        except OSError as error:
            self._end(step, syscall, started, error.errno or 0, fields)
            text = error.strerror or str(error)
            if error.filename is not None:
                text = f"{os.fsdecode(error.filename)}: {text}"
            raise StageFailed(
                Failure(self.process, step, syscall, error.errno or 0, text, hint)
            ) from error
        self._end(step, syscall, started, 0, fields)

    def _end(
        self, step: str, syscall: str, started: int, errno: int, fields: Mapping[str, Any]
    ) -> None:
        duration = (time.perf_counter_ns() - started) // 1000
        self.event("step", step=step, syscall=syscall, errno=errno, duration_us=duration, **fields)


def _summary(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten a payload for people; values of the environment are secrets and never leave."""
    return {key: _short(key, value) for key, value in payload.items()}


def _short(key: str, value: Any) -> Any:
    if key in _REDACTED:
        return f"<{len(value)} variables>" if hasattr(value, "__len__") else "<redacted>"
    if isinstance(value, dict):
        return _summary(value)
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    if isinstance(value, (list, tuple)) and len(value) > 8:
        return f"<{len(value)} items>"
    return value
