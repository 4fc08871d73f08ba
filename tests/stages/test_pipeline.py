"""The whole pipeline from the manager's side: start, hand over, and every way to end early."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from nsstages import pipeline
from nsstages.bootstrap import Bootstrap
from nsstages.channel import close_all
from nsstages.errors import PeerDied, StageFailed
from nsstages.idmap import IdRange
from nsstages.init_config import InitConfig, MountPlan, Process, Root, Source
from nsstages.messages import CHILD, COMM, INIT, MANAGER, PARENT, Word
from nsstages.pipeline import Pipeline
from nsstages.trace import Recorder, create_sink, read_sink
from tests import needs
from tests.stages.neighbour import (
    SECONDS,
    children_of,
    comm_of,
    in_child,
    namespaces_of,
    program,
    shell,
    status_of,
    until,
    wait_for,
)

MAP = (IdRange(0, 100000, 1000),)
FULL = Bootstrap(create=("user", "mnt", "pid", "uts", "ipc", "net"), uid_map=MAP, gid_map=MAP)


@pytest.fixture
def start() -> Iterator[Callable[..., Pipeline]]:
    """Start pipelines; all are aborted afterwards."""
    started: list[Pipeline] = []

    def start(bootstrap: Bootstrap, recorder: Recorder | None = None) -> Pipeline:
        started.append(pipeline.start(bootstrap, [], recorder or Recorder(MANAGER)))
        return started[-1]

    yield start
    for one in started:
        one.abort()


def finish(running: Pipeline, process: Process, **options: object) -> int:
    """Be the manager to the end of the program; return its exit code."""
    pid = running.receive_pids()
    running.configure(InitConfig(process, **options))  # type: ignore[arg-type]
    close_all(running.init.expect(Word.READY, timeout=SECONDS).fds)
    running.init.send(Word.RUN)
    status = wait_for(pid)
    running.stage2_pid = 0
    return status


def stages() -> list[str]:
    """Return the names of our children that are stages; adopted ones that are dead are reaped."""
    names = set(COMM.values())
    found = []
    for pid in children_of(os.getpid()):
        with suppress(FileNotFoundError, ChildProcessError):
            if (name := comm_of(pid)) in names and not os.waitpid(pid, os.WNOHANG)[0]:
                found.append(name)
    return found


@needs.root
def test_it_runs_a_program(start: Callable[..., Pipeline]) -> None:
    """Stages 0 and 1 are gone, stage 2 is the manager's child and becomes the program."""
    running = start(FULL)

    assert 7 == finish(running, shell("test $$ = 1 && exit 7"))
    assert [] == stages()


@needs.root
def test_two_pipelines_do_not_disturb_each_other(start: Callable[..., Pipeline]) -> None:
    """A manager can have several at a time; each has its own stage 2."""
    one, two = start(FULL), start(FULL)
    first, second = one.receive_pids(), two.receive_pids()

    assert not set(namespaces_of(first).values()) & (
        set(namespaces_of(second).values()) - set(namespaces_of("self").values())
    )
    one.abort()
    assert COMM[INIT] == comm_of(second)


@needs.root
@pytest.mark.parametrize("moment", ["started", "pids", "configured", "ready"])
def test_abort_leaves_nothing(start: Callable[..., Pipeline], moment: str) -> None:
    """Whatever the pipeline is doing, abort() ends and reaps all its processes, at once."""
    running = start(FULL)
    if moment != "started":
        running.receive_pids()
    if moment in ("configured", "ready"):
        running.configure(InitConfig(shell("sleep 1000")))
    if moment == "ready":
        close_all(running.init.expect(Word.READY, timeout=SECONDS).fds)
    started = time.monotonic()
    running.abort()
    running.abort()

    assert time.monotonic() - started < 1
    until(lambda: not stages(), "stages are left")
    assert [] == stages()


@needs.root
def test_the_death_of_stage_0_is_told(start: Callable[..., Pipeline]) -> None:
    """A manager that waits for the pids learns who died, how, and what was due."""
    running = start(FULL)
    os.kill(running.stage0_pid, signal.SIGKILL)
    with pytest.raises(StageFailed) as raised:
        running.receive_pids()

    failure = raised.value.failure
    assert (PARENT, "before PIDS", "died (SIGKILL)") == (failure.stage, failure.step, failure.text)
    running.abort()
    until(lambda: not stages(), "stages 1 and 2 survived stage 0")


@needs.root
def test_the_death_of_stage_2_is_told(start: Callable[..., Pipeline]) -> None:
    """Before CONFIG and after it: who died, how, and what was due."""
    running = start(FULL)
    os.kill(running.receive_pids(), signal.SIGKILL)
    until(lambda: status_of(running.stage2_pid)["State"].startswith("Z"), "it lives")
    with pytest.raises(StageFailed, match=r"stage 2 .*before taking CONFIG: died \(SIGKILL\)"):
        running.configure(InitConfig(shell("true")))

    other = start(FULL)
    other.receive_pids()
    os.kill(other.stage2_pid, signal.SIGKILL)
    with pytest.raises(PeerDied) as died:
        other.init.expect(Word.STARTED, timeout=SECONDS)
    assert "died (SIGKILL)" in str(other.death_of_init(died.value))


@needs.root
@pytest.mark.parametrize("delay", [0, 0.001, 0.003, 0.006, 0.01, 0.02])
def test_nothing_outlives_a_killed_manager(delay: float) -> None:
    """When the manager is killed, at whatever moment, all stages end by themselves."""
    manager = os.fork()
    if not manager:
        try:
            pipeline.start(FULL, [], Recorder(MANAGER)).receive_pids()
            signal.pause()
        finally:
            os._exit(1)
    time.sleep(delay)
    os.kill(manager, signal.SIGKILL)
    wait_for(manager)

    until(lambda: not stages(), "stages survived the manager")


@needs.root
def test_the_trace_is_in_causal_order(start: Callable[..., Pipeline]) -> None:
    """Over all processes a word is received after it was sent; each process has its own time."""
    sink = create_sink()
    running = start(FULL, Recorder(MANAGER, sink))
    finish(running, shell("true"))
    events = read_sink(sink)
    os.close(sink)

    sent = [(e["process"], e["peer"], e["word"]) for e in events if e["kind"] == "word.sent"]
    for position, event in enumerate(events):
        if event["kind"] == "word.received":
            word = (event["peer"], event["process"], event["word"])
            before = [(e["process"], e.get("peer"), e.get("word")) for e in events[:position]
                      if e["kind"] == "word.sent"]  # fmt: skip
            assert word in before, word
    assert (INIT, MANAGER, "READY") in sent
    for process in (MANAGER, PARENT, CHILD, INIT):
        clocks = [e["clock"] for e in events if e["process"] == process]
        assert all(one < other for one, other in pairwise(clocks)), process


@needs.root
def test_what_a_killed_process_wrote_stays(start: Callable[..., Pipeline]) -> None:
    """The trace has the steps of a stage up to its SIGKILL."""
    sink = create_sink()
    running = start(FULL, Recorder(MANAGER, sink))
    os.kill(running.receive_pids(), signal.SIGKILL)
    kinds = {(e["process"], e["kind"]) for e in read_sink(sink)}
    os.close(sink)

    assert (INIT, "process.start") in kinds
    assert (INIT, "process.end") not in kinds


# --- without rights


def rootless(*maps: IdRange, helped: bool) -> Bootstrap:
    """Return what an ordinary user's pipeline creates."""
    return Bootstrap(
        create=("user", "mnt", "pid", "uts", "ipc", "net"),
        rootless=True,
        uid_map=maps,
        gid_map=maps,
        setgroups=helped,
        newuidmap=shutil.which("newuidmap") or "" if helped else "",
        newgidmap=shutil.which("newgidmap") or "" if helped else "",
    )


def run_here(bootstrap: Bootstrap) -> str:
    """Run a program in a new pipeline of this process; return what it prints."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    os.dup2(write_fd, 1)
    running = pipeline.start(bootstrap, [], Recorder(MANAGER))
    plan = MountPlan(Source.NEW, "proc", "/proc", kind="proc")
    script = "id -u; cat /proc/self/uid_map /proc/self/setgroups; hostname"
    status = finish(running, shell(script), root=Root.DIRECTORY, root_path="/", mounts=(plan,),
                    hostname="mine", rootless=True)  # fmt: skip
    os.close(write_fd)
    os.close(1)
    with os.fdopen(read_fd) as output:
        return f"{status} {output.read()}"


@needs.root
@needs.user
@needs.userns
def test_an_ordinary_user_is_root_inside() -> None:
    """Without any helper: one id, setgroups denied, and full rights in namespaces of one's own."""
    uid = pwd.getpwnam(needs.USER).pw_uid

    bootstrap = rootless(IdRange(0, uid, 1), helped=False)
    words = in_child(lambda: run_here(bootstrap), needs.USER).split()

    assert ["0", "0", "0", str(uid), "1", "deny", "mine"] == words


@needs.root
@needs.user
@needs.userns
def test_an_ordinary_user_has_their_subordinate_ids() -> None:
    """newuidmap and newgidmap write the ranges of /etc/subuid; setgroups stays allowed."""
    uid = pwd.getpwnam(needs.USER).pw_uid
    first = subordinate(needs.USER)
    maps = (IdRange(0, uid, 1), IdRange(1, first, 1000))
    words = in_child(lambda: run_here(rootless(*maps, helped=True)), needs.USER).split()

    expected = ["0", "0", "0", str(uid), "1", "1", str(first), "1000", "allow", "mine"]
    assert expected == words


@needs.root
@needs.user
@needs.userns
def test_ids_that_are_not_ones_own_are_refused() -> None:
    """The error is stage 0's, carries the helper's own words, and says what to look at."""
    maps = (IdRange(0, 0, 10),)

    def job() -> str:
        running = pipeline.start(rootless(*maps, helped=True), [], Recorder(MANAGER))
        try:
            running.receive_pids()
        except StageFailed as error:
            running.abort()
            return f"{error}\n{error.hint}"
        return "no error"

    line, hint = in_child(job, needs.USER).splitlines()
    assert line.startswith(f"{PARENT}: write id maps: write: ")
    assert "newgidmap" in line
    assert "not allowed" in line
    assert "/etc/subuid" in hint


def subordinate(user: str) -> int:
    """Return the first subordinate id of a user."""
    lines = Path("/etc/subuid").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{user}:")).split(":")[1])


@needs.root
def test_a_program_without_a_path_is_not_found(start: Callable[..., Pipeline]) -> None:
    """What stage 2 says of its exec reaches the manager as StageFailed."""
    running = start(Bootstrap())
    running.receive_pids()
    running.configure(InitConfig(program("no-such-program")))
    close_all(running.init.expect(Word.READY, timeout=SECONDS).fds)
    running.init.send(Word.RUN)
    with pytest.raises(StageFailed, match="no-such-program: not found in PATH"):
        running.init.expect(Word.STARTED, timeout=SECONDS)
