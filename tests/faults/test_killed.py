"""Every process of a launch, killed at every word: the launcher says who, and leaves nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.messages import MANAGER, Word
from tests import needs
from tests.faults.killing import Point, launch_and_kill, points, survivors
from tests.product.container import Container

pytestmark = [needs.root, needs.fuse]

RUN = {
    "root": {"source": "/", "fuse": True},
    "namespaces": ["mnt", "uts", "ipc", "pid", "user", "time"],
    "time_offsets": {"monotonic": 1},
    "command": ["true"],
}
NOT_IN_RUN = frozenset({Word.TERMINAL, Word.MOUNT_FD_PLS, Word.MOUNT_FD})
NOT_IN_ATTACH = NOT_IN_RUN | {
    Word.USERMAP_PLS, Word.USERMAP_ACK, Word.TIMEOFFSETS_PLS, Word.TIMEOFFSETS_ACK,
}  # fmt: skip
SECONDS = 2.0


@pytest.fixture
def run_json(tmp_path: Path) -> str:
    """A run that says every word but those of terminals and mounts."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RUN))
    return str(path)


def check(point: Point, arguments: list[str], directory: Path) -> None:
    """Kill and look at what the user sees."""
    outcome = launch_and_kill(point, arguments, directory)

    assert outcome.was_killed, f"the point never came: {outcome.errors}"
    assert outcome.seconds < SECONDS
    assert 125 == outcome.status, outcome.errors
    assert point.victim in outcome.errors
    assert "Traceback" not in outcome.errors


@pytest.mark.parametrize("point", points(without=NOT_IN_RUN | {Word.FAILED}), ids=str)
def test_run(point: Point, run_json: str, tmp_path: Path) -> None:
    """A run whose victim dies ends within two seconds with an error that names it."""
    check(point, ["run", "--config", run_json], tmp_path)


@needs.runc
@pytest.mark.parametrize("point", points(without=NOT_IN_ATTACH | {Word.FAILED}), ids=str)
def test_attach(point: Point, reaping: Container, tmp_path: Path) -> None:
    """An attach whose victim dies ends within two seconds with an error that names it."""
    check(point, ["attach", reaping.spec, "--", "true"], tmp_path)


@pytest.fixture
def own_processes() -> Iterator[None]:
    """Fail when a process of ours survives."""
    yield
    deadline = time.monotonic() + SECONDS
    while left := survivors():
        assert time.monotonic() < deadline, f"survived: {left}"
        time.sleep(0.02)


@needs.runc
@pytest.mark.parametrize(
    "point", points(without=NOT_IN_ATTACH | {Word.FAILED}, manager=True), ids=str
)
@pytest.mark.usefixtures("own_processes")
def test_manager_of_an_attach(point: Point, reaping: Container, tmp_path: Path) -> None:
    """When the manager dies, every process of its launch dies within two seconds."""
    assert MANAGER == point.victim
    command = ["true"] if point.word is Word.EXITED else ["sleep", "60"]
    outcome = launch_and_kill(point, ["attach", reaping.spec, "--", *command], tmp_path)

    assert -9 == outcome.status
    assert outcome.was_killed
