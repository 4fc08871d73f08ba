"""Who may use the manager's rights: the phase decides, and a mistake in an engine raises."""

from __future__ import annotations

import inspect

import pytest

from launcher.engine import Operations
from launcher.phases import MAY_USE_RIGHTS, PhaseError, phase, privileged


@privileged
def use_rights(value: int) -> int:
    """A helper that needs rights."""
    return value + 1


def test_every_method_of_the_interface_has_its_phase() -> None:
    """The table and the interface have the same names in the same order."""
    methods = [name for name, _ in inspect.getmembers(Operations, inspect.isfunction)]
    written = [name for name in vars(Operations) if name in methods and name[0] != "_"]

    assert written == list(MAY_USE_RIGHTS)


@pytest.mark.parametrize(("name", "allowed"), MAY_USE_RIGHTS.items())
def test_the_table_is_enforced(name: str, allowed: bool) -> None:
    """In a phase without rights a privileged helper raises, and says which in which."""
    with phase(name):
        if allowed:
            assert 3 == use_rights(2)
        else:
            with pytest.raises(PhaseError, match=f"use_rights .*{name}"):
                use_rights(2)


def test_outside_all_phases_everything_is_allowed() -> None:
    """A helper by itself, in a test or as a library, knows no phase."""
    assert 3 == use_rights(2)


def test_the_innermost_phase_counts_and_ends_with_its_block() -> None:
    """Also when it ends by an exception."""

    def fail() -> None:
        with phase("monitor_container"):
            raise ValueError

    with phase("create_container"):
        with pytest.raises(ValueError), phase("prepare_config"):  # noqa: PT011  # ours
            raise ValueError
        with pytest.raises(ValueError):  # noqa: PT011  # ours
            fail()
        assert 3 == use_rights(2)


def test_there_are_no_other_phases() -> None:
    """A name that is not in the table is a mistake."""
    with pytest.raises(PhaseError, match="no phase 'start'"), phase("start"):
        pass


def test_a_privileged_helper_keeps_its_name() -> None:
    """For the error, and for its documentation."""
    assert ("use_rights", "A helper that needs rights.") == (
        use_rights.__name__, use_rights.__doc__
    )  # fmt: skip
