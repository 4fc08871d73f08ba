"""Frozen dataclasses over the wire: exact types, and every problem at its path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages.errors import Malformed
from nsstages.init_config import InitConfig, MountPlan, Process, Rlimit, Root, Source
from nsstages.typed import from_payload, to_payload


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value with a default."""

    number: int
    text: str = "t"


@dataclass(frozen=True, slots=True)
class Tree:
    """Each kind of field that travels."""

    leaf: Leaf
    leaves: tuple[Leaf, ...] = ()
    blob: bytes = b""
    maybe: int | None = None
    flag: bool = False
    perhaps: tuple[Leaf, ...] | None = None


leaves = st.builds(Leaf, st.integers(), st.text())
trees = st.builds(
    Tree,
    leaf=leaves,
    leaves=st.lists(leaves, max_size=3).map(tuple),
    blob=st.binary(),
    maybe=st.none() | st.integers(),
    flag=st.booleans(),
    perhaps=st.none() | st.lists(leaves, max_size=2).map(tuple),
)


@given(trees)
def test_a_value_comes_back(tree: Tree) -> None:
    """from_payload undoes to_payload."""
    assert tree == from_payload(Tree, to_payload(tree))


def test_defaults_need_not_travel() -> None:
    """Only fields without a default are required."""
    assert Tree(Leaf(1)) == from_payload(Tree, {"leaf": {"number": 1}})


@pytest.mark.parametrize(
    ("payload", "field", "problem"),
    [
        ({}, "Tree.leaf", "missing"),
        ([], "Tree", "a map expected, got list"),
        ({"leaf": {}}, "Tree.leaf.number", "missing"),
        ({"leaf": {"number": True}}, "Tree.leaf.number", "int expected, got bool"),
        ({"leaf": {"number": 1.0}}, "Tree.leaf.number", "int expected, got float"),
        ({"leaf": {"number": 1, "text": b"x"}}, "Tree.leaf.text", "str expected, got bytes"),
        ({"leaf": {"number": 1}, "flag": 1}, "Tree.flag", "bool expected, got int"),
        ({"leaf": {"number": 1}, "blob": "x"}, "Tree.blob", "bytes expected, got str"),
        ({"leaf": {"number": 1}, "leaves": "x"}, "Tree.leaves", "a list expected, got str"),
        ({"leaf": {"number": 1}, "leaves": [{}]}, "Tree.leaves[0].number", "missing"),
        ({"leaf": {"number": 1}, "leaves": [None]}, "Tree.leaves[0]", "a map expected"),
        ({"leaf": {"number": 1}, "maybe": "1"}, "Tree.maybe", "int expected, got str"),
        ({"leaf": {"number": 1}, "perhaps": [7]}, "Tree.perhaps[0]", "a map expected"),
        ({"leaf": {"number": 1, "x": 1}}, "Tree.leaf.x", "unknown field"),
        ({"leaf": {"number": 1}, 3: 1}, "Tree.3", "unknown field"),
    ],
)
def test_a_wrong_payload_is_refused_at_its_path(payload: Any, field: str, problem: str) -> None:
    """The error has the path of the field and what was expected; no type is converted."""
    with pytest.raises(Malformed) as raised:
        from_payload(Tree, payload)

    assert field == raised.value.field
    assert problem in str(raised.value)


def test_the_word_config_comes_back() -> None:
    """All that stage 2 is told survives the way, enumerations as their text."""
    config = InitConfig(
        Process(("sh",), ("A=1",), rlimits=(Rlimit(7, 1, -1),), umask=0o22),
        root=Root.FUSE,
        mounts=(MountPlan(Source.NEW, "proc", "/proc", "proc", ("hidepid=1",)),),
        seccomp_notify=b"\0\1",
    )
    wire = msgpack.packb(to_payload(config))

    assert config == from_payload(InitConfig, msgpack.unpackb(wire))
