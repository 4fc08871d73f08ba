"""Every example in the documentation works as shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests import needs
from tests.docs.examples import Page
from tests.product.debian import locked
from tests.product.docker_engine import DockerEngine
from tests.session import Session

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@pytest.fixture
def readers_machine(session: Session) -> Iterator[Mapping[str, str]]:
    """The environment of a reader: `launcher` in the PATH and a docker container named web.

    The name is the same for all pages, so their tests run one at a time.
    """
    with locked(session.shared / "web.lock"):
        engine = DockerEngine(session)
        container = engine.start("busybox", name="web")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield {"PATH": path, **engine.environment}
        engine.stop(container)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@needs.docker
@needs.fuse
def test_examples_work(page: Path, tmp_path: Path, readers_machine: Mapping[str, str]) -> None:
    """What a page tells its reader to type gives what the page shows."""
    Page(page, tmp_path, readers_machine).run()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("```console\n$ echo one two\none ...\n$ echo three\nthree\n```\n", None),
        ("```console\n$ echo one\ntwo\n```\n", "page.md:1"),
        ("```console\n$ false\n```\n", "status 1"),
        ("```python\nprint(6 * 7)\n```\n\n```text\n42\n```\n", None),
        ("```python\nprint(6 * 7)\n```\n\n```text\n43\n```\n", "page.md:5"),
        ("```python\nprint(6 * 7)\n```\nProse.\n```text\na picture\n```\n", None),
        ("<!-- file: x.json -->\n```json\n{}\n```\n```console\n$ cat x.json\n{}\n```\n", None),
        ('<!-- file: attach.json -->\n```json\n{"taget": "web"}\n```\n', "taget"),
        ("<!--- skip: next -->\n```console\n$ false\n```\n", None),
    ],
)
def test_the_examples_are_really_run(text: str, complaint: str | None, tmp_path: Path) -> None:
    """An example that does not do what it shows fails with its line; others pass."""
    path = tmp_path / "page.md"
    path.write_text(text)
    page = Page(path, tmp_path, {})

    if complaint is None:
        page.run()
        return
    with pytest.raises(Exception, match=complaint):
        page.run()
