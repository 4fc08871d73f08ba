"""attach.json, run.json and the options of exec: read, merged, checked, frozen.

The command line comes as a partial mapping of the same keys, laid over the file before anything is
checked. All problems are reported at once, by key, before the first fork.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from launcher.consistency import attach_problems, exec_problems, run_problems
from launcher.errors import ConfigError, Problem, UsageError
from launcher.settings import Attach, Exec, Run

__all__ = ["Attach", "Exec", "Run", "attach", "exec_", "load", "merge", "run", "schema"]

_MAX_FILE: Final = 1024 * 1024
_NAMED_KEY: Final = re.compile(r"`([^`]+)`")
_MERGED: Final = frozenset({"env", "root"})
_TITLES: Final[Mapping[str, tuple[type[msgspec.Struct], str]]] = MappingProxyType(
    {"attach": (Attach, "attach.json"), "run": (Run, "run.json")}
)

C = TypeVar("C", Attach, Exec, Run)


def load(path: str) -> dict[str, Any]:
    """Return the object in a JSON file, unchecked. Raises ConfigError with line and column."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(path, [Problem("", f"cannot be read: {error.strerror}")]) from error
    if len(data) > _MAX_FILE:
        raise ConfigError(path, [Problem("", f"{len(data)} bytes, at most {_MAX_FILE} allowed")])
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, [Problem("", _json_problem(data, error))]) from error
    if not isinstance(value, dict):
        raise ConfigError(path, [Problem("", 'expected an object, {"key": value, ...}')])
    return value


def _json_problem(data: bytes, found: Exception) -> str:
    """Say where JSON is malformed: the standard library's parser knows line and column."""
    import json

    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        return f"line {line}, column {column}: not UTF-8"
    except RecursionError:
        return "nested too deeply"
    return f"not JSON: {found}"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the keys of ``over`` laid over it.

    Inside `env` and `root` single keys are laid over; any other value replaces the whole.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if key in _MERGED and isinstance(below, dict) and isinstance(value, Mapping):
            merged[key] = {**below, **value}
        else:
            merged[key] = value
    return merged


def attach(values: Mapping[str, Any], origin: str = "attach") -> Attach:
    """Return the checked configuration of an attach. Raises ConfigError with every problem."""
    return _checked(values, Attach, attach_problems, origin)


def run(values: Mapping[str, Any], origin: str = "run") -> Run:
    """Return the checked configuration of a run. Raises ConfigError with every problem."""
    return _checked(values, Run, run_problems, origin)


def exec_(values: Mapping[str, Any], origin: str = "exec") -> Exec:
    """Return the checked options of an exec. Raises ConfigError with every problem."""
    return _checked(values, Exec, exec_problems, origin)


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of attach or run. Raises UsageError for another name."""
    from launcher.schema import json_schema

    if name not in _TITLES:
        raise UsageError(f"no schema {name!r}, expected one of {', '.join(_TITLES)}")
    struct, title = _TITLES[name]
    return json_schema(struct, title)


def _checked(
    values: Mapping[str, Any],
    of: type[C],
    contradictions: Callable[[C], Iterator[Problem]],
    origin: str,
) -> C:
    try:
        config = msgspec.convert(dict(values), of)
    except msgspec.ValidationError:
        raise ConfigError(origin, _all_problems(values, of, contradictions)) from None
    problems = list(contradictions(config))
    if problems:
        raise ConfigError(origin, problems)
    return config


def _all_problems(
    values: Mapping[str, Any], of: type[C], contradictions: Callable[[C], Iterator[Problem]]
) -> list[Problem]:
    """Return every wrong key, and every contradiction among the keys that are right."""
    from launcher.schema import check

    checked = check(dict(values), of)
    found = [checked.as_written(p) for p in contradictions(msgspec.convert(checked.rest, of))]
    # What is missing because it was refused would only be reported twice.
    refused = [problem.key for problem in checked.problems]
    return checked.problems + [p for p in found if not _is_about(p, refused)]


def _is_about(problem: Problem, refused: Sequence[str]) -> bool:
    """Tell whether a contradiction is at, or names, a key that was refused."""
    keys = (problem.key, *_NAMED_KEY.findall(problem.text))
    return any(_holds(key, other) for key in keys for other in refused)


def _holds(key: str, other: str) -> bool:
    """Tell whether one key is the other or inside it."""
    shorter, longer = sorted((key, other), key=len)
    return longer.startswith(shorter) and longer[len(shorter) :][:1] in ("", ".", "[")
