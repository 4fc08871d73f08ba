"""Rights as system calls: which, in which order, and what they make of a process."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages import credentials
from nsstages.credentials import CapabilitySets, Credentials, calls
from nsstages.syscalls import (
    PR_CAP_AMBIENT,
    PR_CAPBSET_DROP,
    PR_SET_KEEPCAPS,
    PR_SET_NO_NEW_PRIVS,
    Call,
    Packed,
)
from tests import needs
from tests.stages.neighbour import in_child

LAST = 40
ALLOW_ALL = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW


def names(wanted: tuple[Call, ...]) -> list[str]:
    """Return the calls by name; prctl with its option."""
    options = {
        PR_CAPBSET_DROP: "drop", PR_SET_KEEPCAPS: "keepcaps", PR_SET_NO_NEW_PRIVS: "no_new_privs",
        PR_CAP_AMBIENT: "ambient",
    }  # fmt: skip
    return [
        options[call.arguments[0]]  # type: ignore[index]  # prctl's options are numbers
        if call.name == "prctl"
        else call.name
        for call in wanted
    ]


masks = st.integers(0, (1 << LAST + 1) - 1)
sets = st.builds(CapabilitySets, masks, masks, masks, masks, masks)
rights = st.builds(
    Credentials,
    uid=st.none() | st.integers(0, 2**32 - 2),
    gid=st.none() | st.integers(0, 2**32 - 2),
    groups=st.none() | st.lists(st.integers(0, 2**32 - 2), max_size=4).map(tuple),
    capabilities=st.none() | sets,
    no_new_privs=st.booleans(),
    seccomp_filters=st.lists(st.just(ALLOW_ALL), max_size=3).map(tuple),
)


def test_nothing_is_called_for_nothing() -> None:
    """Credentials without content leave a process as it is."""
    assert () == calls(Credentials(), LAST)


@given(rights)
def test_the_order_is_the_one_that_works(wanted: Credentials) -> None:
    """Groups before gid before uid; the bounding set while CAP_SETPCAP lasts; capabilities kept
    over the change of ids; ambient after inheritable; all filters, and the last one so late that
    it may forbid what comes before.
    """
    order = names(calls(wanted, LAST))

    def after(later: str, earlier: str) -> bool:
        return later not in order or earlier not in order or (
            order.index(later) > len(order) - 1 - order[::-1].index(earlier)
        )  # fmt: skip

    assert after("setresgid", "setgroups")
    assert after("setresuid", "setresgid")
    assert after("setresuid", "drop")
    assert after("setresuid", "keepcaps")
    assert after("capset", "setresuid")
    assert after("ambient", "capset")
    assert len(wanted.seccomp_filters) == order.count("seccomp")
    if wanted.no_new_privs:
        assert not wanted.seccomp_filters or "seccomp" == order[-1]
    else:  # a filter needs CAP_SYS_ADMIN then
        assert after("ambient", "seccomp")


@given(masks)
def test_the_bounding_set_keeps_its_bits(keep: int) -> None:
    """Exactly the capabilities that are not wanted are dropped, up to the kernel's last one."""
    wanted = calls(Credentials(capabilities=CapabilitySets(bounding=keep)), LAST)
    dropped = {call.arguments[1] for call in wanted if call.arguments[0] == PR_CAPBSET_DROP}

    assert {number for number in range(LAST + 1) if not keep >> number & 1} == dropped


@given(sets)
def test_the_sets_are_packed_for_capset(wanted: CapabilitySets) -> None:
    """Version 3: effective, permitted, inheritable, low words first."""
    every = calls(Credentials(capabilities=wanted, seccomp_filters=(ALLOW_ALL,)), LAST)
    header, data = [call for call in every if call.name == "capset"][-1].arguments
    assert isinstance(header, bytes)
    assert isinstance(data, bytes)
    low, high = struct.unpack("3I", data[:12]), struct.unpack("3I", data[12:])

    assert (0x20080522, 0) == struct.unpack("Ii", header)
    assert (wanted.effective, wanted.permitted, wanted.inheritable) == tuple(
        one | other << 32 for one, other in zip(low, high, strict=True)
    )


def test_a_filter_is_passed_by_address() -> None:
    """struct sock_fprog: the number of instructions, then a pointer to them."""
    (call,) = calls(Credentials(seccomp_filters=(ALLOW_ALL * 3,)), LAST)
    program = call.arguments[2]

    assert isinstance(program, Packed)
    assert (3, ALLOW_ALL * 3) == program.values
    assert 16 == struct.calcsize(program.layout)


def status() -> dict[str, str]:
    """Return the fields of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (x.partition(":") for x in lines)}


SETS = CapabilitySets(inheritable=0x3, permitted=0x7, effective=0x5, bounding=0xF, ambient=0x1)


@needs.root
@pytest.mark.parametrize("no_new_privs", [False, True])
@pytest.mark.parametrize("filters", [(), (ALLOW_ALL,), (ALLOW_ALL, ALLOW_ALL)], ids=len)
@pytest.mark.parametrize("uid", [0, 4711])
def test_a_process_becomes_what_is_wanted(
    uid: int, filters: tuple[bytes, ...], no_new_privs: bool
) -> None:
    """Executed, the calls have the effect: ids, groups, five sets, no_new_privs, filters."""
    wanted = Credentials(uid, 4712, (1, 2), SETS, no_new_privs, filters)

    def job() -> str:
        credentials.apply(calls(wanted, credentials.last_capability()))
        now = status()
        keys = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
                "NoNewPrivs", "Seccomp_filters")  # fmt: skip
        return "|".join(now[key] for key in keys)

    expected = [
        " ".join([str(uid)] * 4), "4712 4712 4712 4712", "1 2",
        *(f"{mask:016x}" for mask in (SETS.inheritable, SETS.permitted, SETS.effective,
                                      SETS.bounding, SETS.ambient)),
        str(int(no_new_privs)), str(len(filters)),
    ]  # fmt: skip
    assert expected == in_child(job).split("|")


@needs.root
def test_a_refused_call_is_named() -> None:
    """What this process may not do is an OSError with the name of the call."""
    wanted = calls(replace(Credentials(), groups=(1,)), LAST)

    def job() -> str:
        try:
            credentials.apply(wanted)
        except PermissionError as error:
            return str(error.filename)
        return "allowed"

    assert "setgroups" == in_child(job, "nobody")
