"""One edge: words with descriptors, in pieces, with deadlines, and what breaks it."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages.channel import (
    MAX_DESCRIPTORS,
    MAX_MESSAGE,
    VERSION,
    Channel,
    close_all,
    pair,
)
from nsstages.errors import (
    DeadlineExceeded,
    Failure,
    Malformed,
    NsstagesError,
    PeerDied,
    StageFailed,
    UnexpectedWord,
)
from nsstages.messages import MANAGER, PARENT, Word
from nsstages.trace import Recorder, create_sink, read_sink

HEADER = struct.Struct("<HHQI")


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """The manager's and stage 0's end of a channel."""
    one, other = pair()
    with (
        Channel(one, MANAGER, PARENT, Recorder(MANAGER)) as manager,
        Channel(other, PARENT, MANAGER, Recorder(PARENT)) as parent,
    ):
        yield manager, parent


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """A bare socket whose other end is stage 0's channel."""
    one, other = pair()
    with one, Channel(other, PARENT, MANAGER, Recorder(PARENT)) as parent:
        yield one, parent


payloads = st.dictionaries(
    st.text(max_size=10),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary(),
        lambda values: st.lists(values, max_size=4),
        max_leaves=8,
    ),
)


@given(payloads)
def test_a_payload_arrives_as_it_was(payload: dict[str, object]) -> None:
    """Whatever msgpack has goes through unchanged."""
    one, other = pair()
    with (
        Channel(one, MANAGER, PARENT, Recorder(MANAGER)) as manager,
        Channel(other, PARENT, MANAGER, Recorder(PARENT)) as parent,
    ):
        manager.send(Word.BOOTSTRAP, payload)

        assert payload == parent.expect(Word.BOOTSTRAP, timeout=1).payload


def test_text_of_any_bytes_arrives(ends: tuple[Channel, Channel]) -> None:
    """Names and variables of a system need not be UTF-8: surrogate escapes go through."""
    manager, parent = ends
    text = os.fsdecode(b"caf\xe9 \xff")
    manager.send(Word.BOOTSTRAP, {"name": text})

    assert {"name": text} == parent.expect(Word.BOOTSTRAP, timeout=1).payload


@pytest.mark.parametrize("size", [0, 65535, 65536, 65537, 1_000_000, MAX_MESSAGE - 100])
def test_a_message_of_any_size_arrives(ends: tuple[Channel, Channel], size: int) -> None:
    """What does not fit one packet goes in pieces, up to the limit."""
    manager, parent = ends
    thread = threading.Thread(target=manager.send, args=(Word.BOOTSTRAP, {"b": b"x" * size}))
    thread.start()
    message = parent.expect(Word.BOOTSTRAP, timeout=5)
    thread.join()

    assert size == len(message.payload["b"])


def test_a_message_beyond_the_limit_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    """It is refused by its word, and the word may still be said with less."""
    manager, parent = ends
    with pytest.raises(Malformed, match="BOOTSTRAP"):
        manager.send(Word.BOOTSTRAP, {"b": b"x" * MAX_MESSAGE})
    manager.send(Word.BOOTSTRAP)

    assert {} == parent.expect(Word.BOOTSTRAP, timeout=1).payload


@pytest.mark.parametrize("count", [1, 2, MAX_DESCRIPTORS])
def test_descriptors_travel(ends: tuple[Channel, Channel], count: int) -> None:
    """They arrive in order, close-on-exec, as copies: the sender keeps its own."""
    manager, parent = ends
    sent = [os.memfd_create(f"m{number}") for number in range(count)]
    manager.send(Word.BOOTSTRAP, {}, sent)
    received = parent.expect(Word.BOOTSTRAP, timeout=1).fds

    assert [os.fstat(fd).st_ino for fd in sent] == [os.fstat(fd).st_ino for fd in received]
    assert not any(os.get_inheritable(fd) for fd in received)
    close_all([*sent, *received])


def test_a_failure_is_raised(ends: tuple[Channel, Channel]) -> None:
    """FAILED comes as the StageFailed that it carries, instead of any word."""
    manager, parent = ends
    failure = Failure("stage 1 (CHILD)", "join", "setns", 1, "no", "ask root")
    parent.send(Word.FAILED, failure.to_payload())
    with pytest.raises(StageFailed) as raised:
        manager.expect(Word.PIDS, timeout=1)

    assert (failure, "ask root") == (raised.value.failure, raised.value.hint)
    assert "stage 1 (CHILD): join: setns: no [EPERM]" == str(raised.value)


def test_a_half_failure_is_raised_nevertheless(ends: tuple[Channel, Channel]) -> None:
    """What a dying process got out is shown; what is missing is a question mark."""
    manager, parent = ends
    parent.send(Word.FAILED, {"stage": "x", "more": 1})
    with pytest.raises(StageFailed, match=r"^x: \?"):
        manager.expect(Word.PIDS, timeout=1)


def test_a_dead_peer_is_noticed_at_once(ends: tuple[Channel, Channel]) -> None:
    """End of file is an error that names who died and what was due."""
    manager, parent = ends
    parent.close()
    started = time.monotonic()
    with pytest.raises(PeerDied, match=r"manager: stage 0 \(PARENT\) died before PIDS"):
        manager.expect(Word.PIDS, timeout=30)
    with pytest.raises(PeerDied, match="before taking BOOTSTRAP"):
        manager.send(Word.BOOTSTRAP)

    assert time.monotonic() - started < 1


def test_a_word_that_was_not_read_is_a_dead_peer(ends: tuple[Channel, Channel]) -> None:
    """A peer that dies with our word unread (ECONNRESET) is dead, no other error."""
    manager, parent = ends
    manager.send(Word.BOOTSTRAP)
    parent.close()
    with pytest.raises(PeerDied):
        manager.expect(Word.PIDS, timeout=1)


def test_what_was_said_before_the_death_is_heard(ends: tuple[Channel, Channel]) -> None:
    """Words on the way outlive their speaker."""
    manager, parent = ends
    parent.send(Word.PIDS, {"stage2": 1})
    parent.close()

    assert 1 == manager.expect(Word.PIDS, timeout=1).payload["stage2"]


def test_silence_has_a_deadline(ends: tuple[Channel, Channel]) -> None:
    """The error names who did not say what, and for how long."""
    manager, _ = ends
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"no PIDS from stage 0 \(PARENT\) within 0.1 s"):
        manager.expect(Word.PIDS, timeout=0.1)

    assert 0.1 <= time.monotonic() - started < 1


def test_only_what_is_due_is_named(ends: tuple[Channel, Channel]) -> None:
    """Of several words that would do, an error names those whose turn it is."""
    manager, parent = ends
    parent.send(Word.PIDS)
    manager.expect(Word.PIDS, Word.FUSE_FD, timeout=1)
    parent.close()
    with pytest.raises(PeerDied, match="before PIDS/FUSE_FD"):
        manager.expect(Word.PIDS, Word.FUSE_FD, timeout=1)


def test_another_word_is_refused(ends: tuple[Channel, Channel]) -> None:
    """A legal word that nobody waits for is an error; its descriptors are closed."""
    manager, parent = ends
    fd = os.memfd_create("m")
    parent.send(Word.PIDS, {}, [fd])
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UnexpectedWord, match=r"expected FUSE_FD from stage 0 .*, got PIDS"):
        manager.expect(Word.FUSE_FD, timeout=1)

    assert before == set(os.listdir("/proc/self/fd"))
    os.close(fd)


def test_a_word_out_of_order_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    """The speaker's own mistake is found before it is heard."""
    _, parent = ends
    parent.send(Word.PIDS)
    with pytest.raises(UnexpectedWord, match="legal after PIDS"):
        parent.send(Word.FUSE_FD)


def packet(body: bytes, *, version: int = VERSION, fds: int = 0, length: int = -1) -> bytes:
    """Return a packet with a header of one's own."""
    return HEADER.pack(version, fds, 0, len(body) if length == -1 else length) + body


GOOD = b"\x92\xa9BOOTSTRAP\x80"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (packet(GOOD, version=2), "version: 2, this side speaks 1"),
        (packet(GOOD, fds=1), "descriptors: 0 came, 1 announced"),
        (packet(GOOD, length=MAX_MESSAGE + 1), "length: "),
        (packet(b"\x92\xa4SING\x80"), "not a word of the handshake"),
        (packet(b"\x92\xa9BOOTSTRAP\x90"), "payload: a map expected, got list"),
        (packet(b"\x93\xa9BOOTSTRAP\x80\x80"), "not a word of the handshake"),
        (packet(GOOD + b"\x00"), "not a word of the handshake"),
        (packet(b"\xc1"), "not a word of the handshake"),
        (packet(b"\x07"), "not a word of the handshake"),
        (packet(b"\x92\x80\x80"), "not a word of the handshake"),
        (packet(b"\x91" * 2000), "not a word of the handshake"),
    ],
)
def test_a_malformed_packet_is_refused(
    raw: tuple[socket.socket, Channel], data: bytes, problem: str
) -> None:
    """Nothing that comes in over a channel is trusted to be well-formed."""
    sock, parent = raw
    sock.send(data)
    with pytest.raises(Malformed, match=problem):
        parent.expect(Word.BOOTSTRAP, timeout=1)


@given(data=st.binary(min_size=1, max_size=60))
def test_any_bytes_are_an_error_of_ours(data: bytes) -> None:
    """Random packets raise an error that the program knows, at once."""
    one, other = pair()
    with one, Channel(other, PARENT, MANAGER, Recorder(PARENT)) as parent:
        one.send(data)
        one.close()
        with pytest.raises(NsstagesError):
            parent.expect(Word.BOOTSTRAP, timeout=1)


def test_descriptors_of_a_malformed_packet_are_closed(raw: tuple[socket.socket, Channel]) -> None:
    """Who refuses a message keeps nothing of it."""
    sock, parent = raw
    fd = os.memfd_create("m")
    socket.send_fds(sock, [packet(b"\xc1", fds=1)], [fd])
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Malformed):
        parent.expect(Word.BOOTSTRAP, timeout=1)

    assert before == set(os.listdir("/proc/self/fd"))
    os.close(fd)


def test_a_receive_never_comes_before_its_send() -> None:
    """The clocks travel with the words: the trace of two processes has causes first."""
    sink = create_sink()
    one, other = pair()
    ahead = Recorder(MANAGER, sink, clock=2**60)
    with Channel(one, MANAGER, PARENT, ahead) as manager:
        parent = Channel(other, PARENT, MANAGER, Recorder(PARENT, sink))
        manager.send(Word.BOOTSTRAP)
        parent.expect(Word.BOOTSTRAP, timeout=1)
        parent.send(Word.PIDS)
        manager.expect(Word.PIDS, timeout=1)
        parent.close()
    kinds = [(event["process"], event["kind"]) for event in read_sink(sink)]
    os.close(sink)

    assert [
        (MANAGER, "word.sent"),
        (PARENT, "word.received"),
        (PARENT, "word.sent"),
        (MANAGER, "word.received"),
    ] == kinds
