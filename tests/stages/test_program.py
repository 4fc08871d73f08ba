"""From stage 2 to the program: look-up, the order of the last steps, and who dies with whom."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from launcher.supervisor.notify import filter_program
from nsstages import pipeline
from nsstages.bootstrap import Bootstrap
from nsstages.channel import close_all
from nsstages.credentials import CapabilitySets, Credentials
from nsstages.init_config import InitConfig
from nsstages.messages import INIT, MANAGER, Word
from nsstages.program import candidates
from nsstages.trace import Recorder, read_sink
from tests import needs
from tests.stages.neighbour import (
    SECONDS,
    close_fds,
    configure,
    expect_failure,
    hear,
    program,
    run,
    shell,
    stage_2,
    wait_for,
)

pytestmark = needs.root


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("sh", "/bin:/usr/bin", ["/bin/sh", "/usr/bin/sh"]),
        ("sh", "/bin", ["/bin/sh"]),
        ("sh", "/bin::x", ["/bin/sh", "./sh", "x/sh"]),
        ("/bin/sh", "/usr/bin", ["/bin/sh"]),
        ("./sh", "/usr/bin", ["./sh"]),
        ("a/b", "/usr/bin", ["a/b"]),
    ],
)
def test_where_a_program_is_looked_up(name: str, path: str, expected: list[str]) -> None:
    """As execvp(3) does: PATH for plain names, an empty part is the current directory."""
    assert expected == list(candidates(name, path))


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Two directories with a program of the same name, of which the first may not be executed."""
    for name, mode in (("first", 0o644), ("second", 0o755)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(mode)
    return tmp_path


def test_what_may_not_be_executed_is_passed_over(tools: Path) -> None:
    """The search goes on behind a file without the permission."""
    with stage_2() as stage:
        stage["grandchild"].send(Word.GRANDCHILD)
        hear(stage["grandchild"], Word.CHILD_FINISH)
        env = (f"PATH={tools}/none:{tools}/first:{tools}/second",)
        configure(stage, InitConfig(program("tool", env=env)))

        assert (0, "second\n") == run(stage, stage.pid)


def test_a_refusal_is_worth_more_than_an_absence(tools: Path) -> None:
    """When nothing can be executed, what was found and refused is reported."""
    with stage_2() as stage:
        stage["grandchild"].send(Word.GRANDCHILD)
        hear(stage["grandchild"], Word.CHILD_FINISH)
        configure(stage, InitConfig(program("tool", env=(f"PATH={tools}/first:{tools}/none",))))
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)

        assert 13 == expect_failure(stage[INIT], Word.STARTED).errno


def test_the_last_steps_come_in_an_order_that_works() -> None:
    """Filter while there are rights, supervision, the gate, and only then the loss of rights."""
    rights = Credentials(4711, 4711, (), CapabilitySets())
    config = InitConfig(
        shell("id -u", credentials=rights), seccomp_notify=filter_program(), reaper=True
    )
    with stage_2() as stage:
        stage["grandchild"].send(Word.GRANDCHILD)
        hear(stage["grandchild"], Word.CHILD_FINISH)
        configure(stage, config)
        message = hear(stage[INIT], Word.SUPERVISE_PLS)
        stage[INIT].send(Word.SUPERVISE_ACK)
        close_fds(hear(stage[INIT], Word.READY))
        stage[INIT].send(Word.RUN)
        events = [
            event.get("step") or event["word"]
            for event in read_sink(stage.sink)
            if event["process"] == INIT and event["kind"] in ("step", "word.sent", "word.received")
        ]
        close_fds(message)  # without a listener exec is ENOSYS

        order = ["install the exec filter", "SUPERVISE_PLS", "SUPERVISE_ACK", "READY"]
        assert order == [name for name in events if name in order]
        assert "take the target's rights" not in events[: events.index("READY")]
        failure = expect_failure(stage[INIT], Word.STARTED)
        assert ("exec", 38) == (failure.step, failure.errno)


@pytest.mark.parametrize("reaper", [False, True])
@pytest.mark.parametrize("uid", [0, 4711])
def test_the_program_dies_with_the_manager(uid: int, reaper: bool) -> None:
    """A manager that is killed takes the program along, whoever it runs as."""
    read_fd, write_fd = os.pipe()
    manager = os.fork()
    if not manager:
        _run_and_wait(write_fd, uid, reaper=reaper)
    os.close(write_fd)
    assert b"up" == os.read(read_fd, 2)
    os.kill(manager, signal.SIGKILL)
    wait_for(manager)

    assert b"" == os.read(read_fd, 1)  # end of file: the program is gone
    os.close(read_fd)


def _run_and_wait(write_fd: int, uid: int, *, reaper: bool) -> None:
    try:
        os.dup2(write_fd, 1)
        os.close(write_fd)
        running = pipeline.start(Bootstrap(), [], Recorder(MANAGER))
        running.receive_pids()
        script = shell("printf up; exec sleep 1000", credentials=Credentials(uid, uid, ()))
        running.configure(InitConfig(script, reaper=reaper))
        close_all(running.init.expect(Word.READY, timeout=SECONDS).fds)
        running.init.send(Word.RUN)
        os.close(1)
        signal.pause()
    finally:
        os._exit(1)
