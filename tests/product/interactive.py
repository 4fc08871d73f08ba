"""A person at a terminal: the launcher on a real pty, driven by pexpect."""

from __future__ import annotations

import os
import shlex
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pexpect
import pytest

from tests.product.attached import LAUNCHER
from tests.product.container import Container
from tests.product.engines import Case

PROMPT: Final = "attached> "
ROWS: Final = 30
COLUMNS: Final = 200  # wide: the shell's own line breaks would be in the output
SECONDS: Final = 20
# For @pytest.mark.parametrize("container", FEW, indirect=True, ids=str): what concerns the host's
# side of an attach depends little on the container.
FEW: Final = tuple(
    pytest.param(case, marks=pytest.mark.need(case.engine))
    for case in (Case("runc", "busybox"), Case("docker", "busybox"))
)
ONE: Final = FEW[:1]


class Terminal:
    """One launcher, or a shell's command line with one, on its own pty."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self.child: Any = pexpect.spawn(
            command[0],
            command[1:],
            env=dict(environment),
            cwd="/",
            timeout=SECONDS,
            dimensions=(ROWS, COLUMNS),
            encoding="utf-8",
            codec_errors="replace",
        )
        self.child.delaybeforesend = None
        self.before: Final = self.attributes()

    @property
    def pid(self) -> int:
        """The launcher's process."""
        return int(self.child.pid)

    def attributes(self) -> list[Any]:
        """Return the attributes of the terminal that the launcher was started on."""
        return termios.tcgetattr(self.child.child_fd)

    @property
    def is_raw(self) -> bool:
        """Tell whether keys go to the program unchanged."""
        return not self.attributes()[3] & (termios.ICANON | termios.ISIG)

    def wait_for(self, text: str) -> str:
        """Return what comes before ``text``."""
        self.child.expect_exact(text)
        return str(self.child.before)

    def prompt(self) -> str:
        """Wait for the shell's prompt; return what comes before it."""
        return self.wait_for(PROMPT)

    def run(self, command: str) -> str:
        """Type a command; return what it prints."""
        self.child.sendline(command)
        self.wait_for("\n")  # the echo of the command itself
        return self.prompt().replace("\r\n", "\n").rstrip("\n")

    def press(self, key: str) -> None:
        """Press Ctrl and a key."""
        self.child.sendcontrol(key)

    def interrupt(self) -> None:
        """Press Ctrl-C until the prompt is there: bash loses the one that comes inside `fg`."""
        for _ in range(SECONDS):
            self.press("c")
            if self.child.expect_exact([PROMPT, pexpect.TIMEOUT], timeout=1) == 0:
                return
        raise AssertionError("nothing is interrupted")

    def end(self) -> int:
        """Return the exit code as a shell reports it, when the launcher has ended."""
        self.child.expect(pexpect.EOF)
        self.child.wait()
        if self.child.signalstatus is not None:
            return 128 + int(self.child.signalstatus)
        return int(self.child.exitstatus)

    def exit(self, code: int = 0) -> int:
        """Leave the shell."""
        self.child.sendline(f"exit {code}")
        return self.end()


@contextmanager
def terminal(
    container: Container,
    *command: str,
    options: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
    pipeline: str = "",
) -> Iterator[Terminal]:
    """Attach on a terminal; the launcher is killed if it still runs at the end.

    With ``pipeline`` a shell runs it as the rest of the command line.
    """
    words = [LAUNCHER, "attach", *options, container.spec, *(("--", *command) if command else ())]
    given = {**os.environ, **container.engine.environment, "TERM": "dumb", **(environment or {})}
    opened = Terminal(["sh", "-c", f"{shlex.join(words)} {pipeline}"] if pipeline else words, given)
    try:
        yield opened
    finally:
        opened.child.close(force=True)


@contextmanager
def login(
    container: Container, home: Path, *, options: tuple[str, ...] = (), **variables: str
) -> Iterator[Terminal]:
    """Attach as a person with the home directory ``home`` does: a login bash at its prompt."""
    own = {"HOME": str(home), "SHELL": "/bin/bash", **variables}
    with terminal(container, options=options, environment=own) as opened:
        opened.prompt()
        yield opened
