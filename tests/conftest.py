"""The suite's house rules: needs are probed once, and a test leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from tests import leaks, needs, podman
from tests.session import Session, new_session_id

_session = pytest.StashKey[Session]()
_keeper = pytest.StashKey[int]()
_keeper_process = pytest.StashKey["subprocess.Popen[bytes]"]()


def pytest_configure(config: pytest.Config) -> None:
    """Become a subreaper with a name and a directory; the controller also starts the keeper."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        # A background job or nohup ignores them; what a test starts must not inherit that.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: None)
    given = getattr(config, "workerinput", None)
    if given is None:
        session = Session(new_session_id(), "main")
        process = _start_keeper(session)
        config.stash[_keeper_process] = process
        config.stash[_keeper] = process.pid
    else:
        session = Session(given["launcher_session"], given["workerid"])
        config.stash[_keeper] = given["launcher_keeper"]
    session.make_directories()
    config.stash[_session] = session
    # Whatever a test makes has this worker's name in its path, so that nobody else is blamed.
    tempfile.tempdir = os.environ["TMPDIR"] = str(session.temporary)
    config.option.basetemp = str(session.own / "tests")
    podman.write_settings(session)
    os.environ.update(podman.environment(session))
    leaks.record_forks()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: object) -> None:
    """Tell a worker its session (pytest-xdist calls this in the controller)."""
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    node.workerinput["launcher_session"] = config.stash[_session].session_id  # type: ignore[attr-defined]
    node.workerinput["launcher_keeper"] = config.stash[_keeper]  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let the keeper clean up and wait for it: a late daemon must not outlive the session."""
    process = config.stash.get(_keeper_process, None)
    if process is not None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def _start_keeper(session: Session) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.keeper", session.session_id],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as answer:
        if answer.readline() != b"ready\n":
            raise pytest.UsageError("the keeper of the test session did not start")
    return process


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose needs this machine does not meet; in CI fail it."""
    for mark in item.iter_markers("need"):
        reason = needs.unmet(mark.args[0])
        if reason and needs.must_run():
            pytest.fail(f"needs {mark.args[0]}: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    """Who the worker is: unique names, its directory, its cgroup."""
    return pytestconfig.stash[_session]


@pytest.fixture
def unique_name(session: Session) -> str:
    """A name that no other test, worker or session uses."""
    return session.unique_name()


@pytest.fixture(autouse=True)
def nothing_left_behind(pytestconfig: pytest.Config, session: Session) -> Iterator[None]:
    """Fail the test that leaves a process, descriptor, mount, cgroup or file behind."""
    keeper = pytestconfig.stash[_keeper]
    before = leaks.take(session, keeper)
    yield
    leaked = leaks.left_behind(before, lambda: leaks.take(session, keeper))
    if leaked:
        pytest.fail("left behind:\n  " + "\n  ".join(leaked), pytrace=False)
