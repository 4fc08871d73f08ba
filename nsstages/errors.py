"""What can go wrong in the pipeline, and whose fault it is.

    NsstagesError
    ├── StageFailed        a step in a stage was refused by this machine; carries a Failure
    ├── PeerDied           the process at the other end of a channel is gone
    ├── DeadlineExceeded   the process at the other end did not answer in time
    ├── UnexpectedWord     the other end broke the handshake: a bug of ours
    └── Malformed          a message or bootstrap field is not what it must be

Every one of them prints as a single line; a hint, where the cause is usual, is kept apart.
"""

from __future__ import annotations

import errno as errno_module
import os
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed step, as it travels up the channels in the word FAILED.

    ``errno`` is 0 when no system call failed; ``syscall`` is then empty.
    """

    stage: str
    step: str
    syscall: str = ""
    errno: int = 0
    text: str = ""
    hint: str = ""

    def __str__(self) -> str:
        parts = [self.stage, self.step]
        if self.syscall:
            parts.append(self.syscall)
        parts.append(self.text or os.strerror(self.errno))
        line = ": ".join(parts)
        if self.errno:
            line += f" [{errno_module.errorcode.get(self.errno, self.errno)}]"
        return line

    def to_payload(self) -> dict[str, Any]:
        """Return the msgpack form."""
        return asdict(self)

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Failure:
        """Rebuild from the msgpack form; unknown keys are dropped, the sender may be dying."""
        return cls(
            stage=str(payload.get("stage", "?")),
            step=str(payload.get("step", "?")),
            syscall=str(payload.get("syscall", "")),
            errno=int(payload.get("errno", 0)),
            text=str(payload.get("text", "")),
            hint=str(payload.get("hint", "")),
        )


class NsstagesError(Exception):
    """Base of everything this package raises on purpose; ``hint`` may hold a remedy."""

    hint: str = ""


class StageFailed(NsstagesError):
    """A step in a stage failed; ``failure`` says which, where and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.hint = failure.hint


class PeerDied(NsstagesError):
    """The process at the other end of a channel is gone (end of file without FAILED)."""

    def __init__(self, me: str, peer: str, waiting_for: str, how: str = "") -> None:
        super().__init__(f"{me}: {peer} died{how and ' (' + how + ')'} before {waiting_for}")
        self.peer = peer
        self.waiting_for = waiting_for


class DeadlineExceeded(NsstagesError):
    """The other end is alive but did not say the word in time."""

    def __init__(self, me: str, peer: str, waiting_for: str, seconds: float) -> None:
        super().__init__(f"{me}: no {waiting_for} from {peer} within {seconds:g} s")


class UnexpectedWord(NsstagesError):
    """A word came out of order; names what was expected and what came."""

    def __init__(self, me: str, peer: str, expected: str, got: str) -> None:
        super().__init__(f"{me}: expected {expected} from {peer}, got {got}")


class Malformed(NsstagesError):
    """A field of a message is missing, unknown or of the wrong type; ``field`` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
