"""The house: linters, types, import contracts and sizes as tests: one command checks all."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
JUNK_DRAWERS: Final = {"utils", "util", "helpers", "helper", "common", "misc", "lib"}
HEAVY: Final = ("trio", "pyfuse3", "ptrace", "pyroute2")  # 100 to 200 ms of start-up each


def modules(*packages: str) -> list[Path]:
    """Return the Python files of the packages, relative to the checkout."""
    return [p.relative_to(ROOT) for name in packages for p in sorted((ROOT / name).rglob("*.py"))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function of a file, nested ones too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("lint-imports",),
    ],
    ids=" ".join,
)
@pytest.mark.timeout(300)
def test_linter_is_content(command: tuple[str, ...]) -> None:
    """ruff, its formatter, mypy --strict and the import contracts have nothing to say."""
    done = subprocess.run(
        [BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


@pytest.mark.parametrize("path", modules("nsstages", "launcher"), ids=str)
def test_module_fits_on_a_few_pages(path: Path) -> None:
    """No module is longer than 400 lines, no function longer than 40."""
    lines = len((ROOT / path).read_text().splitlines())
    long = [f.name for f in functions(path) if (f.end_lineno or 0) - f.lineno >= 40]

    assert lines <= 400
    assert [] == long


def test_the_pipeline_stays_small() -> None:
    """The pipeline is meant to be read: under 2,000 lines of code, docstrings not counted."""
    lines = sum(len(code_lines((ROOT / p).read_text())) for p in modules("nsstages"))

    assert lines < 2000


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no comment, docstring or empty line."""
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def test_no_module_is_a_junk_drawer() -> None:
    """A module's name says what is in it."""
    names = {
        part for p in modules("nsstages", "launcher", "tests") for part in p.with_suffix("").parts
    }

    assert set() == names & JUNK_DRAWERS


@pytest.mark.parametrize("path", modules("tests"), ids=str)
def test_every_test_states_its_promise(path: Path) -> None:
    """A test's docstring is the promise, readable without the code."""
    silent = [
        f.name for f in functions(path) if f.name.startswith("test_") and not ast.get_docstring(f)
    ]

    assert [] == silent


@pytest.mark.parametrize("module", ["launcher.cli", "nsstages.pipeline"])
def test_the_manager_starts_light(module: str) -> None:
    """Importing what the manager imports loads none of the heavy libraries."""
    script = f"import {module}, sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)

    assert (0, "") == (done.returncode, done.stdout.strip()), done.stderr
