"""A host directory served over FUSE for one test: the test plays stage 0, stage 1 and manager."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import socket
import traceback
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from launcher.hostfs.options import HostfsOptions
from nsstages import mounts
from nsstages.channel import Channel, pair
from nsstages.idmap import IDENTITY, write_maps
from nsstages.isolation import close_all_but
from nsstages.messages import FUSE, MANAGER, Word
from nsstages.process import run_to_exit
from nsstages.syscalls import (
    AT_FDCWD,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    move_mount,
    setns,
    unshare,
)
from nsstages.trace import Recorder, create_sink, read_sink

T = TypeVar("T")
TIME_LIMIT = 20.0


class FailedInside(Exception):
    """A function run inside the mount's namespace raised; carries its traceback."""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command run inside printed and how it ended."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Rights:
    """Who runs something: ids and the limit of open descriptors."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    most_descriptors: int | None = None

    def take(self) -> None:
        """Become this in the present process."""
        if self.most_descriptors is not None:
            limit = self.most_descriptors
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


ROOT = Rights()


def errno_of(attempt: Callable[[], object]) -> int:
    """Return the errno that ``attempt`` raises, 0 when it succeeds."""
    try:
        attempt()
    except OSError as error:
        return error.errno or 0
    return 0


class Mounted:
    """One mount at ``path``, which only processes started by `run` and `command` see."""

    def __init__(
        self, path: Path, options: HostfsOptions, server_rights: Rights | None = None
    ) -> None:
        self.path = path
        self._options = options
        self._maps = (options.uid_map, options.gid_map)
        self._has_userns = self._maps != (IDENTITY, IDENTITY)
        self._sink = create_sink()
        self._recorder = Recorder(MANAGER, self._sink)
        self.server_pid = self._fork_server(server_rights)
        self._holder_pid, self._holder = self._fork_holder()
        device = self._receive_device()
        self._channel.send(Word.FUSE_FD, fds=[device])
        os.close(device)
        self._channel.expect(Word.FUSE_SERVING, timeout=TIME_LIMIT)

    def _fork_server(self, rights: Rights | None) -> int:
        ours, theirs = pair()
        pid = os.fork()
        if not pid:
            own = self._recorder.for_process(FUSE)
            channel = Channel(theirs, FUSE, MANAGER, own)
            keep = [self._sink]
            if self._options.container_root_fd is not None:
                keep.append(self._options.container_root_fd)
            run_to_exit(lambda: self._serve(channel, own, rights), channel, "hostfs-test", keep)
        theirs.close()
        self._channel = Channel(ours, MANAGER, FUSE, self._recorder)
        return pid

    def _serve(self, channel: Channel, recorder: Recorder, rights: Rights | None) -> None:
        from launcher.hostfs.server import serve

        if rights is not None:
            rights.take()
        serve(channel, self._options, recorder)

    def _fork_holder(self) -> tuple[int, socket.socket]:
        """Fork the process that mounts and keeps the namespaces alive (stage 1)."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            os._exit(_forked(lambda: self._hold(theirs)))
        theirs.close()
        if self._has_userns:
            ours.recv(1)
            write_maps(pid, *self._maps, setgroups=True)
            ours.send(b"m")
        return pid, ours

    def _hold(self, sock: socket.socket) -> None:
        # The sockets of other mounts too: their holders wait for our end of file
        close_all_but([sock.fileno()])
        if self._has_userns:
            unshare(CLONE_NEWUSER)
            sock.send(b"u")
            sock.recv(1)
        unshare(CLONE_NEWNS)
        mounts.make_private()
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount_fd = mounts.open_fuse(device, 0)
        move_mount(mount_fd, AT_FDCWD, str(self.path))
        os.close(mount_fd)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [device]))
        sock.sendmsg([b"d"], [rights])
        os.close(device)
        sock.recv(1)

    def _receive_device(self) -> int:
        self._holder.settimeout(TIME_LIMIT)
        _, ancillary, _, _ = self._holder.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        return array("i", ancillary[0][2])[0]

    def run(self, function: Callable[[], T], rights: Rights = ROOT) -> T:
        """Return what ``function`` returns in a forked process that sees the mount."""

        def inside() -> T:
            self._enter()
            rights.take()
            return function()

        return run_forked(inside)

    def _enter(self) -> None:
        fds = [
            (os.open(f"/proc/{self._holder_pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
            for kind, flag in (("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS))
            if kind != "user" or self._has_userns
        ]
        for fd, flag in fds:
            setns(fd, flag)
            os.close(fd)

    def command(self, *argv: str, rights: Rights = ROOT) -> Finished:
        """Run a command with the mount as its working directory; stderr goes with stdout."""
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if not pid:
            os._exit(_forked(lambda: self._exec(argv, rights, write_fd)))
        os.close(write_fd)
        with os.fdopen(read_fd, "rb") as pipe:
            output = _read_all(pipe.fileno(), pid)
        _, status = os.waitpid(pid, 0)
        return Finished(os.waitstatus_to_exitcode(status), output.decode(errors="surrogateescape"))

    def _exec(self, argv: Sequence[str], rights: Rights, write_fd: int) -> None:
        self._enter()
        os.chdir(self.path)
        rights.take()
        os.dup2(write_fd, 1)
        os.dup2(write_fd, 2)
        os.execvp(argv[0], [*argv])

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the trace events of one kind so far."""
        return [event for event in read_sink(self._sink) if event["kind"] == kind]

    def hang_up(self) -> None:
        """Let the manager die, as far as the server can see."""
        self._channel.close()

    def release_holder(self) -> None:
        """End the process that keeps the namespaces: the mount goes with them."""
        self._holder.close()
        if self._holder_pid:
            _wait(self._holder_pid)
            self._holder_pid = 0

    def wait_server(self) -> int:
        """Reap the server; return its exit code (negative: the signal)."""
        pid, self.server_pid = self.server_pid, 0
        return _wait(pid)

    def close(self) -> None:
        """Unmount, end every process, and insist that no handler failed unexpectedly."""
        self.release_holder()
        status = self.wait_server() if self.server_pid else 0
        errors = self.events("fuse.error")
        self._channel.close()
        os.close(self._sink)
        assert (0, []) == (status if status != -signal.SIGKILL else 0, errors)


def run_forked(function: Callable[[], T], seconds: float = TIME_LIMIT) -> T:
    """Return what ``function`` returns in a forked process; an OSError there is raised here."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        os._exit(_forked(lambda: _answer(function, write_fd)))
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        data = _read_all(pipe.fileno(), pid, seconds)
    os.waitpid(pid, 0)
    answer: tuple[bool, Any] = pickle.loads(data) if data else (False, "died")
    if not answer[0]:
        raise answer[1] if isinstance(answer[1], OSError) else FailedInside(answer[1])
    result: T = answer[1]
    return result


def _answer(function: Callable[[], Any], write_fd: int) -> None:
    os.umask(0o022)
    try:
        answer: tuple[bool, Any] = (True, function())
    except OSError as error:
        answer = (False, error)
    except BaseException:  # noqa: BLE001 - reported by the test
        answer = (False, traceback.format_exc())
    with os.fdopen(write_fd, "wb") as pipe:
        pickle.dump(answer, pipe)


def _forked(job: Callable[[], None]) -> int:
    try:
        job()
    except BaseException:  # noqa: BLE001 - a forked process ends here
        traceback.print_exc()
        return 1
    return 0


def _wait(pid: int) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], TIME_LIMIT)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"process {pid} did not end")
    finally:
        os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _read_all(fd: int, pid: int, seconds: float = TIME_LIMIT) -> bytes:
    data = b""
    while select.select([fd], [], [], seconds)[0]:
        piece = os.read(fd, 65536)
        if not piece:
            return data
        data += piece
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"no answer from inside the mount; so far {data!r}")
