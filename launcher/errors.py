"""What a user of the launcher can run into, and whose fault it is.

    LauncherError                 exit status 125
    ├── UsageError                the command line is wrong (2)
    ├── ConfigError               attach.json, run.json or the options are wrong; has all problems
    ├── CommandNotFound           the program to run does not exist (127)
    ├── CannotExecute             the program exists and cannot be executed (126)
    └── TargetError               the container or process to act on
        ├── TargetNotFound        no engine knows the name
        ├── AmbiguousTarget       several do; carries the candidates
        ├── TargetNotRunning      it is known and has no process
        ├── TargetUnreadable      this user may not look at it
        ├── TargetMalformed       something the kernel or an engine says of it makes no sense
        ├── EngineUnavailable     its engine cannot be asked
        └── UnknownUser           the container has no such user or group

Each prints as one line (ConfigError: a line a problem); the remedy, where there is a usual one, is
in ``hint``. Failures inside the pipeline are nsstages.errors, not these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LauncherError(Exception):
    """Base of everything the product raises on purpose."""

    exit_code: int = 125

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LauncherError):
    """The command line is wrong."""

    exit_code = 2


class CommandNotFound(LauncherError):
    """The program to run does not exist where it is looked up."""

    exit_code = 127


class CannotExecute(LauncherError):
    """The program to run exists but is not executable here."""

    exit_code = 126


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration: the path of the key, and what was expected."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(LauncherError):
    """A configuration is refused; ``problems`` holds all of them, in the order of the keys."""

    def __init__(self, origin: str, problems: Sequence[Problem], *, hint: str = "") -> None:
        lines = [str(problem) for problem in problems]
        body = lines[0] if len(lines) == 1 else "".join(f"\n  {line}" for line in lines)
        super().__init__(f"{origin}: {body}", hint=hint)
        self.problems = tuple(problems)


class TargetError(LauncherError):
    """Something about the container or process to act on."""


class TargetNotFound(TargetError):
    """No engine knows the name, or no process has the number."""


class AmbiguousTarget(TargetError):
    """Several containers answer to the name; ``candidates`` are specs that name just one."""

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        super().__init__(
            f"{name!r} is ambiguous: {', '.join(candidates)}",
            hint="name one of them as it is written here",
        )
        self.candidates = tuple(candidates)


class TargetNotRunning(TargetError):
    """The target is known, but has no running process."""


class TargetUnreadable(TargetError):
    """The kernel does not let this user look at the target."""


class TargetMalformed(TargetError):
    """A field that describes the target is not what it must be; ``field`` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class EngineUnavailable(TargetError):
    """A container engine cannot be asked; ``engine`` names it."""

    def __init__(self, engine: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{engine}: {reason}", hint=hint)
        self.engine = engine


class UnknownUser(TargetError):
    """The container has no such user or group."""
