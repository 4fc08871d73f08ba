"""The container for launches that fail.

Its first process reaps: when stage 2 is killed, the program below it dies too, but whose zombie it
is the kernel decides, and that is the container's pid 1. See docs/reference/limits.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.product.conftest import containers_unchanged, engines
from tests.product.container import Container
from tests.product.engines import Engines

__all__ = ["containers_unchanged", "engines"]


@pytest.fixture(scope="module")
def reaping(engines: Engines) -> Iterator[Container]:
    """A running container of runc."""
    container = engines["runc"].start("busybox", ("/bin/pause", "reap"))
    yield container
    container.engine.stop(container)
