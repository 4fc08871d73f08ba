"""Needs: a test that cannot run here is skipped with its reason, and in CI it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests import needs

ROOT: Final = Path(__file__).parents[2]
NEEDY: Final = "from tests import needs\n@needs.strace\ndef test_one():\n    assert True\n"
UNKNOWN: Final = "import pytest\n@pytest.mark.need('moon')\ndef test_one():\n    assert True\n"


def outcome(directory: Path, text: str, **environment: str) -> str:
    """Return the last line of a pytest run of ``text`` on a machine without programs."""
    path = directory / "test_needy.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "-p",
         "tests.conftest", path],
        cwd=ROOT, env={"PATH": "/nowhere", **environment}, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "1 skipped"), ({"CI": "true"}, "1 error"), ({"LAUNCHER_MUST_RUN": "1"}, "1 error")],
)
def test_an_unmet_need_skips_and_in_ci_fails(
    tmp_path: Path, environment: dict[str, str], expected: str
) -> None:
    """Without strace a test that needs it is skipped; where all must run it is an error."""
    assert outcome(tmp_path, NEEDY, **environment).startswith(expected)


def test_an_unknown_need_is_an_error(tmp_path: Path) -> None:
    """A misspelt need does not pass for one that is met."""
    assert outcome(tmp_path, UNKNOWN).startswith("1 error")


@pytest.mark.parametrize("name", sorted(needs.PROBES))
def test_a_probe_gives_a_reason_or_nothing(name: str) -> None:
    """Every probe runs on every machine and answers with a text."""
    assert isinstance(needs.unmet(name), str)
