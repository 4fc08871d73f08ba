"""Stage 1 with the test as its stage 0: what it joins and makes, and who is told when it fails."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from nsstages import mounts
from nsstages.bootstrap import Bootstrap, FuseMount, TimeOffset, Tree
from nsstages.errors import Failure, PeerDied
from nsstages.idmap import IdRange, write_maps
from nsstages.messages import CHILD, COMM, INIT, Word
from nsstages.namespaces import FLAGS, Join
from tests import needs
from tests.stages.neighbour import (
    SECONDS,
    Forked,
    born,
    children_of,
    close_fds,
    comm_of,
    descriptors_of,
    expect_failure,
    hear,
    namespaces_of,
    opened,
    rows,
    say,
    stage_1,
    status_of,
    until,
    wait_for,
)

pytestmark = needs.root

MAP = (IdRange(0, 100000, 1000),)
FIRST = (Word.USERMAP_PLS, Word.TIMEOFFSETS_PLS, Word.FUSE_FD, Word.RECVPID_PLS)
USER = Bootstrap(create=("user",), uid_map=MAP, gid_map=MAP, timeout=1)
TIME = Bootstrap(create=("time",), time_offsets=(TimeOffset("boottime", 5),), timeout=1)
PLAIN = Bootstrap(timeout=1)


def grant_maps(stage: Forked) -> None:
    """Be stage 0 for USERMAP_PLS."""
    hear(stage[CHILD], Word.USERMAP_PLS)
    write_maps(stage.pid, MAP, MAP, setgroups=True)
    stage[CHILD].send(Word.USERMAP_ACK)


def hear_pid(stage: Forked) -> int:
    """Wait for RECVPID_PLS; return stage 2's pid when it has its name."""
    pid = int(hear(stage[CHILD], Word.RECVPID_PLS).payload["pid"])
    until(lambda: comm_of(pid) == COMM[INIT], "stage 2 has no name")
    return pid


def finish(stage: Forked, pid: int) -> None:
    """Be stage 0 from RECVPID_ACK to the end of stage 1, then hang up on stage 2."""
    stage[CHILD].send(Word.RECVPID_ACK)
    hear(stage[CHILD], Word.CHILD_FINISH)
    assert 0 == stage.wait()
    stage.hang_up()
    assert 1 == wait_for(pid)


def failure_of(bootstrap: Bootstrap, *fds: int) -> Failure:
    """Return what a stage 1 that cannot do what it should says, before any other word."""
    with stage_1(bootstrap, fds) as stage:
        failure = expect_failure(stage[CHILD], *FIRST)
        assert 1 == stage.wait()
    assert CHILD == failure.stage
    return failure


def test_it_asks_for_its_maps_first() -> None:
    """At USERMAP_PLS it lives in a user namespace without maps, its other namespaces are old."""
    own = namespaces_of("self")
    bootstrap = Bootstrap(create=tuple(FLAGS), uid_map=MAP, gid_map=MAP)
    with stage_1(bootstrap) as stage:
        hear(stage[CHILD], Word.USERMAP_PLS)
        theirs = namespaces_of(stage.pid)

        assert {"user"} == {kind for kind in own if own[kind] != theirs[kind]}
        assert [] == rows(f"/proc/{stage.pid}/uid_map")
        assert COMM[CHILD] == comm_of(stage.pid)


def test_with_maps_it_makes_the_rest() -> None:
    """After USERMAP_ACK it is root of its namespace, unshares all else, and forks stage 2 there."""
    own = namespaces_of("self")
    with stage_1(Bootstrap(create=tuple(FLAGS), uid_map=MAP, gid_map=MAP)) as stage:
        grant_maps(stage)
        pid = hear_pid(stage)
        theirs, init = namespaces_of(stage.pid), namespaces_of(pid)

        assert ["100000"] * 4 == status_of(stage.pid)["Uid"].split()
        assert {"pid", "time"} == {kind for kind in own if own[kind] == theirs[kind]}
        assert not set(own.values()) & set(init.values())
        assert [pid] == children_of(stage.pid)
        assert (COMM[INIT], "1") == (comm_of(pid), status_of(pid)["NSpid"].split()[1])
        finish(stage, pid)


def test_the_time_offsets_come_before_anybody_lives_there() -> None:
    """At TIMEOFFSETS_PLS the time namespace exists for children, and there are none yet."""
    with stage_1(TIME) as stage:
        hear(stage[CHILD], Word.TIMEOFFSETS_PLS)
        inside = os.stat(f"/proc/{stage.pid}/ns/time_for_children").st_ino

        assert namespaces_of(stage.pid)["time"] != inside
        assert [] == children_of(stage.pid)
        Path(f"/proc/{stage.pid}/timens_offsets").write_text("boottime 5 0\n")
        stage[CHILD].send(Word.TIMEOFFSETS_ACK)
        finish(stage, hear_pid(stage))


@needs.fuse
def test_the_device_goes_up_and_stays_nowhere() -> None:
    """FUSE_FD carries /dev/fuse of a mount; the stages below keep the mount and not the device."""
    with stage_1(Bootstrap(create=("mnt",), fuse=(FuseMount("root"),))) as stage:
        message = hear(stage[CHILD], Word.FUSE_FD)

        assert "root" == message.payload["name"]
        assert ["/dev/fuse"] == [os.readlink(f"/proc/self/fd/{fd}") for fd in message.fds]
        pid = hear_pid(stage)
        assert "/dev/fuse" not in descriptors_of(pid).values()
        assert "/dev/fuse" not in descriptors_of(stage.pid).values()
        close_fds(message)  # aborts the connection: nobody would ever answer
        finish(stage, pid)


def test_kinds_are_joined_in_an_order_that_keeps_its_rights() -> None:
    """With rights outside the user namespace comes last, without them first."""
    kinds = ("user", "mnt", "net", "uts", "ipc", "cgroup", "time", "pid")
    joins = tuple(map(Join, kinds, range(8)))
    with (
        born(Bootstrap(create=tuple(FLAGS), uid_map=MAP, gid_map=MAP)) as (_, target),
        opened(f"/proc/{target}/ns/{kind}" for kind in kinds) as fds,
    ):
        for rootless, place in ((False, -1), (True, 0)):
            with stage_1(Bootstrap(joins=joins, rootless=rootless), fds) as stage:
                finish(stage, hear_pid(stage))
                steps = [step for step in stage.steps() if step.startswith("join ")]

                assert "join user namespace" == steps[place]
                assert len(kinds) == len(steps)


def test_nothing_of_its_parent_leaks() -> None:
    """It has its streams, its channels and the bootstrap's descriptors, and nothing else."""
    with opened(["/etc/passwd"]) as fds, stage_1(USER, fds) as stage:
        os.set_inheritable(fds[0], True)
        leaked = os.open("/etc/group", os.O_RDONLY)
        hear(stage[CHILD], Word.USERMAP_PLS)
        targets = descriptors_of(stage.pid)
        os.close(leaked)

        assert {0, 1, 2} < targets.keys()
        sockets = [target for target in targets.values() if target.startswith("socket:")]
        assert 3 == len(sockets)
        others = {t for fd, t in targets.items() if fd > 2 and not t.startswith("socket:")}
        assert {"/etc/passwd", "/memfd:launcher-trace (deleted)"} == others


def test_it_cannot_be_looked_at_from_inside() -> None:
    """It is not dumpable, but for the moment in which its maps are written: /proc/PID is root's."""
    with stage_1(Bootstrap(create=("user", "mnt"), uid_map=MAP, gid_map=MAP)) as stage:
        grant_maps(stage)
        pid = hear_pid(stage)

        assert ["100000"] * 4 == status_of(stage.pid)["Uid"].split()
        assert 0 == os.stat(f"/proc/{stage.pid}/mem").st_uid
        assert 0 == os.stat(f"/proc/{pid}/mem").st_uid
        finish(stage, pid)


def test_nothing_is_imported_after_the_door_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import after a join, of a module that exists, fails the stage by the module's name."""

    def make_private() -> None:
        import this

        del this

    monkeypatch.setattr(mounts, "make_private", make_private)
    with stage_1(Bootstrap(create=("mnt",))) as stage:
        failure = expect_failure(stage[CHILD], Word.RECVPID_PLS)

        assert "this: nothing is imported after a join" in failure.text
        assert 1 == stage.wait()


def test_a_dead_target_is_not_joined() -> None:
    """When the target has ended in the meantime its namespaces are somebody else's business."""
    child = os.fork()
    if not child:
        os._exit(0)
    pidfd = os.pidfd_open(child)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    try:
        with opened(["/proc/self/ns/net"]) as fds:
            bootstrap = Bootstrap(joins=(Join("net", 0),), target_pidfd=1)
            failure = failure_of(bootstrap, *fds, pidfd)

            assert "the target has exited" == failure.text
    finally:
        os.waitpid(child, 0)
        os.close(pidfd)


def test_a_namespace_of_another_kind_is_not_joined() -> None:
    """A file of the wrong kind is a failure of the join, by system call and errno."""
    with opened(["/proc/self/ns/net"]) as fds:
        failure = failure_of(Bootstrap(joins=(Join("uts", 0),)), *fds)

    assert ("join uts namespace", "setns", 22) == (failure.step, failure.syscall, failure.errno)


def test_a_tree_that_is_missing_fails_where_it_is_required() -> None:
    """A required tree is an error with its path; another is left out."""
    tree = Tree("t", "/nonexistent", "outside")
    failure = failure_of(Bootstrap(trees=(tree,)))

    assert ("clone /nonexistent", "open_tree", 2) == (failure.step, failure.syscall, failure.errno)
    optional = Tree("t", "/nonexistent", "outside", required=False)
    with stage_1(Bootstrap(trees=(optional,))) as stage:
        finish(stage, hear_pid(stage))


@pytest.mark.parametrize(
    ("bootstrap", "word", "wrong"),
    [
        (USER, Word.USERMAP_PLS, "RECVPID_ACK"),
        (TIME, Word.TIMEOFFSETS_PLS, "USERMAP_ACK"),
        (PLAIN, Word.RECVPID_PLS, "GRANDCHILD"),
    ],
    ids=["maps", "offsets", "pid"],
)
def test_a_wrong_answer_is_refused(bootstrap: Bootstrap, word: Word, wrong: str) -> None:
    """Each request takes its own answer only; the error names what was expected and what came."""
    with stage_1(bootstrap) as stage:
        hear(stage[CHILD], word)
        below = children_of(stage.pid)
        say(stage[CHILD], wrong)
        failure = expect_failure(stage[CHILD])

        assert f"got {wrong}" in failure.text
        assert word.replace("PLS", "ACK") in failure.text
        assert 1 == stage.wait()
        stage.hang_up()
        for pid in below:
            assert 1 == wait_for(pid)


@pytest.mark.parametrize(
    ("bootstrap", "word"),
    [(USER, Word.USERMAP_PLS), (TIME, Word.TIMEOFFSETS_PLS), (PLAIN, Word.RECVPID_PLS)],
    ids=["maps", "offsets", "pid"],
)
def test_silence_is_not_waited_out(bootstrap: Bootstrap, word: Word) -> None:
    """Without an answer each request fails after the bootstrap's deadline."""
    with stage_1(bootstrap) as stage:
        hear(stage[CHILD], word)
        below = children_of(stage.pid)
        answer = word.replace("PLS", "ACK")

        assert f"no {answer} from stage 0 (PARENT) within 1 s" in expect_failure(stage[CHILD]).text
        assert 1 == stage.wait()
        stage.hang_up()
        for pid in below:
            assert 1 == wait_for(pid)


@pytest.mark.parametrize(
    ("bootstrap", "word"),
    [
        (USER, None),
        (USER, Word.USERMAP_PLS),
        (TIME, Word.TIMEOFFSETS_PLS),
        (PLAIN, Word.RECVPID_PLS),
    ],
    ids=["start", "maps", "offsets", "pid"],
)
def test_it_ends_when_stage_0_hangs_up(bootstrap: Bootstrap, word: Word | None) -> None:
    """At each word: without a stage 0 it ends at once, and stage 2 with it."""
    with stage_1(bootstrap) as stage:
        if word is not None:
            hear(stage[CHILD], word)
        below = children_of(stage.pid)
        stage.hang_up()

        assert 1 == stage.wait()
        for pid in below:
            assert 1 == wait_for(pid)


def test_it_says_nothing_after_child_finish() -> None:
    """Its channel closes with its end, and stage 2 goes on without it."""
    with stage_1(PLAIN) as stage:
        pid = hear_pid(stage)
        stage[CHILD].send(Word.RECVPID_ACK)
        hear(stage[CHILD], Word.CHILD_FINISH)
        stage.wait()
        with pytest.raises(PeerDied):
            stage[CHILD].expect(Word.CHILD_FINISH, timeout=SECONDS)

        stage["grandchild"].send(Word.GRANDCHILD)
        hear(stage["grandchild"], Word.CHILD_FINISH)
        os.kill(pid, signal.SIGKILL)
        wait_for(pid)
