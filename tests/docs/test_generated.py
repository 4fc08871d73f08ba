"""The reference pages that are made from the code are those of the code in this checkout."""

from __future__ import annotations

import re

import pytest

from docs.generate import REFERENCE, pages


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_generated_page_is_current(name: str) -> None:
    """`.venv/bin/python docs/generate.py` would change nothing."""
    assert pages()[name] == (REFERENCE / name).read_text()


def test_every_command_and_key_is_in_the_reference() -> None:
    """The command line's page has each command, the configuration's page keys of every depth."""
    commands = re.findall(r"^## launcher (\w+)$", pages()["cli.md"], re.MULTILINE)
    keys = re.findall(r"^\| `([\w.\[\]]+)` \|", pages()["configuration.md"], re.MULTILINE)

    assert {"attach", "run", "exec", "explain", "schema", "report", "diagram"} <= set(commands)
    assert {"target", "target.pid", "root.native", "mounts[].type", "uid_map[].count"} <= set(keys)
