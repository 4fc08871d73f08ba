"""From stage 2 to the program: terminal, supervision, start gate, last rights, exec, reaping."""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import NoReturn

from nsstages import credentials, syscalls, terminal
from nsstages.channel import Channel
from nsstages.errors import Failure, PeerDied, StageFailed
from nsstages.init_config import InitConfig, Process
from nsstages.isolation import close_all_but, exit_status_text
from nsstages.messages import INIT, Word
from nsstages.process import report
from nsstages.trace import Recorder

# Written just before exec: the logical clock. End of file without it means a death before exec,
# the byte after it or in its place that the exec was refused.
_GATE = struct.Struct("<Q")
_NO_EXEC = b"!"
_ALREADY_SUPERVISED = "inside an attached shell there is a supervisor already: supervise: off"


def start(config: InitConfig, manager: Channel, recorder: Recorder) -> None:
    """Become the program, or fork it and stay above it. Returns only after it has ended."""
    if not config.reaper:
        become_program(config, manager, recorder)
    # No death signal for the reaper: it notices the manager's end itself, and must live to reap,
    # or its children would be zombies under a pid 1 that may not reap.
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    gate_read, gate_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if not pid:
        _be_child(config, manager, recorder, gate_write)
    os.close(gate_write)
    watch(pid, gate_read, manager)


def _be_child(
    config: InitConfig, manager: Channel, recorder: Recorder, gate_write: int
) -> NoReturn:
    try:
        os.setsid()
        become_program(config, manager, recorder, gate_write)
    except BaseException as error:  # noqa: BLE001  # a forked process ends here, whatever it was
        report(manager, error)
        os.write(gate_write, _NO_EXEC)
    finally:
        os._exit(127)


def become_program(
    config: InitConfig, manager: Channel, recorder: Recorder, gate_write: int = -1
) -> NoReturn:
    """The last steps, in an order that each needs: the filter while there is CAP_SYS_ADMIN, the
    manager's word while it is of use, the limits and rights last, the death signal after them,
    since changing ids clears it.
    """
    process = config.process
    if process.terminal:
        open_terminal(process, manager, recorder)
    listener = -1
    if config.seccomp_notify:
        with recorder.step("install the exec filter", "seccomp", hint=_ALREADY_SUPERVISED):
            listener = install_filter(config.seccomp_notify)
    own_pidfd = os.pidfd_open(os.getpid())
    if listener != -1:
        get_supervised(config, manager, listener, own_pidfd)
    manager.send(Word.READY, {}, [own_pidfd])
    manager.expect(Word.RUN, timeout=config.timeout)
    set_limits(process)
    change_directory(process, recorder)
    with recorder.step("take the target's rights", "setresuid"):
        credentials.apply(credentials.calls(process.credentials, config.last_capability))
    if recorder.sink is not None and not process.credentials.seccomp_filters:
        recorder.event("state", **credentials.own())  # a filter could kill who asks
    if config.rootless:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if process.umask is not None:
        os.umask(process.umask)
    execute_program(process, manager, recorder, gate_write)


def open_terminal(process: Process, manager: Channel, recorder: Recorder) -> None:
    """Make a pty of the devpts in view our terminal; its master goes to the manager."""
    with recorder.step("open terminal", "openat"):
        master, slave = terminal.open_verified_pty()
        manager.send(Word.TERMINAL, {}, [master])
        os.close(master)
        if process.credentials.uid is not None:
            os.fchown(slave, process.credentials.uid, -1)
        terminal.make_controlling(slave)


def install_filter(filter_: bytes) -> int:
    """Install a notification filter, an array of struct sock_filter; return its listener.

    Raises OSError: EBUSY when a filter of this process has a listener already.
    """
    flags = syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER
    flags |= syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return syscalls.execute(credentials.seccomp(filter_, flags))


def get_supervised(config: InitConfig, manager: Channel, listener: int, pidfd: int) -> None:
    """Hand listener, own pidfd and vessel to the supervisor; wait until we are traced."""
    fds = [listener, pidfd]
    if config.vessel:
        fds.append(os.open(config.vessel, os.O_RDONLY | os.O_CLOEXEC))
    if config.rootless:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
        _declare_tracer(-1)
    manager.send(Word.SUPERVISE_PLS, {}, fds)
    manager.expect(Word.SUPERVISE_ACK, timeout=config.timeout)
    if config.rootless:
        _declare_tracer(0)
    for fd in (listener, *fds[2:]):
        os.close(fd)


def _declare_tracer(pid: int) -> None:
    # Yama's scope 1 lets only ancestors trace, unless declared; without Yama it is EINVAL.
    try:
        syscalls.prctl(syscalls.PR_SET_PTRACER, pid)
    except OSError:
        return


def set_limits(process: Process) -> None:
    """Set the resource limits of the plan."""
    for limit in process.rlimits:
        resource.setrlimit(limit.resource, (limit.soft, limit.hard))


def change_directory(process: Process, recorder: Recorder) -> None:
    """Change to the wanted directory, or where it does not exist in this root, the fallback."""
    with recorder.step(f"change directory to {process.cwd}", "chdir"):
        try:
            os.chdir(process.cwd)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            if process.cwd_fallback == process.cwd:
                raise
            os.chdir(process.cwd_fallback)


def execute_program(
    process: Process, manager: Channel, recorder: Recorder, gate_write: int
) -> NoReturn:
    """Close all but stdio and what closes itself, then exec; raises StageFailed when refused."""
    close_all_but((manager.fileno(), gate_write, recorder.sink or -1))  # of use when it is refused
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs do not
        signal.signal(number, signal.SIG_DFL)
    if gate_write != -1:
        os.write(gate_write, _GATE.pack(recorder.clock))
    environment = dict(entry.split("=", 1) for entry in process.env if "=" in entry)
    error: OSError = FileNotFoundError(2, "not found in PATH")
    for path in candidates(process.argv[0], environment.get("PATH", "/usr/bin:/bin")):
        try:
            os.execve(path, list(process.argv), environment)
        except OSError as refused:
            missing = isinstance(refused, (FileNotFoundError, NotADirectoryError))
            if not missing or "/" in process.argv[0]:
                error = refused
    raise StageFailed(
        Failure(INIT, "exec", "execve", error.errno or 0, f"{process.argv[0]}: {error.strerror}")
    )


def candidates(program: str, path: str) -> Iterator[str]:
    """Yield the paths under which to try ``program``, as execvp(3) does."""
    if "/" in program:
        yield program
        return
    for directory in path.split(":"):
        yield f"{directory or '.'}/{program}"


def watch(pid: int, gate_read: int, manager: Channel) -> None:
    """Be the reaper: tell start and end of the program, reap orphans, leave nothing behind."""
    gate = os.read(gate_read, _GATE.size)
    refused = os.read(gate_read, 1)  # end of file: exec happened, or the child is gone
    os.close(gate_read)
    if refused or len(gate) < _GATE.size:
        _, status = os.waitpid(pid, 0)
        kill_children()
        if gate:
            return  # it has reported FAILED itself
        text = f"died ({exit_status_text(status)})"
        raise StageFailed(Failure(INIT, "before exec", text=text))
    manager.last_sent, manager.last_received = Word.READY, Word.RUN
    (manager.recorder.clock,) = _GATE.unpack(gate)
    manager.send(Word.STARTED)
    status = reap_until(pid, manager)
    kill_children()
    try:
        manager.send(Word.EXITED, {"status": status})
    except PeerDied:
        return


def reap_until(pid: int, manager: Channel) -> int:
    """Reap until ``pid`` ends and return its wait status; stop early when the manager is gone."""
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    poller = select.poll()
    poller.register(wake_read, select.POLLIN)
    poller.register(manager, 0)  # POLLHUP comes unasked
    while True:
        status = _reap_ready(pid)
        if status is not None:
            return status
        for fd, _events in poller.poll():
            if fd == manager.fileno():
                return signal.SIGKILL
            os.read(wake_read, 4096)


def _reap_ready(pid: int) -> int | None:
    """Reap all that is dead; return the status of ``pid`` if it is among them."""
    found = None
    try:
        while (done := os.waitpid(-1, os.WNOHANG))[0]:
            if done[0] == pid:
                found = done[1]
    except ChildProcessError:
        return found
    return found


def kill_children() -> None:
    """Kill and reap every process below this one: each round orphans the next generation to us."""
    while children := _children():
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    try:
        if os.readlink("/proc/self") != str(own):
            return []  # of another PID namespace, where our number is somebody else's
        fd = os.open(f"/proc/{own}/task/{own}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        text = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    return [int(word) for word in text.split()]
