"""From what a user calls a container to its first process.

A spec is a number (a process), NAME, or ENGINE:NAME. A plain NAME is looked up with every engine;
running containers count, one that several engines know by the same process counts once.
`snapshot` then reads what that process is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from launcher.errors import (
    AmbiguousTarget,
    EngineUnavailable,
    TargetNotFound,
    TargetNotRunning,
)
from launcher.targets.docker import DOCKER
from launcher.targets.lookup import Engine, Found, LookUp
from launcher.targets.pid import PID
from launcher.targets.podman import PODMAN
from launcher.targets.runc import CRUN, RUNC
from launcher.targets.sandbox import SANDBOX

__all__ = ["ENGINES", "Found", "TargetSpec", "find", "parse_spec"]

ENGINES: Final[Mapping[str, Engine]] = MappingProxyType(
    {engine.name: engine for engine in (PID, SANDBOX, DOCKER, PODMAN, RUNC, CRUN)}
)


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Whom to act on: ``name`` as ``engine`` knows it, or as any engine does (None)."""

    name: str
    engine: str | None = None

    def __str__(self) -> str:
        return f"{self.engine}:{self.name}" if self.engine else self.name


def parse_spec(text: str) -> TargetSpec:
    """Parse NAME, ENGINE:NAME or a process number."""
    engine, colon, name = text.partition(":")
    if colon:
        return TargetSpec(name, engine)
    is_number = text.isascii() and text.isdigit()
    return TargetSpec(text, PID.name if is_number else None)


def find(spec: str | TargetSpec) -> Found:
    """Return the running process that ``spec`` means. Called by the manager, before any fork.

    Raises TargetNotFound, AmbiguousTarget, TargetNotRunning, EngineUnavailable.
    """
    wanted = parse_spec(spec) if isinstance(spec, str) else spec
    if not wanted.name:
        raise TargetNotFound("no target is named", hint="give a container's name or a process id")
    return _find_with(wanted.engine, wanted.name) if wanted.engine else _find_anywhere(wanted.name)


def _find_with(engine_name: str, name: str) -> Found:
    engine = ENGINES.get(engine_name)
    if engine is None:
        raise TargetNotFound(f"unknown engine {engine_name!r}", hint=f"one of {', '.join(ENGINES)}")
    found = engine.look_up(name) or (engine.ask(name) if engine.ask else None)
    if found is None:
        what = "process" if engine is PID else f"{engine_name} container"
        raise TargetNotFound(f"no {what} {name!r}")
    return found


@dataclass(slots=True)
class _Answers:
    """What the engines said to one name; ``found`` by process."""

    found: dict[int, Found]
    refusals: list[AmbiguousTarget | TargetNotRunning]
    unavailable: list[EngineUnavailable]

    def collect(self, look_up: LookUp, name: str) -> None:
        try:
            if found := look_up(name):
                self.found.setdefault(found.pid, found)
        except (AmbiguousTarget, TargetNotRunning) as error:
            self.refusals.append(error)
        except EngineUnavailable as error:
            self.unavailable.append(error)


def _find_anywhere(name: str) -> Found:
    answers = _Answers({}, [], [])
    for engine in ENGINES.values():
        answers.collect(engine.look_up, name)
    if not answers.found and not answers.refusals:
        for ask in _slow_questions():
            answers.collect(ask, name)
    found = list(answers.found.values())
    # A name beats the ids that happen to begin with it.
    found = [candidate for candidate in found if candidate.name == name] or found
    if len(found) > 1:
        raise AmbiguousTarget(name, [candidate.spec for candidate in found])
    if found:
        return found[0]
    if answers.refusals:
        raise answers.refusals[0]
    raise _not_found(name, answers.unavailable)


def _slow_questions() -> list[LookUp]:
    return [engine.ask for engine in ENGINES.values() if engine.ask]


def _not_found(name: str, unavailable: list[EngineUnavailable]) -> TargetNotFound:
    known = ", ".join(engine for engine in ENGINES if engine != PID.name)
    reasons = "; ".join(dict.fromkeys(str(error) for error in unavailable))
    return TargetNotFound(
        f"no running container {name!r} ({known} asked)",
        hint=f"not all could be asked: {reasons}" if reasons else "",
    )
