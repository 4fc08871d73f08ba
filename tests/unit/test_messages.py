"""The order of the words: the table is consistent, and a state machine of speakers keeps it."""

from __future__ import annotations

import re

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from nsstages import messages
from nsstages.channel import Channel, pair
from nsstages.errors import StageFailed, UnexpectedWord
from nsstages.messages import COMM, LEGAL, Word, is_legal
from nsstages.trace import Recorder

EDGES = sorted(LEGAL)


def test_every_word_is_said_by_somebody() -> None:
    """No word of the vocabulary is dead but FAILED, which everybody may say."""
    said = {word for order in LEGAL.values() for word in order}

    assert set(Word) - {Word.FAILED} == said


def test_every_word_is_in_the_drawing() -> None:
    """The drawing above the table and the table have the same words."""
    drawn = set(re.findall(r"\b[A-Z][A-Z_]{2,}\b", messages.__doc__ or ""))

    assert {str(word) for word in Word} <= drawn


@pytest.mark.parametrize("edge", EDGES, ids="->".join)
def test_every_word_can_be_reached(edge: tuple[str, str]) -> None:
    """From the first word on, legal steps lead to each word of an edge."""
    reached: set[Word] = set()
    pending: list[Word | None] = [None]
    while pending:
        previous = pending.pop()
        for word in LEGAL[edge]:
            if word not in reached and is_legal(*edge, word, previous):
                reached.add(word)
                pending.append(word)

    assert set(LEGAL[edge]) == reached


@pytest.mark.parametrize("edge", EDGES, ids="->".join)
def test_nothing_follows_failed(edge: tuple[str, str]) -> None:
    """FAILED may be said at any time, and is the last word."""
    for previous in (None, *LEGAL[edge]):
        assert is_legal(*edge, Word.FAILED, previous)
    for word in Word:
        assert not is_legal(*edge, word, Word.FAILED)


def test_every_edge_can_be_answered() -> None:
    """Where one may speak to another, the other may speak to it."""
    assert set(EDGES) == {(listener, speaker) for speaker, listener in EDGES}


def test_names_fit_the_kernel() -> None:
    """A process name has at most 15 bytes."""
    assert all(0 < len(name.encode()) <= 15 for name in COMM.values())
    assert len(set(COMM.values())) == len(COMM)


class Handshake(RuleBasedStateMachine):
    """Two real channel ends that say any word at any time, beside a model of what is legal."""

    edge: tuple[str, str]

    def __init__(self) -> None:
        super().__init__()
        speaker, listener = self.edge
        one, other = pair()
        self.speaker = Channel(one, speaker, listener, Recorder(speaker))
        self.listener = Channel(other, listener, speaker, Recorder(listener))
        self.said: Word | None = None
        self.heard: Word | None = None
        self.pending: list[Word] = []

    @rule(word=st.sampled_from(Word))
    def say(self, word: Word) -> None:
        """A legal word is sent; any other raises and changes nothing."""
        if is_legal(*self.edge, word, self.said):
            self.speaker.send(word)
            self.pending.append(word)
            self.said = word
        else:
            with pytest.raises(UnexpectedWord):
                self.speaker.send(word)

    @precondition(lambda self: self.pending)
    @rule(wanted=st.sampled_from(Word))
    def hear(self, wanted: Word) -> None:
        """The next word comes: FAILED as its failure, another than the wanted one as an error."""
        word = self.pending.pop(0)
        if word is Word.FAILED:
            with pytest.raises(StageFailed):
                self.listener.expect(wanted, timeout=1)
        elif word is wanted:
            assert word is self.listener.expect(wanted, timeout=1).word
        else:
            with pytest.raises(UnexpectedWord, match=word):
                self.listener.expect(wanted, timeout=1)
        self.heard = word

    @invariant()
    def both_know_the_last_word(self) -> None:
        """Each end remembers what was said and heard last."""
        assert self.said is self.speaker.last_sent
        assert self.heard is self.listener.last_received

    def teardown(self) -> None:
        """Close both ends."""
        self.speaker.close()
        self.listener.close()


@pytest.mark.parametrize("edge", EDGES, ids="->".join)
def test_both_ends_keep_the_order(edge: tuple[str, str]) -> None:
    """On every edge, whatever is tried, only legal sequences are said and heard."""
    machine = type("Machine", (Handshake,), {"edge": edge})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=15, stateful_step_count=20, deadline=None)
    )
