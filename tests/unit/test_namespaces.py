"""Kinds of namespaces: numbers, the order of joining, and what a process lives in."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages import namespaces
from nsstages.namespaces import FLAGS, Join, flags_of, join_order

KINDS = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")


def test_the_kinds_are_the_kernels() -> None:
    """Every file of /proc/self/ns is a kind, and the flags are those of <linux/sched.h>."""
    listed = {name.removesuffix("_for_children") for name in os.listdir("/proc/self/ns")}
    expected = {
        "time": 0x80, "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000,
        "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000,
    }  # fmt: skip

    assert listed <= set(FLAGS)
    assert expected == dict(FLAGS)


@given(st.lists(st.sampled_from(KINDS), unique=True), st.booleans())
def test_the_order_of_joining(kinds: list[str], rootless: bool) -> None:
    """Nothing is lost; the user namespace is last with rights outside, first without; mnt comes
    after all that need the old /proc.
    """
    joins = tuple(Join(kind, number) for number, kind in enumerate(kinds))
    ordered = join_order(joins, rootless=rootless)
    order = [join.kind for join in ordered]

    assert set(joins) == set(ordered)
    assert len(joins) == len(ordered)
    if "user" in kinds:
        assert "user" == order[0 if rootless else -1]
    others = [kind for kind in order if kind != "user"]
    if "mnt" in kinds:
        assert "mnt" == others[-1]


def test_the_mask_of_an_unknown_kind_is_an_error() -> None:
    """A kind that does not exist has no flag."""
    assert 0 == flags_of(())
    with pytest.raises(KeyError):
        flags_of(["moon"])


def test_inodes_of_a_process() -> None:
    """What /proc shows, of this and of any process; of one that does not exist nothing."""
    own = namespaces.inodes()

    assert own == namespaces.inodes(os.getpid())
    assert os.stat("/proc/self/ns/net").st_ino == own["net"]
    assert {} == namespaces.inodes(2**30)
