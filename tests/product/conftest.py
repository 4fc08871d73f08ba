"""Real containers for the product's tests.

`container` is one that the tests of a module share: a test leaves it as it found it. `start` makes
one for a single test. Both are gone afterwards, and that is checked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.product.container import Container
from tests.product.engines import CASES, Case, Engines
from tests.product.interactive import PROMPT
from tests.session import Session


@pytest.fixture(scope="session")
def engines(session: Session) -> Iterator[Engines]:
    """The container engines: engines["docker"] and so on."""
    engines = Engines(session)
    yield engines
    engines.stop_all()


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=pytest.mark.need(case.engine)) for case in CASES],
    ids=str,
)
def container(request: pytest.FixtureRequest, engines: Engines) -> Iterator[Container]:
    """A running container of each kind; parametrize it indirectly with Cases for some kinds."""
    case: Case = request.param
    container = engines.start(case)
    yield container
    container.engine.stop(container)


@pytest.fixture
def start(engines: Engines) -> Iterator[Callable[..., Container]]:
    """Start containers for one test: start("docker", "busybox", userns=False, ...)."""
    started: list[Container] = []

    def start(engine: str, image: str, *command: str, **wishes: object) -> Container:
        arguments = (image, command) if command else (image,)
        started.append(engines[engine].start(*arguments, **wishes))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for container in started:
        container.engine.stop(container)


@pytest.fixture
def home(unique_name: str) -> Iterator[Path]:
    """A person's home directory, not below /tmp: the shell then sees it through FUSE."""
    path = Path("/var/tmp", unique_name)
    path.mkdir(mode=0o755)
    (path / ".bash_profile").write_text(f"PS1='{PROMPT}'\nunset PROMPT_COMMAND\n")
    yield path
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def containers_unchanged(engines: Engines) -> Iterator[None]:
    """Fail the test that leaves a process in a container, or ends one that was there before it."""
    before = {container: container.processes() for container in engines.live()}
    ended = [container.spec for container, processes in before.items() if not processes]
    assert not ended, f"ended before this test: {ended}"
    yield
    for container in engines.live():
        known = before.get(container, frozenset({container.pid}))
        left = container.processes_beside(known)
        assert not left, f"{container.spec}: processes left behind: {left}"
