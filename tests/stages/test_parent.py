"""Stage 0 with the test as its manager: what it does for stage 1, and what it says of its death."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher import new_cgroups
from launcher.targets.mounts import Mount, parse_mountinfo
from nsstages import idmap, stage0_parent, stage1_child
from nsstages.bootstrap import Bootstrap, TimeOffset
from nsstages.channel import Channel
from nsstages.errors import PeerDied
from nsstages.idmap import IdRange
from nsstages.init_config import InitConfig
from nsstages.messages import CHILD, COMM, INIT, PARENT, Word
from nsstages.namespaces import FLAGS, Join
from nsstages.process import run_to_exit
from nsstages.stage1_child import Sockets
from nsstages.trace import Recorder
from tests import needs
from tests.session import Session
from tests.stages.neighbour import (
    SECONDS,
    born,
    children_of,
    comm_of,
    configure,
    expect_failure,
    hear,
    namespaces_of,
    opened,
    rows,
    run,
    say,
    shell,
    stage_0,
    status_of,
    until,
    wait_for,
)

pytestmark = needs.root

MAP = (IdRange(0, 100000, 1000), IdRange(1000, 0, 1))
ALL = tuple(FLAGS)
NEW_USER = Bootstrap(create=("user", "mnt"), uid_map=MAP, gid_map=MAP)


def test_the_words_come_in_their_order() -> None:
    """From BOOTSTRAP to PIDS every word of the drawing is said, in the order of the drawing."""
    bootstrap = Bootstrap(
        create=("user", "time"), uid_map=MAP, gid_map=MAP,
        time_offsets=(TimeOffset("monotonic", 100),),
    )  # fmt: skip
    with born(bootstrap) as (stage, _):
        expected = [
            ("test as manager", "BOOTSTRAP"),
            (CHILD, "USERMAP_PLS"),
            (PARENT, "USERMAP_ACK"),
            (CHILD, "TIMEOFFSETS_PLS"),
            (PARENT, "TIMEOFFSETS_ACK"),
            (CHILD, "RECVPID_PLS"),
            (PARENT, "RECVPID_ACK"),
            (CHILD, "CHILD_FINISH"),
            (PARENT, "GRANDCHILD"),
            (INIT, "CHILD_FINISH"),
            (PARENT, "PIDS"),
        ]

        assert expected == stage.words()


def test_all_eight_kinds_are_created() -> None:
    """Stage 2 lives in a new namespace of each of the eight kinds."""
    own = namespaces_of("self")
    with born(Bootstrap(create=ALL, uid_map=MAP, gid_map=MAP)) as (_, pid):
        theirs = namespaces_of(pid)

    assert set(ALL) == theirs.keys()
    assert not set(own.values()) & set(theirs.values())


def test_all_eight_kinds_are_joined() -> None:
    """A second stage 2 lives in the very namespaces of the first, its user namespace included."""
    with (
        born(Bootstrap(create=ALL, uid_map=MAP, gid_map=MAP)) as (_, target),
        opened(f"/proc/{target}/ns/{kind}" for kind in ALL) as fds,
        born(Bootstrap(joins=tuple(map(Join, ALL, range(8)))), fds) as (stage, pid),
    ):
        assert namespaces_of(target) == namespaces_of(pid)
        assert "join user namespace" == [s for s in stage.steps() if s.startswith("join")][-1]


def test_only_what_is_asked_for_is_new() -> None:
    """Kinds that are neither created nor joined stay the manager's."""
    own = namespaces_of("self")
    with born(Bootstrap(create=("uts",))) as (_, pid):
        theirs = namespaces_of(pid)

    assert {"uts"} == {kind for kind in own if own[kind] != theirs[kind]}


@pytest.mark.parametrize(("setgroups", "text"), [(True, "allow"), (False, "deny")])
def test_the_maps_are_written(setgroups: bool, text: str) -> None:
    """uid_map, gid_map and setgroups of the new user namespace are those of the bootstrap."""
    gid_map = (IdRange(0, 200000, 10),)
    bootstrap = Bootstrap(create=("user",), uid_map=MAP, gid_map=gid_map, setgroups=setgroups)
    with born(bootstrap) as (_, pid):
        proc = Path(f"/proc/{pid}")

        assert [["0", "100000", "1000"], ["1000", "0", "1"]] == rows(proc / "uid_map")
        assert [["0", "200000", "10"]] == rows(proc / "gid_map")
        assert [[text]] == rows(proc / "setgroups")


def test_stage_2_is_root_of_the_new_user_namespace() -> None:
    """Outside it is the id that 0 maps to."""
    with born(NEW_USER) as (_, pid):
        assert ["100000"] * 4 == status_of(pid)["Uid"].split()
        assert ["100000"] * 4 == status_of(pid)["Gid"].split()


def test_the_new_time_namespace_has_its_offsets() -> None:
    """The program's clocks are shifted by what the bootstrap says."""
    offsets = (TimeOffset("monotonic", 1000, 5), TimeOffset("boottime", 70000))
    with born(Bootstrap(create=("time",), time_offsets=offsets)) as (stage, pid):
        assert [["monotonic", "1000", "5"], ["boottime", "70000", "0"]] == rows(
            Path(f"/proc/{pid}/timens_offsets")
        )
        host = float(Path("/proc/uptime").read_text().split()[0])
        configure(stage, InitConfig(shell("cat /proc/uptime")))
        status, output = run(stage, pid)

    assert 0 == status
    assert 70000 == pytest.approx(float(output.split()[0]) - host, abs=SECONDS)


def test_oom_score_adj_is_set() -> None:
    """Stage 2 and the program have the score, the manager keeps its own."""
    own = Path("/proc/self/oom_score_adj").read_text()
    with born(Bootstrap(oom_score_adj=321)) as (_, pid):
        assert "321\n" == Path(f"/proc/{pid}/oom_score_adj").read_text()
    assert own == Path("/proc/self/oom_score_adj").read_text()


@pytest.fixture
def cgroups(session: Session) -> Iterator[list[str]]:
    """A new cgroup in every hierarchy, of version 1 and 2."""
    name = session.unique_name()
    made: list[str] = []
    paths = [f"{m.mount_point}/{name}" for m in _mounts() if m.fs_type in ("cgroup", "cgroup2")]
    for path in paths:
        os.close(new_cgroups.create(path, made))
    yield paths
    for path in reversed(made):
        new_cgroups.remove(path)


def _mounts() -> tuple[Mount, ...]:
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


def test_every_hierarchy_is_entered(cgroups: list[str]) -> None:
    """Stage 2 is in the given cgroup of every hierarchy, of version 1 and 2."""
    bootstrap = Bootstrap(cgroups=tuple(range(len(cgroups))))
    with opened(cgroups) as fds, born(bootstrap, fds) as (_, pid):
        name = os.path.basename(cgroups[0])
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()

        assert len(cgroups) == sum(line.endswith(f"/{name}") for line in lines)
        assert all(str(pid) in Path(path, "cgroup.procs").read_text().split() for path in cgroups)


def test_a_cgroup_that_cannot_be_entered_is_named() -> None:
    """The error has the directory of the hierarchy that refused."""
    with opened(["/tmp"]) as fds, stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, Bootstrap(cgroups=(0,)).pack(), fds)
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert (PARENT, "enter cgroups") == (failure.stage, failure.step)
        assert 1 == stage.wait()


def test_processes_have_their_names() -> None:
    """ps shows which stage a process is."""
    with stage_0() as stage:
        until(lambda: comm_of(stage.pid) == COMM[PARENT], "stage 0 has no name")
        stage[PARENT].send(Word.BOOTSTRAP, NEW_USER.pack())
        pid = hear(stage[PARENT], Word.PIDS).payload["stage2"]

        assert COMM[INIT] == comm_of(pid)
        stage.wait()
        stage.hang_up()
        stage.wait(pid)


def test_pids_are_the_hosts() -> None:
    """PIDS names stage 2 as the manager counts, also in a new PID namespace; its parent is the
    manager, and nothing else is left.
    """
    with born(Bootstrap(create=("pid",))) as (_, pid):
        assert COMM[INIT] == comm_of(pid)
        assert pid in children_of(os.getpid())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": 2}, "Bootstrap.version"),
        ({"extra": 1}, "Bootstrap.extra"),
        ({"create": ["moon"]}, "Bootstrap.create[0]"),
        ({"create": "user"}, "Bootstrap.create"),
        ({"create": ["user"]}, "Bootstrap.uid_map"),
        ({"joins": [{"kind": "net", "fd": 3}]}, "Bootstrap.joins[0].fd"),
        ({"joins": [{"kind": "net"}]}, "Bootstrap.joins[0].fd"),
        ({"uid_map": [{"inside": 0, "outside": 0, "count": 0}]}, "Bootstrap.uid_map[0]"),
        ({"time_offsets": [{"clock": "tai", "secs": 1, "nanosecs": 0}]},
         "Bootstrap.time_offsets[0].clock"),
        ({"oom_score_adj": 2000}, "Bootstrap.oom_score_adj"),
        ({"cgroups": [0]}, "Bootstrap.cgroups[0]"),
        ({"rootless": "no"}, "Bootstrap.rootless"),
    ],
)  # fmt: skip
def test_a_malformed_bootstrap_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    """The manager is told which field is wrong, before anything is forked."""
    with stage_0() as stage:
        say(stage[PARENT], Word.BOOTSTRAP, Bootstrap().pack() | change)
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert PARENT == failure.stage
        assert failure.text.startswith(f"{field}: "), failure
        assert 1 == stage.wait()
        assert [(PARENT, "FAILED")] == stage.words()


@pytest.mark.parametrize("payload", [[1], "text", None, 7], ids=str)
def test_a_payload_that_is_no_map_is_refused(payload: object) -> None:
    """Only a map of fields is a bootstrap."""
    with stage_0() as stage:
        say(stage[PARENT], Word.BOOTSTRAP, [] if payload is None else payload)

        assert "a map expected" in expect_failure(stage[PARENT], Word.PIDS).text
        assert 1 == stage.wait()


@pytest.mark.parametrize("word", ["PIDS", "CONFIG", "RUN", "NONSENSE"])
def test_a_wrong_word_is_refused(word: str) -> None:
    """Whatever else than BOOTSTRAP comes first ends stage 0 with an error that names it."""
    with stage_0() as stage:
        say(stage[PARENT], word)
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert PARENT == failure.stage
        assert word in failure.text or "not a word" in failure.text
        assert 1 == stage.wait()


def test_it_ends_when_the_manager_hangs_up() -> None:
    """Without a manager stage 0 ends at once."""
    with stage_0() as stage:
        stage.hang_up()

        assert 1 == stage.wait()


Main = Callable[[Bootstrap, object, Sockets, Recorder], None]


def scripted(*words: Word, end: Callable[[], None]) -> Main:
    """Return a stage 1 that says these words, takes the answers, and comes to its end."""

    def main(_bootstrap: Bootstrap, _fds: object, sockets: Sockets, recorder: Recorder) -> None:
        parent = Channel(sockets.child, CHILD, PARENT, recorder)

        def job() -> None:
            for word in words:
                parent.send(word, {"pid": os.getpid()})
                answers = {
                    Word.USERMAP_PLS: Word.USERMAP_ACK,
                    Word.TIMEOFFSETS_PLS: Word.TIMEOFFSETS_ACK,
                    Word.RECVPID_PLS: Word.RECVPID_ACK,
                }
                if word in answers:
                    parent.expect(answers[word], timeout=SECONDS)
            end()

        run_to_exit(job, parent, COMM[CHILD], [recorder.sink or -1])

    return main


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ((), "USERMAP_PLS/TIMEOFFSETS_PLS/RECVPID_PLS/FUSE_FD"),
        ((Word.USERMAP_PLS,), "TIMEOFFSETS_PLS/RECVPID_PLS/FUSE_FD"),
        ((Word.USERMAP_PLS, Word.TIMEOFFSETS_PLS), "RECVPID_PLS/FUSE_FD"),
        ((Word.RECVPID_PLS,), "CHILD_FINISH"),
    ],
    ids=lambda value: "-".join(value) or "nothing" if isinstance(value, tuple) else "",
)
@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os._exit(7), "died (exit 7)"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "died (SIGKILL)"),
    ],
    ids=["exit", "SIGKILL"],
)
def test_the_death_of_stage_1_is_told(
    monkeypatch: pytest.MonkeyPatch,
    said: tuple[Word, ...],
    due: str,
    end: Callable[[], None],
    how: str,
) -> None:
    """After each of its words, a death of stage 1 is reported with how it died and what was due."""
    monkeypatch.setattr(stage1_child, "main", scripted(*said, end=end))
    monkeypatch.setattr(idmap, "write_maps", lambda *_args, **_options: None)
    monkeypatch.setattr(stage0_parent, "write_time_offsets", lambda *_: Word.TIMEOFFSETS_ACK)
    with stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, Bootstrap().pack())
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert (CHILD, f"before {due}", how) == (failure.stage, failure.step, failure.text)
        assert 1 == stage.wait()


def test_a_silent_stage_1_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the deadline stage 0 kills stage 1 and says who did not say what."""
    monkeypatch.setattr(stage1_child, "main", scripted(end=signal.pause))
    with stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, Bootstrap(timeout=1).pack())
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert "within 1 s" in failure.text
        assert f"from {CHILD}" in failure.text
        assert 1 == stage.wait()


def test_words_of_stage_1_out_of_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """CHILD_FINISH before RECVPID_PLS is a broken handshake, and stage 1 is taken along."""

    def main(_bootstrap: Bootstrap, _fds: object, sockets: Sockets, recorder: Recorder) -> None:
        say(Channel(sockets.child, CHILD, PARENT, recorder), Word.CHILD_FINISH)
        signal.pause()

    monkeypatch.setattr(stage1_child, "main", main)
    with stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, Bootstrap().pack())

        assert "CHILD_FINISH" in expect_failure(stage[PARENT], Word.PIDS).text
        assert 1 == stage.wait()


def test_a_failure_of_stage_1_goes_up_unchanged() -> None:
    """The manager sees stage, step, system call and errno of the process that failed."""
    with stage_0() as stage, opened(["/dev/null"]) as fds:
        stage[PARENT].send(Word.BOOTSTRAP, Bootstrap(joins=(Join("net", 0),)).pack(), fds)
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert (CHILD, "join net namespace", "setns", 22) == (
            failure.stage, failure.step, failure.syscall, failure.errno
        )  # fmt: skip
        assert 1 == stage.wait()


def test_maps_that_the_kernel_refuses_are_a_failure_of_stage_0() -> None:
    """The error names the step and errno; stage 1, which waits for its maps, is taken along."""
    overlapping = (IdRange(0, 100000, 10), IdRange(5, 200000, 10))
    with stage_0() as stage:
        bootstrap = Bootstrap(create=("user",), uid_map=overlapping, gid_map=overlapping)
        stage[PARENT].send(Word.BOOTSTRAP, bootstrap.pack())
        failure = expect_failure(stage[PARENT], Word.PIDS)

        assert (PARENT, "write id maps", 22) == (failure.stage, failure.step, failure.errno)
        assert 1 == stage.wait()


def test_the_manager_can_hang_up_before_pids() -> None:
    """Stage 0 that finds nobody to tell ends, and so does stage 2."""
    with stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, NEW_USER.pack())
        stage.hang_up()
        stage.wait()
        for pid in children_of(os.getpid()):
            if comm_of(pid) == COMM[INIT]:
                assert 1 == wait_for(pid)


def test_an_unreachable_manager_is_a_dead_peer() -> None:
    """Sending to a stage 0 that is gone says so."""
    with stage_0() as stage:
        os.kill(stage.pid, signal.SIGKILL)
        assert -signal.SIGKILL == stage.wait()
        with pytest.raises(PeerDied, match="stage 0"):
            stage[PARENT].send(Word.BOOTSTRAP, Bootstrap().pack())
