"""Id maps: their text, their translation, and what the helper is told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsstages import idmap
from nsstages.idmap import IDENTITY, OVERFLOW_ID, IdMap, IdRange, parse, render


@st.composite
def disjoint_maps(draw: st.DrawFn) -> IdMap:
    """Maps as the kernel takes them: ranges that overlap on neither side."""
    inside = outside = 0
    ranges = []
    for _ in range(draw(st.integers(0, 5))):
        inside += draw(st.integers(0, 1000))
        outside += draw(st.integers(0, 100000))
        count = draw(st.integers(1, 70000))
        ranges.append(IdRange(inside, outside, count))
        inside += count
        outside += count
    order = draw(st.permutations(ranges))
    return tuple(order)


@given(disjoint_maps())
def test_text_and_value_are_the_same(id_map: IdMap) -> None:
    """What is rendered for the kernel is parsed back from its file."""
    assert id_map == parse(render(id_map))


def test_the_kernels_own_columns_are_parsed() -> None:
    """/proc/PID/uid_map pads its columns."""
    assert IDENTITY == parse("         0          0 4294967295\n")
    assert () == parse("")


@given(disjoint_maps(), st.data())
def test_a_mapped_id_goes_out_and_comes_back(id_map: IdMap, data: st.DataObject) -> None:
    """Inside every range translation is one to one, from first to last id."""
    for ids in id_map:
        offset = data.draw(st.sampled_from([0, ids.count - 1, ids.count // 2]))

        assert ids.outside + offset == idmap.to_outside(id_map, ids.inside + offset)
        assert ids.inside + offset == idmap.to_inside(id_map, ids.outside + offset)


@given(disjoint_maps(), st.integers(0, 2**32 - 2))
def test_an_id_that_is_not_mapped_is_nobody(id_map: IdMap, number: int) -> None:
    """Outside all ranges there is the overflow id, in both directions."""
    if not any(r.inside <= number < r.inside + r.count for r in id_map):
        assert OVERFLOW_ID == idmap.to_outside(id_map, number)
    if not any(r.outside <= number < r.outside + r.count for r in id_map):
        assert OVERFLOW_ID == idmap.to_inside(id_map, number)


@given(st.integers(0, 2**32 - 2))
def test_the_identity_changes_nothing(number: int) -> None:
    """The initial user namespace's map."""
    assert number == idmap.to_inside(IDENTITY, number) == idmap.to_outside(IDENTITY, number)


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """A helper that writes its arguments and environment down."""
    path = tmp_path / "newuidmap"
    path.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nenv >> {tmp_path}/told\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A map file that the kernel does not let us write."""

    def refuse(path: Path, _text: str) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    return Path("/proc/4711/uid_map")


def test_the_helper_is_told_pid_and_ranges(helper: Path, refused: Path) -> None:
    """newuidmap PID INSIDE OUTSIDE COUNT..., without our environment, where we may not write."""
    id_map = (IdRange(0, 1000, 1), IdRange(1, 100000, 65536))
    idmap._write(refused, id_map, str(helper), 4711)
    told = (helper.parent / "told").read_text().splitlines()

    assert "4711 0 1000 1 1 100000 65536" == told[0]
    assert {"PWD"} >= {line.split("=")[0] for line in told[1:] if not line.startswith("_")}


def test_without_a_helper_the_refusal_is_the_kernels(refused: Path) -> None:
    """No helper: PermissionError as it came."""
    with pytest.raises(PermissionError, match="/proc/4711/uid_map"):
        idmap._write(refused, IDENTITY, "", 1)


def test_a_refusing_helper_is_quoted(tmp_path: Path, refused: Path) -> None:
    """What the helper says on its standard error is the error's text, the helper its file."""
    path = tmp_path / "newuidmap"
    path.write_bytes(b"#!/bin/sh\necho 'uid range not allowed' >&2\nexit 1\n")
    path.chmod(0o755)
    with pytest.raises(PermissionError) as raised:
        idmap._write(refused, IDENTITY, str(path), 1)

    assert ("uid range not allowed", str(path)) == (raised.value.strerror, raised.value.filename)
