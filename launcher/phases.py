"""Which phase of the life cycle runs, and whether it may use the manager's rights.

The table is seed knowledge of the Operations interface: a privileged helper that is called in a
phase without rights raises, so a mistake in an engine is found by its first test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

MAY_USE_RIGHTS: Final = MappingProxyType(
    {
        "config": False,
        "init_config": False,
        "prepare_config": False,
        "create_container": True,
        "pre_start_process": True,
        "start_process": False,
        "post_start_process": True,
        "monitor_container": False,
        "cleanup_container": True,
    }
)
_current: list[str] = []


class PhaseError(RuntimeError):
    """A privileged helper was called in a phase that has no rights: a bug in an engine."""


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Run a method of the interface in its phase."""
    if name not in MAY_USE_RIGHTS:
        raise PhaseError(f"no phase {name!r}")
    _current.append(name)
    try:
        yield
    finally:
        _current.pop()


def privileged(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a helper that uses the manager's rights."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if _current and not MAY_USE_RIGHTS[_current[-1]]:
            raise PhaseError(f"{function.__name__} needs rights that {_current[-1]} has not")
        return function(*args, **kwargs)

    return checked
