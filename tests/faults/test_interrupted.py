"""A signal to the launcher at every word: it ends as the program would, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nsstages.messages import Word
from tests import needs
from tests.faults.killing import Point, launch_and_kill, points
from tests.faults.test_killed import NOT_IN_ATTACH, NOT_IN_RUN, SECONDS
from tests.product.container import Container
from tests.session import Session

pytestmark = [needs.root, needs.fuse]

GATE = str(Point("manager", "stage 2 (INIT)", Word.RUN, is_sending=True))
STARTED = {Word.STARTED, Word.EXITED, Word.FAILED}


@pytest.fixture
def run_json(tmp_path: Path, session: Session, unique_name: str) -> str:
    """A run that has all that can be left behind: a state file, a cgroup, a FUSE mount."""
    config = {
        "name": unique_name,
        "cgroup": f"{session.cgroup}/{unique_name}",
        "root": {"source": "/", "fuse": True},
        "namespaces": ["mnt", "uts", "ipc", "pid", "user", "time"],
        "time_offsets": {"monotonic": 1},
        "command": ["sleep", "60"],
    }
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config))
    return str(path)


def check(point: Point, arguments: list[str], directory: Path, number: signal.Signals) -> None:
    """Send the signal to the manager; look at what the user sees."""
    outcome = launch_and_kill(
        point, arguments, directory, lambda launcher: os.kill(launcher, number)
    )

    assert outcome.was_killed, f"the point never came: {outcome.errors}"
    assert 128 + number == outcome.status, outcome.errors
    assert outcome.seconds < SECONDS
    told = f"launcher: {number.name} came before the program was started\n"
    assert outcome.errors in (told, "")
    # from the gate on the signal is the program's
    assert bool(outcome.errors) == (str(point) != GATE and point.word not in STARTED)


@pytest.mark.parametrize(
    "point", points(without=NOT_IN_RUN | {Word.FAILED, Word.EXITED}, manager=True), ids=str
)
def test_run(point: Point, run_json: str, tmp_path: Path) -> None:
    """SIGTERM ends a run at each word of its manager with 143; no state and no cgroup stays."""
    check(point, ["run", "--config", run_json], tmp_path, signal.SIGTERM)


OTHERS = [p for p in points(without=NOT_IN_ATTACH | STARTED) if p.is_sending]


@needs.runc
@pytest.mark.parametrize("point", OTHERS, ids=str)
def test_attach(point: Point, reaping: Container, tmp_path: Path) -> None:
    """SIGHUP while any other process of an attach is about to speak ends it with 129."""
    check(point, ["attach", reaping.spec, "--", "sleep", "60"], tmp_path, signal.SIGHUP)


@needs.runc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGTERM])
def test_every_signal(number: signal.Signals, reaping: Container, tmp_path: Path) -> None:
    """Whatever is forwarded to a program ends a launch that has none yet; an exec just so."""
    point = Point("manager", "stage 2 (INIT)", Word.READY, is_sending=False)
    check(point, ["exec", reaping.spec, "--", "sleep", "60"], tmp_path, number)
