"""The examples of a Markdown page, run in the order in which a reader meets them.

    ```console   commands after "$ " or "# ", each followed by what it prints ("..." is anything)
    ```python    a program; a following ```text block is what it prints
    ```json      a file, if the line before the block is <!-- file: NAME -->, checked as such

Other languages are shown, not run. Every page runs in an empty directory of its own.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sybil import Example
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from launcher import config

_PROMPT: Final = re.compile(r"^[$#] (.*)$")
_FILE: Final = re.compile(r"<!-- file: (\S+) -->\s*\Z")
_CHECKS: Final = {"attach.json": config.attach, "run.json": config.run}
_OPTIONS: Final = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(slots=True)
class Page:
    """One page on its way through its examples."""

    path: Path
    directory: Path
    environment: Mapping[str, str]
    printed: str = ""
    printed_at: int = -1  # where the block ended that printed it

    def run(self) -> None:
        """Run every example. Raises AssertionError naming the line of the one that fails."""
        evaluators: dict[str, Callable[[Example], None]] = {
            "console": self._run_console,
            "python": self._run_python,
            "json": self._write_file,
            "text": self._check_text,
        }
        parsers = [CodeBlockParser(name, run) for name, run in evaluators.items()]
        for example in Document.parse(str(self.path), *parsers, SkipParser()).examples():
            try:
                example.evaluate()
            except AssertionError as error:
                raise AssertionError(f"{self.path}:{example.line}: {error}") from None

    def _run_console(self, example: Example) -> None:
        for command, expected in _commands(str(example.parsed)):
            _compare(command, expected, self._execute(["bash", "-c", command]))

    def _run_python(self, example: Example) -> None:
        self.printed = self._execute([sys.executable, "-c", str(example.parsed)])
        self.printed_at = example.region.end

    def _check_text(self, example: Example) -> None:
        between = example.document.text[self.printed_at : example.region.start]
        if self.printed_at >= 0 and not between.strip():
            _compare("the program", str(example.parsed), self.printed)

    def _write_file(self, example: Example) -> None:
        before = example.document.text[: example.region.start]
        if name := _FILE.search(before):
            path = self.directory / name[1]
            path.write_text(str(example.parsed))
            if check := _CHECKS.get(name[1]):
                check(config.load(str(path)), name[1])

    def _execute(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command[-1]}: status {done.returncode}: {done.stdout}"
        return done.stdout


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command with the output that is shown below it."""
    command, expected = "", ""
    for line in text.splitlines():
        if prompt := _PROMPT.match(line):
            if command:
                yield command, expected
            command, expected = prompt[1], ""
        else:
            expected += line + "\n"
    yield command, expected


def _compare(what: str, expected: str, got: str) -> None:
    same = doctest.OutputChecker().check_output(expected, got, _OPTIONS)
    assert same, f"{what}\nexpected:\n{expected}\ngot:\n{got}"
