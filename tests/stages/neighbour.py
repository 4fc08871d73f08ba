"""The test as the neighbour of one stage: forks it, holds the other ends of its channels.

A stage is started exactly as its real parent starts it. Its standard output and error go to a
pipe, which `Forked.output` reads to the end; `Forked.wait` reaps it. Nothing here knows what a
stage should say: that is the tests' business.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from nsstages import stage0_parent, stage1_child, stage2_init
from nsstages.bootstrap import Bootstrap
from nsstages.channel import VERSION, Channel, Message, pair
from nsstages.errors import Failure, StageFailed
from nsstages.init_config import InitConfig, Process
from nsstages.messages import CHILD, COMM, INIT, MANAGER, PARENT, Word
from nsstages.process import run_to_exit
from nsstages.syscalls import PR_SET_DUMPABLE, prctl
from nsstages.trace import Recorder, create_sink, read_sink
from nsstages.typed import to_payload

SECONDS: Final = 5.0
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(slots=True)
class Forked:
    """A forked stage: its pid, the test's channels to it, what it and its program print."""

    pid: int
    output_fd: int
    sink: int
    channels: dict[str, Channel] = field(default_factory=dict)
    reaped: set[int] = field(default_factory=set)

    def __getitem__(self, name: str) -> Channel:
        return self.channels[name]

    def output(self) -> str:
        """Return all that is printed until every process that holds the pipe has ended."""
        data = b""
        while chunk := os.read(self.output_fd, 65536):
            data += chunk
        return os.fsdecode(data)

    def wait(self, pid: int = 0) -> int:
        """Reap the stage (or ``pid``, when it is ours) and return its exit code, -n for signals."""
        status = wait_for(pid or self.pid)
        self.reaped.add(pid or self.pid)
        return status

    def hang_up(self) -> None:
        """Close the test's ends of all channels."""
        for channel in self.channels.values():
            channel.close()

    def words(self) -> list[tuple[str, str]]:
        """Return (speaker, word) of every word that was said so far, in causal order."""
        events = read_sink(self.sink)
        return [(e["process"], e["word"]) for e in events if e["kind"] == "word.sent"]

    def steps(self) -> list[str]:
        """Return the names of the steps that were taken so far, in causal order."""
        return [event["step"] for event in read_sink(self.sink) if event["kind"] == "step"]

    def close(self) -> None:
        """Hang up, kill the stage if it still runs, reap all that became the test's child."""
        self.hang_up()
        if self.pid not in self.reaped:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.output_fd)
        os.close(self.sink)


def wait_for(pid: int) -> int:
    """Reap a child within SECONDS; return its exit code, -n for signal n."""
    deadline = time.monotonic() + SECONDS
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        assert time.monotonic() < deadline, f"{pid} ({comm_of(pid)}) does not end"
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(done[1])


@contextmanager
def stage_0() -> Iterator[Forked]:
    """Stage 0 and what it forks; the test is the manager, with channels to PARENT and INIT."""
    ours, for_parent = pair()
    init_ours, for_init = pair()

    def be(recorder: Recorder) -> None:
        own = recorder.for_process(PARENT)
        up = Channel(for_parent, PARENT, MANAGER, own)
        keep = [for_init.fileno(), own.sink or -1]
        run_to_exit(lambda: stage0_parent.run(up, for_init, own), up, COMM[PARENT], keep)

    ends = {PARENT: (ours, MANAGER), INIT: (init_ours, MANAGER)}
    with _forked(be, ends, (for_parent, for_init)) as stage:
        yield stage


@contextmanager
def born(bootstrap: Bootstrap, fds: Sequence[int] = ()) -> Iterator[tuple[Forked, int]]:
    """Stage 2 at the moment when stages 0 and 1 are gone, and its pid; it waits for CONFIG."""
    with stage_0() as stage:
        stage[PARENT].send(Word.BOOTSTRAP, bootstrap.pack(), fds)
        pid = int(hear(stage[PARENT], Word.PIDS).payload["stage2"])
        stage.wait()
        try:
            yield stage, pid
        finally:
            stage.hang_up()
            if pid not in stage.reaped:
                stage.wait(pid)


@contextmanager
def stage_1(bootstrap: Bootstrap, fds: Sequence[int] = ()) -> Iterator[Forked]:
    """Stage 1 and the stage 2 that it forks; the test is stage 0 and the manager.

    The channels are CHILD (as stage 0), INIT (as the manager) and "grandchild" (stage 0 to INIT).
    """
    ours, child = pair()
    grandchild_ours, grandchild = pair()
    init_ours, init = pair()

    def be(recorder: Recorder) -> None:
        sockets = stage1_child.Sockets(child, grandchild, init)
        stage1_child.main(bootstrap, tuple(fds), sockets, recorder.for_process(CHILD))

    ends = {
        CHILD: (ours, PARENT),
        "grandchild": (grandchild_ours, PARENT),
        INIT: (init_ours, MANAGER),
    }
    with _forked(be, ends, (child, grandchild, init)) as stage:
        yield stage


@contextmanager
def stage_2(
    prepare: Callable[[], Mapping[str, int] | None] = lambda: None,
) -> Iterator[Forked]:
    """Stage 2; the test is the manager (channel INIT) and stage 0 (channel "grandchild").

    ``prepare`` is stage 1's part: run in the new process first, it returns the trees by name.
    """
    grandchild_ours, grandchild = pair()
    init_ours, init = pair()

    def be(recorder: Recorder) -> None:
        inherited = stage2_init.Inherited(prepare() or {})
        stage2_init.main(inherited, grandchild, init, recorder.for_process(INIT))

    ends = {"grandchild": (grandchild_ours, PARENT), INIT: (init_ours, MANAGER)}
    with _forked(be, ends, (grandchild, init)) as stage:
        yield stage


@contextmanager
def _forked(
    be: Callable[[Recorder], None],
    ends: Mapping[str, tuple[socket.socket, str]],
    theirs: Sequence[socket.socket],
) -> Iterator[Forked]:
    sink = create_sink()
    output_fd, output_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            null = os.open("/dev/null", os.O_RDONLY)
            for fd, stream in ((null, 0), (output_write, 1), (output_write, 2)):
                os.dup2(fd, stream)
            be(Recorder("test", sink))
        finally:
            os._exit(99)
    os.close(output_write)
    for sock in theirs:
        sock.close()
    stage = Forked(pid, output_fd, sink)
    for name, (sock, me) in ends.items():
        peer = INIT if name == "grandchild" else name
        stage.channels[name] = Channel(sock, me, peer, Recorder(f"test as {me}", sink))
    try:
        yield stage
    finally:
        stage.close()


def say(channel: Channel, word: str, payload: object = None, fds: Sequence[int] = ()) -> None:
    """Say any word at any time with any payload: what no real neighbour does."""
    body = msgpack.packb([word, {} if payload is None else payload])
    header = struct.pack("<HHQI", VERSION, len(fds), 0, len(body))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
    with socket.socket(fileno=os.dup(channel.fileno())) as sock:
        sock.sendmsg([header, body], rights if fds else [])


def expect_failure(channel: Channel, *words: Word) -> Failure:
    """Wait for FAILED where ``words`` would be legal; return what it carries."""
    try:
        message = channel.expect(*words, timeout=SECONDS)
    except StageFailed as error:
        return error.failure
    raise AssertionError(f"{message.word} came instead of FAILED")


def hear(channel: Channel, word: Word) -> Message:
    """Wait for ``word``; the caller owns its descriptors."""
    return channel.expect(word, timeout=SECONDS)


def program(*argv: str, **options: Any) -> Process:
    """Return a program with the usual PATH and no rights changed."""
    return Process(argv=argv, env=options.pop("env", (PATH,)), **options)


def shell(script: str, **options: Any) -> Process:
    """Return a shell that runs ``script``."""
    return program("sh", "-c", script, **options)


def configure(stage: Forked, config: InitConfig, fds: Sequence[int] = ()) -> None:
    """Be the manager up to CONFIG."""
    stage[INIT].send(Word.CONFIG, to_payload(config), fds)


def run(stage: Forked, pid: int) -> tuple[int, str]:
    """Be the manager from READY to the end of a program that stage 2 becomes."""
    close_fds(hear(stage[INIT], Word.READY))
    stage[INIT].send(Word.RUN)
    output = stage.output()
    return stage.wait(pid), output


def close_fds(message: Message) -> None:
    """Close what came with a message."""
    for fd in message.fds:
        os.close(fd)


@contextmanager
def opened(paths: Iterable[str | Path]) -> Iterator[list[int]]:
    """Open paths for reading."""
    fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until ``condition`` holds, at most SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def rows(path: str | Path) -> list[list[str]]:
    """Return the words of each line of a file."""
    return [line.split() for line in Path(path).read_text().splitlines()]


def in_child(job: Callable[[], str], user: str = "root") -> str:
    """Return what ``job`` returns in a forked process of ``user``, as if logged in.

    Raises AssertionError with the traceback of what it raised.
    """
    entry = pwd.getpwnam(user)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        try:
            os.chdir("/")
            os.initgroups(user, entry.pw_gid)
            os.setresgid(*[entry.pw_gid] * 3)
            os.setresuid(*[entry.pw_uid] * 3)
            prctl(PR_SET_DUMPABLE, 1)  # as after the exec that a login ends with
            os.write(write_fd, f"+{job()}".encode())
        except BaseException:  # noqa: BLE001  # a forked process ends here, whatever it was
            os.write(write_fd, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as answer:
        text = answer.read()
    assert 0 == wait_for(pid)
    assert text.startswith("+"), text
    return text[1:]


def namespaces_of(pid: int | str) -> dict[str, int]:
    """Return the inodes of the eight namespaces that ``pid`` lives in."""
    kinds = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")
    return {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in kinds}


def comm_of(pid: int) -> str:
    """Return the name that `ps` shows."""
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


def status_of(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: value.strip() for name, _, value in pairs}


def children_of(pid: int) -> list[int]:
    """Return the pids of the children of ``pid``."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors_of(pid: int) -> dict[int, str]:
    """Return the open descriptors of ``pid`` and what they lead to."""
    directory = Path(f"/proc/{pid}/fd")
    return {int(name): os.readlink(directory / name) for name in os.listdir(directory)}
