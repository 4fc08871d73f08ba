"""A target read once and whole: real processes, none of them a container."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import TargetError, TargetNotRunning, TargetUnreadable
from launcher.targets import find
from launcher.targets.bounded import Answer, in_child
from launcher.targets.lookup import Found
from launcher.targets.snapshot import KINDS, Snapshot, take
from nsstages.credentials import Credentials
from nsstages.idmap import IdRange, parse
from tests import needs

ORDINARY = 4711  # an id that no account of the machine needs to have


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start processes that say a byte when they are ready; they are gone afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **options: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        assert process.stdout is not None
        assert b"." == process.stdout.read(1)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


WAIT = ("/bin/sh", "-c", "printf .; read x")


def test_an_ordinary_process_is_read(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Ids, namespaces, environment, cwd, cgroups and mounts are those of the process."""
    process = start(*WAIT, env={"A": "1", "B": "x\ny"}, cwd="/usr", umask=0o27)

    with closing(take(find(str(process.pid)))) as target:
        assert {"A=1", "B=x\ny"} <= set(target.environment)
        assert ("/usr", 0o27, process.pid) == (target.cwd, target.umask, target.pid)
        assert os.getresuid() == target.uids[:3]
        assert os.getresgid() == target.gids[:3]
        assert set(os.getgroups()) == set(target.groups)
        assert parse(Path("/proc/self/uid_map").read_text()) == target.uid_map
        assert parse(Path("/proc/self/gid_map").read_text()) == target.gid_map
        assert all(ref.is_ours for ref in target.namespaces.values())
        assert "/" in {mount.mount_point for mount in target.mounts}
        assert target.cgroups
        assert target.is_alive()
        assert target.root_is_namespace_root


def test_namespaces_are_held_open(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Each kind that the kernel has comes with its inode and a descriptor of that very one."""
    process = start(*WAIT)

    with closing(take(find(str(process.pid)))) as target:
        kinds = {kind for kind in KINDS if os.path.exists(f"/proc/self/ns/{kind}")}
        assert kinds == set(target.namespaces)
        for kind, ref in target.namespaces.items():
            expected = os.stat(f"/proc/{process.pid}/ns/{kind}").st_ino
            assert (kind, expected, expected) == (ref.kind, ref.inode, os.fstat(ref.fd).st_ino)


def test_credentials_are_the_targets(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """In our own user namespace the credentials hold the ids as they are."""
    process = start(*WAIT)

    with closing(take(find(str(process.pid)))) as target:
        credentials = target.credentials

    assert (os.geteuid(), os.getegid()) == (credentials.uid, credentials.gid)
    assert credentials.capabilities == target.capabilities


@pytest.mark.parametrize(
    ("uid", "groups", "allowed", "expected"),
    [
        (100000, (100010,), True, Credentials(uid=0, gid=5, groups=(10,))),
        (100001, (100010, 7), True, Credentials(uid=1, gid=5, groups=(10,))),
        (100001, (7,), False, Credentials(uid=1, gid=5, groups=None)),
    ],
)
def test_credentials_are_ids_of_the_targets_namespace(
    start: Callable[..., subprocess.Popen[bytes]],
    uid: int,
    groups: tuple[int, ...],
    allowed: bool,
    expected: Credentials,
) -> None:
    """Ids are translated; a group without a number there, or that may not be set, is left out."""
    process = start(*WAIT)
    with closing(take(find(str(process.pid)))) as real:
        target = in_other_user_namespace(real, uid=uid, groups=groups, allowed=allowed)

        assert replace(expected, capabilities=real.capabilities) == replace(
            target.credentials, no_new_privs=False
        )


def test_an_id_that_cannot_be_had_is_refused(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """A process whose uid has no number in its own user namespace cannot be acted as."""
    process = start(*WAIT)
    with closing(take(find(str(process.pid)))) as real:
        target = in_other_user_namespace(real, uid=7, groups=(), allowed=True)

        with pytest.raises(TargetError, match=r"ids 7:100005 .* not in its user namespace"):
            _ = target.credentials


def in_other_user_namespace(
    real: Snapshot, *, uid: int, groups: tuple[int, ...], allowed: bool
) -> Snapshot:
    namespaces = dict(real.namespaces)
    namespaces["user"] = replace(namespaces["user"], is_ours=False)
    shifted = (IdRange(0, 100000, 1000),)
    return replace(
        real,
        namespaces=namespaces,
        uids=(uid,) * 4,
        gids=(100005,) * 4,
        groups=groups,
        uid_map=shifted,
        gid_map=shifted,
        setgroups_allowed=allowed,
    )


def test_the_end_of_a_target_is_noticed(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """A snapshot knows when its process has ended, whoever has the number then."""
    process = start(*WAIT)

    with closing(take(find(str(process.pid)))) as target:
        process.kill()
        process.wait()
        assert not target.is_alive()


def test_a_reused_number_is_refused(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """The process that was found, not another one with its number, is read."""
    process = start(*WAIT)
    found = find(str(process.pid))
    assert found.start_time is not None

    with pytest.raises(TargetNotRunning, match="has ended"):
        take(replace(found, start_time=found.start_time - 1))


def test_a_process_that_ended_is_refused() -> None:
    """Between finding and reading a process can end."""
    child = subprocess.Popen(["true"])
    child.wait()

    with pytest.raises(TargetNotRunning, match="has ended"):
        take(Found("docker", "web", child.pid))


def test_a_thread_is_refused() -> None:
    """The number of a thread is not the number of its process."""
    numbers: list[int] = []
    done = threading.Event()
    noted = threading.Event()

    def note() -> None:
        numbers.append(threading.get_native_id())
        noted.set()
        done.wait()

    thread = threading.Thread(target=note)
    thread.start()
    noted.wait()
    try:
        with pytest.raises(TargetError, match="is a thread of a process"):
            take(Found("pid", "x", numbers[0]))
    finally:
        done.set()
        thread.join()


def test_nothing_stays_open_after_a_failure(
    start: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that fails late has closed every descriptor that it opened."""
    process = start(*WAIT)
    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(Snapshot, "is_alive", lambda _: False)

    with pytest.raises(TargetNotRunning, match="ended while it was read"):
        take(find(str(process.pid)))

    assert before == sorted(os.listdir("/proc/self/fd"))


def test_a_huge_environment_is_bounded(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    """Of an environment above the bound the first part is taken, in whole variables."""
    environment = {f"V{number}": "x" * 100_000 for number in range(15)}
    process = start(*WAIT, env=environment)

    with closing(take(find(str(process.pid)))) as target:
        sizes = {len(entry.partition("=")[2]) for entry in target.environment if entry[0] == "V"}

        assert {100_000} == sizes
        assert sum(len(entry) + 1 for entry in target.environment) <= 1024 * 1024


def test_a_hostile_name_and_environment_are_read(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """A process that renames itself to look like another status is read as what it is."""
    code = (
        "import ctypes, time; ctypes.CDLL(None).prctl(15, b'x) Z 1\\nUid: 5');"
        "print('.', end='', flush=True); time.sleep(100)"
    )
    process = start(sys.executable, "-c", code, env={"\udcff": "\udcfe"})

    with closing(take(find(str(process.pid)))) as target:
        assert os.geteuid() == target.uids[1]
        assert "\udcff=\udcfe" in target.environment


@needs.userns
def test_a_user_namespace_is_read_from_outside(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """Of a process in other namespaces the maps are read, and which namespaces are foreign."""
    process = start("unshare", "-U", "-r", "-u", *WAIT)

    with closing(take(find(str(process.pid)))) as target:
        foreign = {kind for kind, ref in target.namespaces.items() if not ref.is_ours}
        assert {"user", "uts"} == foreign
        assert (IdRange(0, os.geteuid(), 1),) == target.uid_map
        assert not target.setgroups_allowed
        assert (0, 0, None) == (
            target.credentials.uid, target.credentials.gid, target.credentials.groups
        )  # fmt: skip


@needs.root
def test_a_chroot_is_not_the_root_of_its_namespace(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """Whether the root is the mount namespace's own is found out by joining it."""
    jail = "mount --bind / {0} && exec chroot {0} sh -c 'cd /usr; printf .; read x'"
    whole = start("unshare", "-m", *WAIT)
    jailed = start("unshare", "-m", "sh", "-c", jail.format(tmp_path))

    with closing(take(find(str(whole.pid)))) as target:
        assert target.root_is_namespace_root
    with closing(take(find(str(jailed.pid)))) as target:
        assert not target.root_is_namespace_root
        assert "/usr" == target.cwd


@needs.root
def test_an_ordinary_user_reads_own_processes_only(
    start: Callable[..., subprocess.Popen[bytes]],
) -> None:
    """A user gets a whole snapshot of their own process, and of root's a refusal with a remedy."""
    own = start(*WAIT, user=ORDINARY, group=ORDINARY, extra_groups=[])
    roots = start(*WAIT)

    def look(pid: int) -> Answer:
        os.setgroups([])
        os.setgid(ORDINARY)
        os.setuid(ORDINARY)
        try:
            target = take(find(str(pid)))
        except TargetUnreadable as error:
            return Answer(f"{error} | {error.hint}".encode())
        return Answer(f"{target.uids} {target.cwd} {target.root_is_namespace_root}".encode())

    mine = in_child(lambda: look(own.pid), timeout=10).data.decode()
    theirs = in_child(lambda: look(roots.pid), timeout=10).data.decode()

    assert f"{(ORDINARY,) * 4} {os.getcwd()} True" == mine
    assert f"/proc/{roots.pid}/ns/mnt: Permission denied | run as root" in theirs


def test_a_blocked_reader_is_given_up() -> None:
    """A read that a hostile process never lets finish ends with the deadline and leaves nothing."""

    def block() -> Answer:
        ctypes.CDLL(None).pause()
        return Answer(b"")

    with pytest.raises(TimeoutError):
        in_child(block, timeout=0.1)


def test_a_dead_reader_is_an_error() -> None:
    """A reader that is killed is noticed at once."""

    def die() -> Answer:
        os.kill(os.getpid(), signal.SIGKILL)
        return Answer(b"")

    with pytest.raises(ChildProcessError):
        in_child(die, timeout=30)


def test_a_readers_error_is_raised_here() -> None:
    """An OSError of the child arrives with its number and file."""

    def fail() -> Answer:
        return Answer(Path("/nowhere/x").read_bytes())

    with pytest.raises(FileNotFoundError) as caught:
        in_child(fail, timeout=30)
    assert "/nowhere/x" == caught.value.filename


def test_a_reader_hands_over_descriptors() -> None:
    """What the child opened arrives open, with data of any size."""

    def read() -> Answer:
        return Answer(b"x" * 1_000_000, (os.open("/usr", os.O_PATH),))

    answer = in_child(read, timeout=30)

    assert 1_000_000 == len(answer.data)
    assert os.stat("/usr").st_ino == os.fstat(answer.fds[0]).st_ino
    os.close(answer.fds[0])
