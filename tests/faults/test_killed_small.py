"""The launches without FUSE, killed at every word, and every helper killed while a program runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.messages import COMM, FUSE, INIT, SUPERVISOR, Word
from tests import needs
from tests.faults import test_killed
from tests.faults.killing import Point, launch_and_kill, launch_and_strike, points, survivors
from tests.product.container import Container

pytestmark = needs.root

SECONDS = 2.0
IDS = [{"inside": 0, "outside": 100000, "count": 1000}]
# What only FUSE, a supervisor or a reaper brings about.
HEAVY = frozenset({
    Word.OPTIONS, Word.FUSE_FD, Word.FUSE_SERVING, Word.SUPERVISE_PLS, Word.SUPERVISE_ACK,
    Word.STARTED, Word.EXITED, Word.FAILED,
})  # fmt: skip
NOT_IN_EXEC = HEAVY | {
    Word.USERMAP_PLS, Word.USERMAP_ACK, Word.TIMEOFFSETS_PLS, Word.TIMEOFFSETS_ACK,
    Word.MOUNT_FD_PLS, Word.MOUNT_FD,
}  # fmt: skip


@pytest.fixture
def run_words(tmp_path: Path) -> list[str]:
    """A run from a directory that says all words but the heavy ones: maps, time, a mount that only
    the manager can open, a terminal.
    """
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/sleep")
    root.chmod(0o777)
    secret = tmp_path / "secret"
    (secret / "data").mkdir(parents=True)
    secret.chmod(0o700)
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(above.stat().st_mode | 0o055)
    mounts = [{"type": kind, "target": target} for kind, target in
              (("proc", "/proc"), ("dev", "/dev"))]  # fmt: skip
    config = {
        "root": {"path": str(root)}, "namespaces": ["mnt", "uts", "ipc", "pid", "user", "time"],
        "uid_map": IDS, "gid_map": IDS, "time_offsets": {"monotonic": 1},
        "mounts": [*mounts, {"type": "bind", "source": str(secret / "data"), "target": "/d"}],
        "command": ["sleep", "60"], "terminal": True,
    }  # fmt: skip
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config))
    return ["run", "--config", str(path)]


@pytest.fixture(autouse=True)
def own_processes() -> Iterator[None]:
    """Fail when a process of a launch survives."""
    yield
    deadline = time.monotonic() + SECONDS
    while left := survivors():
        assert time.monotonic() < deadline, f"survived: {left}"
        time.sleep(0.02)


def test_no_word_is_forgotten() -> None:
    """Each word of the handshake is one at which some test kills both its speaker and listener."""
    heavy = points(without=test_killed.NOT_IN_RUN | {Word.FAILED})
    small = points(without=HEAVY)
    managers = points(without=HEAVY, manager=True) + points(
        without=test_killed.NOT_IN_ATTACH | {Word.FAILED}, manager=True
    )
    every = {str(p) for manager in (False, True)
             for p in points(without=frozenset({Word.FAILED}), manager=manager)}  # fmt: skip

    assert every == {str(point) for point in (*heavy, *small, *managers)}


def check(point: Point, arguments: list[str], directory: Path) -> None:
    """Kill, and look at what the user sees and what is left at once."""
    outcome = launch_and_kill(point, arguments, directory)

    assert outcome.was_killed, f"the point never came: {outcome.errors}"
    assert outcome.seconds < SECONDS
    assert 125 == outcome.status, outcome.errors
    assert point.victim in outcome.errors
    assert "died" in outcome.errors
    assert "Traceback" not in outcome.errors
    assert [] == survivors()


@pytest.mark.parametrize("point", points(without=HEAVY), ids=str)
def test_run(point: Point, run_words: list[str], tmp_path: Path) -> None:
    """A run whose victim dies ends within two seconds with an error that says who died."""
    check(point, run_words, tmp_path)


@needs.runc
@pytest.mark.parametrize("point", points(without=NOT_IN_EXEC), ids=str)
def test_exec(point: Point, reaping: Container, tmp_path: Path) -> None:
    """An exec whose victim dies ends within two seconds with an error that says who died."""
    check(point, ["exec", "-t", reaping.spec, "--", "sleep", "60"], tmp_path)


@pytest.mark.parametrize("point", points(without=HEAVY, manager=True), ids=str)
def test_manager_of_a_run(point: Point, run_words: list[str], tmp_path: Path) -> None:
    """When the manager dies, every process of its launch dies within two seconds."""
    outcome = launch_and_kill(point, run_words, tmp_path)

    assert (-9, True) == (outcome.status, outcome.was_killed)


@needs.runc
@pytest.mark.parametrize("point", points(without=NOT_IN_EXEC, manager=True), ids=str)
def test_manager_of_an_exec(point: Point, reaping: Container, tmp_path: Path) -> None:
    """When the manager dies, every process of its launch dies within two seconds."""
    words = ["exec", "-t", reaping.spec, "--", "sleep", "60"]
    outcome = launch_and_kill(point, words, tmp_path)

    assert (-9, True) == (outcome.status, outcome.was_killed)


@needs.fuse
@pytest.mark.parametrize("victim", [INIT, FUSE, SUPERVISOR])
@pytest.mark.parametrize("namespaces", [["mnt"], ["mnt", "pid", "user"]], ids=" ".join)
def test_while_a_program_runs(victim: str, namespaces: list[str], tmp_path: Path) -> None:
    """Reaper, FUSE server and supervisor are missed at once, the program ends, the error is
    about whom it was.
    """
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"root": {"source": "/", "fuse": True}, "namespaces": namespaces}))
    words = ["run", "--config", str(path), "--", "sleep", "60"]
    outcome = launch_and_strike(COMM[victim], words, tmp_path)

    assert 125 == outcome.status, outcome.errors
    assert outcome.seconds < SECONDS
    assert f"launcher: {victim}: " in outcome.errors
    assert "died (SIGKILL)" in outcome.errors
    assert [] == survivors()


@needs.fuse
@needs.runc
@pytest.mark.parametrize("victim", [INIT, FUSE, SUPERVISOR])
def test_while_an_attached_program_runs(victim: str, reaping: Container, tmp_path: Path) -> None:
    """The same in a container, which goes on as if nothing had been."""
    before = reaping.processes()
    words = ["attach", reaping.spec, "--", "sleep", "60"]
    outcome = launch_and_strike(COMM[victim], words, tmp_path)

    assert 125 == outcome.status, outcome.errors
    assert outcome.seconds < SECONDS
    assert f"launcher: {victim}: " in outcome.errors
    assert before == reaping.processes()
    assert os.path.exists(f"/proc/{reaping.pid}")
