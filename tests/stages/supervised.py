"""A container and a supervised shell without the rest of the product: the test is the manager.

`start_container` makes a process with namespaces and a root of its own. `Attach` makes what stage 2
makes: a mount namespace whose root is the host's (an overlay in place of FUSE), the container's
tree at /c noexec and nosuid, its /proc and /dev, the vessel, the filter; and forks the supervisor.
"""

from __future__ import annotations

import array
import fcntl
import os
import select
import shutil
import signal
import socket
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from launcher.supervisor.notify import filter_program
from launcher.supervisor.options import Routing, SupervisorOptions
from launcher.supervisor.vessel import image
from launcher.targets.mounts import parse_mountinfo
from nsstages import trace
from nsstages.channel import Channel, pair
from nsstages.messages import MANAGER, SUPERVISOR, Word
from nsstages.mounts import make_private
from nsstages.syscalls import (
    AT_FDCWD,
    AT_RECURSIVE,
    CLONE_NEWIPC,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MS_BIND,
    OPEN_TREE_CLOEXEC,
    OPEN_TREE_CLONE,
    PR_SET_PDEATHSIG,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    SECCOMP_SET_MODE_FILTER,
    Call,
    Packed,
    execute,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    pivot_root,
    prctl,
    setns,
    umount2,
    unshare,
)

BUSYBOX: Final = "/opt/box/busybox"  # of the container; the host has nothing there
APPLETS: Final = (
    "cat", "env", "false", "id", "kill", "ls", "pwd", "readlink", "sh", "sleep", "stat", "test",
    "true", "echo", "head", "md5sum", "mkdir", "seq",
)  # fmt: skip
KINDS: Final = (
    ("ipc", CLONE_NEWIPC), ("uts", CLONE_NEWUTS), ("pid", CLONE_NEWPID), ("mnt", CLONE_NEWNS),
    ("user", CLONE_NEWUSER),
)  # fmt: skip
ID_OFFSET: Final = 100000
DEVICES: Final = ("null", "zero", "urandom", "tty")


def build_root(root: Path) -> None:
    """Make a container's root directory: a static busybox and links that only work inside."""
    for name in (
        "bin",
        "c",
        "dev",
        "etc",
        "opt/box",
        "proc",
        "root",
        "sys",
        "tmp",
        "work",
        "scripts",
    ):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy("/bin/busybox", root / BUSYBOX[1:])
    for name in APPLETS:
        (root / "bin" / name).symlink_to(BUSYBOX)
    (root / "etc/marker").write_text("the container\n")
    for name in DEVICES:
        (root / "dev" / name).touch()
    write_program(root / "scripts/where", '#!/bin/sh\ncat /etc/marker\necho "$0 $@"\n')
    write_program(root / "scripts/headless", "cat /etc/marker\n")
    write_program(root / "scripts/orphan", "#!/no/such/interpreter\n")
    (root / "etc/plain").write_text("not a program\n")


def write_program(path: Path, text: str) -> None:
    """Write an executable script."""
    path.write_text(text)
    path.chmod(0o755)


def fork(job: Callable[[], object]) -> int:
    """Run ``job`` in a forked child, which exits with its result; say why it failed."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        status = int(job() or 0)  # type: ignore[call-overload]
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"forked process: {error!r}\n".encode())
    finally:
        os._exit(status)


@dataclass
class Container:
    """A running container; ``pid`` is its init on the host."""

    root: Path
    pid: int
    parent: int
    namespace_fds: tuple[tuple[int, int], ...]
    root_fd: int
    userns: bool
    top: str = "/"  # of the tree that the shell sees at /c

    def namespace_fd(self, flag: int) -> int:
        """Return the descriptor of its namespace of this kind."""
        return next(fd for fd, kind in self.namespace_fds if kind == flag)

    def close(self) -> None:
        """End it."""
        for fd, _ in self.namespace_fds:
            os.close(fd)
        os.close(self.root_fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.parent, 0)


def start_container(root: Path, *, userns: bool = False) -> Container:
    """Start a container of ``root``; with ``userns`` in a user namespace of its own."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)

    def parent() -> int:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.chdir(root)  # a user namespace has no right to walk there
        flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS
        unshare(flags | (CLONE_NEWUSER if userns else 0))
        theirs.send(b"unshared")
        theirs.recv(16)
        pid = os.fork()
        if not pid:
            _be_init(theirs)
        theirs.send(str(pid).encode())
        os.waitpid(pid, 0)
        return 0

    with ours, theirs:
        parent_pid = fork(parent)
        ours.recv(16)
        if userns:
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{parent_pid}/{name}").write_text(f"0 {ID_OFFSET} 65536")
        ours.send(b"go")
        # From two processes, in any order.
        pid = next(int(word) for word in {ours.recv(16), ours.recv(16)} if word.isdigit())
    fds = tuple(
        (os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC), flag)
        for kind, flag in KINDS
        if userns or kind != "user"
    )
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Container(root, pid, parent_pid, fds, root_fd, userns)


def _be_init(channel: socket.socket) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.getuid() == 65534:
            execute(Call("setgroups", (0, b"")))
        with suppress(OSError):
            os.setgid(0)
            os.setuid(0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # after the ids, whose change forgets it
        make_private()
        tree = open_tree(AT_FDCWD, ".", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        move_mount(tree, AT_FDCWD, ".")
        os.fchdir(tree)
        mount("proc", "proc", "proc", 0)
        for name in DEVICES:
            mount(f"/dev/{name}", f"dev/{name}", None, MS_BIND)
        pivot_root(".", ".")
        umount2(".", MNT_DETACH)
        execute(Call("sethostname", (b"inside", 6)))
        channel.send(b"ready")
        channel.close()
        while True:
            signal.pause()
    except BaseException as error:  # noqa: BLE001
        os.write(2, f"container: {error!r}\n".encode())
    finally:
        os._exit(1)


@dataclass(frozen=True)
class Result:
    """How a command in the shell ended; ``events`` are what the supervisor recorded."""

    status: int
    out: str
    err: str
    events: tuple[dict[str, Any], ...] = ()

    def execs(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the exec events that have these fields."""
        return [
            e
            for e in self.events
            if e["kind"] == "exec" and all(e.get(k) == v for k, v in fields.items())
        ]


@dataclass
class Attach:
    """One attach to a container: `start` a command, `finish` it."""

    container: Container
    mode: str = "tree"
    routed: bool = True
    calls: tuple[Call, ...] = ()
    environment: tuple[str, ...] = ("PATH=/bin", "FROM=container", "TERM=dumb")
    setup: Callable[[], object] | None = None
    pass_fds: tuple[int, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def run(self, *argv: str, timeout: float = 20, **how: Any) -> Result:
        """Run a command of the host's in the shell's place; return how it ended."""
        self.start(argv, **how)
        return self.finish(timeout)

    def sh(self, script: str, **how: Any) -> Result:
        """Run a script with the host's shell."""
        return self.run("/bin/sh", "-c", script, **how)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        stdio: tuple[int, int, int] | None = None,
        uid: int = 0,
        cwd: str = "/",
        terminal: bool = False,
    ) -> None:
        """Fork supervisor and shell; return when the shell runs ``argv``. Closes ``stdio``."""
        self.sink = trace.create_sink()
        self.outputs = [os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)] if stdio is None else []
        if stdio is None:
            stdio = (os.open("/dev/null", os.O_RDONLY), self.outputs[0][1], self.outputs[1][1])
        self._start_supervisor()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(30)
        fds = stdio
        environment = {"PATH": "/usr/bin:/bin:/.launcher/bin", "TERM": "xterm", **(env or {})}

        def become_shell() -> NoReturn:
            _be_shell(self, theirs, fds, cwd)
            if terminal:
                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            else:
                os.setpgid(0, 0)  # with a parent in the session: an orphaned group ignores SIGTSTP
            if uid:
                _become(uid)
            if self.setup is not None:
                self.setup()
            os.execve(argv[0], list(argv), environment)

        def parent() -> int:
            self.channel.close()
            setns(self.container.namespace_fd(CLONE_NEWPID), CLONE_NEWPID)
            pid = fork(become_shell)
            theirs.send(f"pid {pid}".encode())
            theirs.close()
            for fd in set(fds):
                os.close(fd)
            _, status = os.waitpid(pid, 0)
            return os.waitstatus_to_exitcode(status) & 0xFF

        self.parent = fork(parent)
        theirs.close()
        self._hand_over(ours)
        ours.close()
        for fd in set(stdio):
            os.close(fd)

    def _start_supervisor(self) -> None:
        ours, theirs = pair()
        recorder = trace.Recorder("manager", self.sink)
        routing = None
        if self.routed:
            routing = Routing(
                container_root_fd=self.container.root_fd,
                namespace_fds=self.container.namespace_fds,
                container_path=("/opt/nothing", "/bin"),
                environment=self.environment,
                cwd="/root",
                calls=self.calls,
                **self.extra,
            )
        options = SupervisorOptions(self.mode, routing)

        def supervise() -> int:
            from launcher.supervisor.loop import supervise

            ours.close()
            own = recorder.for_process(SUPERVISOR)
            supervise(Channel(theirs, SUPERVISOR, MANAGER, own), options, own)
            return 0

        self.supervisor = fork(supervise)
        theirs.close()
        self.channel = Channel(ours, MANAGER, SUPERVISOR, recorder)

    def _hand_over(self, control: socket.socket) -> None:
        listener_fds: list[int] = []
        pid = 0
        while not (pid and listener_fds):
            message, ancillary, _, _ = control.recvmsg(64, socket.CMSG_SPACE(64))
            if not message:
                raise RuntimeError("the shell died before it was supervised")
            if message.startswith(b"pid"):
                pid = int(message.split()[1])
            for _, _, data in ancillary:
                rights = array.array("i")
                rights.frombytes(data[: len(data) - len(data) % 4])
                listener_fds += rights
        self.shell_pid = pid
        pidfd = os.pidfd_open(pid)
        fds = [listener_fds[0], pidfd, *(listener_fds[1:] if self.routed else [])]
        self.channel.send(Word.SUPERVISE_PLS, {}, fds)
        self.channel.expect(Word.SUPERVISE_ACK, timeout=10)
        for fd in (*listener_fds, pidfd):
            os.close(fd)
        control.send(b"go")

    def finish(self, timeout: float = 20) -> Result:
        """Collect the output and the ends of shell and supervisor."""
        texts = _read_all([read for read, _ in self.outputs], time.monotonic() + timeout)
        try:
            status = wait(self.parent, timeout)
            wait(self.supervisor, 5)
        except TimeoutError as error:
            error.add_note("\n".join(texts))
            raise
        finally:
            self.channel.close()
            events = tuple(trace.read_sink(self.sink))
            os.close(self.sink)
        out, err = texts or ("", "")
        return Result(status, out, err, events)


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def wait(pid: int, timeout: float) -> int:
    """Wait for a child with a deadline; kill it when it is late. Return its exit code."""
    pidfd = os.pidfd_open(pid)
    try:
        late = not select.select([pidfd], [], [], timeout)[0]
        if late:
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if late:
            raise TimeoutError(f"process {pid} had not ended after {timeout} s")
        return code
    finally:
        os.close(pidfd)


def _read_all(fds: list[int], deadline: float) -> list[str]:
    texts = dict.fromkeys(fds, b"")
    reading = set(fds)
    while reading:
        ready, _, _ = select.select(list(reading), [], [], max(0, deadline - time.monotonic()))
        if not ready:
            break
        for fd in ready:
            piece = os.read(fd, 65536)
            texts[fd] += piece
            if not piece:
                reading.discard(fd)
    for fd in fds:
        os.close(fd)
    return [texts[fd].decode(errors="replace") for fd in fds]


def _be_shell(attach: Attach, control: socket.socket, stdio: tuple[int, ...], cwd: str) -> None:
    """Do what stage 2 does, up to the acknowledged supervision."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _make_root(attach)
    os.chdir(cwd)
    for target, fd in enumerate(stdio):
        os.dup2(fd, target)
    program = filter_program()
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    packed = Packed("HxxxxxxQ", (len(program) // 8, program))
    listener = execute(Call("seccomp", (SECCOMP_SET_MODE_FILTER, flags, packed)))
    vessel = os.open("/.launcher/vessel", os.O_RDONLY | os.O_CLOEXEC)
    socket.send_fds(control, [b"fds"], [listener, vessel])
    os.close(listener)
    os.close(vessel)
    if control.recv(16) != b"go":
        os._exit(98)
    control.close()
    os.closerange(3, min((*attach.pass_fds, 1024)))
    for fd in attach.pass_fds:
        os.set_inheritable(fd, True)


def _make_root(attach: Attach) -> None:
    container = attach.container
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    setns(container.namespace_fd(CLONE_NEWNS), CLONE_NEWNS)
    clone = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    tree = open_tree(AT_FDCWD, container.top, clone)
    proc = open_tree(AT_FDCWD, "/proc", clone)
    dev = open_tree(AT_FDCWD, "/dev", clone | 0x8000)
    setns(host, CLONE_NEWNS)
    unshare(CLONE_NEWNS)
    make_private()
    others = [(path, clone_if_there(path)) for path in other_file_systems()]
    work = container.root.parent / "work"
    mount("tmpfs", str(work), "tmpfs", 0)
    for name in ("upper", "state", "root"):
        (work / name).mkdir()
    root = work / "root"
    options = f"lowerdir=/,upperdir={work}/upper,workdir={work}/state"
    mount("overlay", str(root), "overlay", 0, options)
    programs = root / ".launcher/bin"
    programs.mkdir(parents=True)
    for name in APPLETS:
        (programs / name).write_bytes(b"")
        (programs / name).chmod(0o755)
    (root / ".launcher/vessel").write_bytes(image())
    (root / ".launcher/vessel").chmod(0o4755)
    (root / "c").mkdir()
    for path, fd in others:
        if fd != -1:
            move_mount(fd, AT_FDCWD, f"{root}{path}")
    move_mount(tree, AT_FDCWD, str(root / "c"))
    mount_setattr_path(root / "c")
    move_mount(proc, AT_FDCWD, str(root / "proc"))
    move_mount(dev, AT_FDCWD, str(root / "dev"))
    os.chdir(root)
    pivot_root(".", ".")
    umount2(".", MNT_DETACH)
    os.chdir("/")


def other_file_systems() -> list[str]:
    """Return where else than at / file systems of the host are: an overlay shows only the one."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    roots = {m.mount_id for m in mounts if m.mount_point == "/"}
    points = {m.mount_point for m in mounts if m.parent_id in roots}
    return sorted(p for p in points if p != "/" and p.split("/")[1] not in ("proc", "dev", "sys"))


def clone_if_there(path: str) -> int:
    """Return a copy of a mount with all below it; -1 for one that is gone since it was listed."""
    try:
        return open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE)
    except FileNotFoundError:
        return -1


def mount_setattr_path(path: Path) -> None:
    """Make a mount noexec and nosuid."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    mount_setattr(fd, set_attributes=MOUNT_ATTR_NOEXEC | MOUNT_ATTR_NOSUID)
    os.close(fd)
