"""The bootstrap: what goes in comes out, and what is wrong is refused by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages.bootstrap import (
    MAX_ID,
    MAX_ID_RANGES,
    Bootstrap,
    FuseMount,
    TimeOffset,
    Tree,
    unpack,
)
from nsstages.errors import Malformed
from nsstages.idmap import IdRange
from nsstages.namespaces import FLAGS, Join

DESCRIPTORS = 8

indexes = st.integers(0, DESCRIPTORS - 1)
kinds = st.sampled_from(sorted(FLAGS))
texts = st.text(max_size=20)
ranges = st.integers(1, 70000).flatmap(
    lambda count: st.builds(
        IdRange, st.integers(0, MAX_ID - count), st.integers(0, MAX_ID - count), st.just(count)
    )
)
id_maps = st.lists(ranges, min_size=1, max_size=4).map(tuple)
trees = st.builds(
    Tree,
    name=texts,
    path=texts,
    side=st.sampled_from(["outside", "inside"]),
    beneath=st.one_of(st.just(-1), indexes),
    recursive=st.booleans(),
    attributes=st.integers(0, 2**31),
    idmap_userns=st.lists(indexes, max_size=2).map(tuple),
    required=st.booleans(),
)
bootstraps = st.builds(
    Bootstrap,
    create=st.lists(kinds, unique=True).map(tuple),
    joins=st.lists(st.builds(Join, kinds, indexes), max_size=8).map(tuple),
    target_pidfd=st.one_of(st.just(-1), indexes),
    rootless=st.booleans(),
    uid_map=id_maps,
    gid_map=id_maps,
    setgroups=st.booleans(),
    newuidmap=texts,
    newgidmap=texts,
    time_offsets=st.lists(
        st.builds(
            TimeOffset,
            st.sampled_from(["monotonic", "boottime"]),
            st.integers(-(2**40), 2**40),
            st.integers(0, 999_999_999),
        ),
        max_size=2,
    ).map(tuple),
    oom_score_adj=st.one_of(st.none(), st.integers(-1000, 1000)),
    cgroups=st.lists(indexes, max_size=3).map(tuple),
    trees=st.lists(trees, max_size=3).map(tuple),
    fuse=st.lists(st.builds(FuseMount, texts, st.integers(0, 2**31)), max_size=2).map(tuple),
    loopback=st.booleans(),
    timeout=st.integers(1, 1000),
)


@given(bootstraps)
def test_what_is_packed_is_unpacked(bootstrap: Bootstrap) -> None:
    """Every bootstrap survives the way over the channel unchanged."""
    wire = msgpack.packb(bootstrap.pack())

    assert bootstrap == unpack(msgpack.unpackb(wire), DESCRIPTORS)


@given(bootstraps)
def test_it_can_be_printed(bootstrap: Bootstrap) -> None:
    """The packed form is plain values that JSON has, too."""
    assert json.loads(json.dumps(bootstrap.pack())).keys() == bootstrap.pack().keys()


wrong = st.one_of(
    st.none(), st.floats(), st.binary(), st.dictionaries(st.integers(), st.integers()), st.just([7])
)


@given(bootstraps, st.sampled_from(sorted(Bootstrap().pack())), wrong)
def test_a_value_of_the_wrong_type_is_refused_by_name(
    bootstrap: Bootstrap, field: str, value: Any
) -> None:
    """Whatever field holds a value of no type that it may have, it is this field that is named."""
    if (field, value) == ("oom_score_adj", None) or (field == "cgroups" and value == [7]):
        return
    with pytest.raises(Malformed) as raised:
        unpack(bootstrap.pack() | {field: value}, DESCRIPTORS)

    assert raised.value.field.partition("[")[0] == f"Bootstrap.{field}"


@given(texts.filter(lambda name: name not in Bootstrap().pack()))
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    """A field that this version does not know is not ignored."""
    with pytest.raises(Malformed) as raised:
        unpack(Bootstrap().pack() | {name: 1}, 0)

    assert f"Bootstrap.{name}" == raised.value.field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 0}, "Bootstrap.version"),
        ({"version": None}, "Bootstrap.version"),
        ({"create": ["Net"]}, "Bootstrap.create[0]"),
        ({"create": ["net", "user"]}, "Bootstrap.uid_map"),
        ({"joins": [{"kind": "zfs", "fd": 0}]}, "Bootstrap.joins[0].kind"),
        ({"joins": [{"kind": "net", "fd": DESCRIPTORS}]}, "Bootstrap.joins[0].fd"),
        ({"joins": [{"kind": "net", "fd": -1}]}, "Bootstrap.joins[0].fd"),
        ({"joins": [{"fd": 0}]}, "Bootstrap.joins[0].kind"),
        ({"joins": [[0, 1]]}, "Bootstrap.joins[0]"),
        ({"target_pidfd": DESCRIPTORS}, "Bootstrap.target_pidfd"),
        ({"target_pidfd": -2}, "Bootstrap.target_pidfd"),
        ({"uid_map": [{"inside": 0, "outside": 0, "count": 0}]}, "Bootstrap.uid_map[0]"),
        ({"gid_map": [{"inside": -1, "outside": 0, "count": 1}]}, "Bootstrap.gid_map[0]"),
        ({"uid_map": [{"inside": 0, "outside": 2**32 - 1, "count": 1}]}, "Bootstrap.uid_map[0]"),
        (
            {"gid_map": [{"inside": 0, "outside": 0, "count": 1}] * (MAX_ID_RANGES + 1)},
            "Bootstrap.gid_map",
        ),
        ({"oom_score_adj": 1001}, "Bootstrap.oom_score_adj"),
        ({"oom_score_adj": -1001}, "Bootstrap.oom_score_adj"),
        ({"cgroups": [DESCRIPTORS]}, "Bootstrap.cgroups[0]"),
        (
            {"trees": [{"name": "t", "path": "/", "side": "inside", "beneath": 99}]},
            "Bootstrap.trees[0].beneath",
        ),
        (
            {"trees": [{"name": "t", "path": "/", "side": "inside", "idmap_userns": [99]}]},
            "Bootstrap.trees[0].idmap_userns",
        ),
        ({"trees": [{"name": "t", "path": "/"}]}, "Bootstrap.trees[0].side"),
        ({"time_offsets": [{"clock": "tai", "secs": 0}]}, "Bootstrap.time_offsets[0].clock"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    """Kinds, descriptors, maps and scores are checked before anything is forked."""
    with pytest.raises(Malformed) as raised:
        unpack(Bootstrap().pack() | change, DESCRIPTORS)

    assert field == raised.value.field
    assert str(raised.value).startswith(f"{field}: ")


@given(st.lists(kinds, unique=True))
def test_the_flags_are_those_of_the_kinds(create: list[str]) -> None:
    """The mask for unshare has the bit of each kind to create and no other."""
    flags = Bootstrap(create=tuple(create)).clone_flags

    assert set(create) == {kind for kind, flag in FLAGS.items() if flags & flag}
