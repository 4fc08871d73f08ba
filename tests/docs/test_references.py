"""What the documentation points to is there: pages, headings, files and names of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted((ROOT / "docs").rglob("*.md"))
_LINK: Final = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
_FILE: Final = re.compile(r"`((?:nsstages|launcher|tests|docs)/[\w/]+\.(?:py|md|sh))`")
_NAME: Final = re.compile(r"`((?:nsstages|launcher)(?:\.\w+)+)(?:\(|`)")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(page.read_text())
    return {"#" + re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def exists(name: str) -> bool:
    """Tell whether a dotted name of the code is a module, or something that a module defines."""
    parts = name.split(".")
    if ROOT.joinpath(*parts).with_suffix(".py").exists() or ROOT.joinpath(*parts).is_dir():
        return True
    module = ROOT.joinpath(*parts[:-1]).with_suffix(".py")
    defined = rf"^(?:def |class |async def )?{parts[-1]}\b"
    return module.exists() and bool(re.search(defined, module.read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    """Links lead to pages and headings, file names to files, dotted names to definitions."""
    text = page.read_text()
    links = [(page.parent / path if path else page, anchor) for path, anchor in _LINK.findall(text)]
    missing = [str(path) for path, _ in links if not path.exists()]
    missing += [a for path, a in links if a and path.exists() and a not in anchors(path)]
    missing += [name for name in _FILE.findall(text) if not (ROOT / name).exists()]
    missing += [name for name in _NAME.findall(text) if not exists(name)]

    assert [] == missing
