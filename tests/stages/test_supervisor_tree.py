"""Supervision: the tree lives as it would without, debuggers included, and ends with us."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.supervisor.filters import read_filters
from launcher.supervisor.notify import filter_program
from nsstages import trace
from nsstages.syscalls import PR_SET_NO_NEW_PRIVS, SECCOMP_SET_MODE_FILTER, Call, Packed, execute
from tests import needs
from tests.stages.supervised import Attach, Container, build_root, start_container, wait
from tests.stages.supervised_programs import build_caller, compile_c

pytestmark = [needs.root, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a container's root and the calling program."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    for name in ("root", "work"):
        (directory / name).mkdir()
    build_root(directory / "root")
    build_caller(directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def container(place: Path) -> Iterator[Container]:
    """A running container."""
    made = start_container(place / "root")
    yield made
    made.close()


@pytest.fixture(scope="module")
def caller(place: Path) -> str:
    """The program of the host that calls exec in the way its first argument says."""
    return str(place / "caller")


def state_of(pid: int) -> str:
    """Return the state letter of a process, "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_for_state(pid: int, states: str, seconds: float = 5) -> str:
    """Wait until a process is in one of ``states``; return the last one seen."""
    deadline = time.monotonic() + seconds
    while (state := state_of(pid)) not in states.split(",") and time.monotonic() < deadline:
        time.sleep(0.005)
    return state


def test_execs_forks_and_exits_are_recorded(container: Container) -> None:
    """Every exec, fork and exit of the tree is in the trace, with who, what and how it ended."""
    result = Attach(container, routed=False).sh("/usr/bin/env true; sh -c 'exit 3'; exit 4")
    shell = result.execs(path="/bin/sh", argv0="/bin/sh")[0]["subject"]
    forks = [e["subject"] for e in result.events if e["kind"] == "fork" and e["parent"] == shell]
    exits = {e["subject"]: e["status"] for e in result.events if e["kind"] == "exit"}

    assert 4 == result.status
    assert ["env", "true"] == [
        e["argv0"].rpartition("/")[2] for e in result.execs(subject=forks[0])
    ]
    assert {forks[0]: 0, forks[1]: 3 << 8, shell: 4 << 8} == exits
    assert all(e["view"] == "host" and e["errno"] == 0 for e in result.execs())


def test_signals_end_processes_as_without_us(container: Container) -> None:
    """The status of a killed program and of a caught signal are what the parent expects."""
    script = (
        "sh -c 'kill -9 $$'; echo $?; sh -c 'kill -SEGV $$'; echo $?;"
        " trap 'echo caught' USR1; kill -USR1 $$; echo done"
    )
    result = Attach(container).sh(script)

    assert "137\n139\ncaught\ndone\n" == result.out


def test_stopped_program_stops_and_goes_on(container: Container) -> None:
    """SIGTSTP stops a job, its parent is told, SIGCONT wakes it: Ctrl-Z and fg."""
    script = (
        "import os, signal, time\n"
        "pid = os.fork()\n"
        "if not pid:\n    os.execv('/usr/bin/sleep', ['sleep', '20'])\n"
        "time.sleep(0.1)\n"
        "for number in (signal.SIGTSTP, signal.SIGSTOP):\n"
        "    os.kill(pid, number)\n"
        "    status = os.waitpid(pid, os.WUNTRACED)[1]\n"
        "    print(os.WIFSTOPPED(status), os.WSTOPSIG(status) == number)\n"
        "    time.sleep(0.05)\n"
        "    print(open(f'/proc/{pid}/stat').read().split()[2] in 'tT')\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    print(os.WIFCONTINUED(os.waitpid(pid, os.WCONTINUED)[1]))\n"
        "os.kill(pid, 15)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    result = Attach(container).run("/usr/bin/python3", "-ISc", script)

    assert 2 * "True True\nTrue\nTrue\n" + "-15\n" == result.out, result.err


def test_routed_program_stops_and_goes_on(container: Container) -> None:
    """Job control works for a routed program too."""
    attach = Attach(container)
    script = "/c/bin/sh -c 'echo up; exec sleep 20' & read x; kill -TSTP $!; read x; kill $!"
    controller, terminal = os.pipe()
    output, writer = os.pipe()
    attach.start(["/bin/sh", "-c", script], stdio=(controller, writer, writer))
    os.read(output, 64)
    routed = next(e for e in events_of(attach) if e.get("routed"))["subject"]
    os.write(terminal, b"\n")
    stopped = wait_for_state(routed, "T,t")
    os.kill(routed, signal.SIGCONT)
    running = wait_for_state(routed, "S")
    os.kill(routed, signal.SIGKILL)
    os.write(terminal, b"\n")
    for fd in (terminal, output):
        os.close(fd)
    result = attach.finish()

    assert (True, "S") == (stopped in "Tt", running)
    assert 0 == len(result.execs(errno=13))


def events_of(attach: Attach) -> list[dict[str, Any]]:
    """Return what the supervisor has recorded so far."""
    return list(trace.read_sink(attach.sink))


@needs.strace
def test_strace_works_inside(container: Container) -> None:
    """strace -f sees the system calls of a program and of its children."""
    result = Attach(container).sh(
        "strace -f -o /tmp/log -e trace=execve sh -c '/usr/bin/true; /usr/bin/env false; exit 5';"
        " echo $?; grep -c 'execve(.* = 0$' /tmp/log; grep -c exited /tmp/log"
    )

    assert ["5", "4", "3"] == result.out.split(), result.err


@needs.strace
def test_strace_attaches_to_a_running_process(container: Container) -> None:
    """strace -p takes a process over from the supervisor, and gives it back alive."""
    result = Attach(container).sh(
        "sleep 5 & p=$!; timeout -s INT 0.5 strace -o /tmp/log -p $p; kill -0 $p && echo alive;"
        " kill $p; wait $p; echo $?; grep -c restart_syscall /tmp/log"
    )

    assert ["alive", "143", "1"] == result.out.split(), result.err


@needs.gdb
def test_gdb_works_inside(container: Container, place: Path) -> None:
    """gdb starts a program, stops it at a breakpoint, and sees it end."""
    program = compile_c("int main(void) { return 5; }", place / "five", "-g", "-static")
    result = Attach(container).sh(
        f"gdb -nx -batch -ex 'break main' -ex run -ex continue {program} 2>&1"
    )

    assert "Breakpoint 1, main" in result.out
    assert "exited with code 05" in result.out


@needs.gdb
def test_gdb_attaches_to_a_threaded_process(container: Container, place: Path) -> None:
    """gdb -p takes over every thread of a process that the supervisor traces."""
    source = (
        "#include <pthread.h>\n#include <unistd.h>\n"
        "static void *idle(void *p) { for (;;) pause(); }\n"
        "int main(void) { pthread_t t; for (int i = 0; i < 3; i++) pthread_create(&t, 0, idle, 0);"
        ' write(1, "up\\n", 3); for (;;) pause(); }\n'
    )
    program = compile_c(source, place / "threads", "-pthread", "-static")
    result = Attach(container).sh(
        f"{program} > /tmp/up & p=$!; while ! test -s /tmp/up; do sleep 0.02; done;"
        " gdb -nx -batch -p $p -ex 'info threads' 2>&1 | grep -c LWP; kill $p; wait $p; echo $?"
    )
    seen, status = result.out.split()

    assert int(seen) >= 4
    assert "143" == status


@needs.strace
def test_program_of_the_container_under_strace_is_refused(container: Container) -> None:
    """Under a foreign tracer nothing can be routed, and the file does not run with our root."""
    result = Attach(container).sh("strace -f -o /dev/null /c/opt/box/busybox true; echo $?")

    assert "1\n" == result.out
    assert "Permission denied" in result.err


@needs.strace
def test_debugged_processes_end_with_the_supervisor(container: Container) -> None:
    """What a debugger took over ends too when the manager hangs up."""
    attach = Attach(container)
    output, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    attach.start(
        ["/bin/sh", "-c", "strace -D -o /dev/null sh -c 'echo $$; exec sleep 60'"],
        stdio=(null, writer, null),
    )
    os.read(output, 64)
    time.sleep(0.1)
    debugged = [e for e in events_of(attach) if e["kind"] == "exec"][-1]["subject"]
    attach.channel.close()
    gone = wait_for_state(debugged, ",Z,X")
    os.close(output)
    attach.finish()

    assert gone in ("", "Z", "X")


def test_typing_into_the_terminal_is_refused(container: Container, caller: str) -> None:
    """TIOCSTI and TIOCLINUX fail with EPERM for everything in the tree."""
    master, slave = pty.openpty()
    attach = Attach(container)
    output, writer = os.pipe()
    attach.start([caller, "type"], stdio=(slave, writer, writer), terminal=True)
    said = read_to_end(output)
    attach.finish()
    os.close(master)

    assert b"errno 1\nerrno 1\n" == said


def read_to_end(fd: int) -> bytes:
    """Read until end of file, at most 10 seconds, and close."""
    data = b""
    while select.select([fd], [], [], 10)[0] and (piece := os.read(fd, 4096)):
        data += piece
    os.close(fd)
    return data


def test_signal_storm_does_not_disturb_routing(container: Container, caller: str) -> None:
    """Signals that arrive while programs are being routed change nothing."""
    script = (
        "trap : WINCH; ( while kill -WINCH 0 2>/dev/null; do :; done ) & storm=$!;"
        f" {caller} loop 60 /c/bin/true; echo $?; {caller} loop 60 /bin/true; echo $?;"
        " kill -9 $storm"
    )
    result = Attach(container).sh(script)

    assert "0\n0\n" == result.out


def test_stop_signals_during_routing_are_not_lost(container: Container, caller: str) -> None:
    """SIGSTOP and SIGCONT, which cannot be blocked, leave routed programs running and correct."""
    script = (
        f"{caller} loop 40 /c/bin/true & p=$!; n=0;"
        " while kill -0 $p 2>/dev/null && test $n -lt 400; do"
        " for t in $(cat /proc/$p/task/$p/children); do kill -STOP $t; kill -CONT $t; done"
        " 2>/dev/null; n=$((n+1)); done; wait $p; echo $?"
    )
    result = Attach(container).sh(script)

    assert "0\n" == result.out


def test_stop_during_routing_lasts_until_it_is_continued(container: Container) -> None:
    """A program stopped at any moment of its routing stays stopped, and goes on when told to."""
    script = (
        "import os, random, signal, time\n"
        "def state(pid): return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0]\n"
        "for turn in range(30):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n        os.execv('/c/bin/sleep', ['sleep', '9'])\n"
        "    time.sleep(random.random() * 0.003)\n"
        "    os.kill(pid, signal.SIGSTOP)\n"
        "    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])\n"
        "    end, seen = time.monotonic() + 9, 0\n"
        "    while seen < 5:\n"  # it first arrives in the container, stopping for the tracer
        "        seen = seen + 1 if state(pid) in 'tT' else 0\n"
        "        assert time.monotonic() < end\n"
        "        time.sleep(0.004)\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    while state(pid) in 'tT' or 'sleep' not in open(f'/proc/{pid}/comm').read():\n"
        "        assert time.monotonic() < end\n"
        "    os.kill(pid, signal.SIGKILL)\n"
        "    os.waitpid(pid, 0)\n"
        "print('done')\n"
    )
    result = Attach(container).run("/usr/bin/python3", "-ISc", script)

    assert "done\n" == result.out, result.err


@pytest.mark.parametrize("mode", ["tree", "routed"])
def test_hundreds_of_execs_at_once(container: Container, caller: str, mode: str) -> None:
    """Three hundred ordinary execs at the same time all succeed."""
    result = Attach(container, mode=mode).run(caller, "many", "300", "/bin/true", timeout=30)

    assert "failed 0\n" == result.out


def test_callers_that_die_while_they_wait(container: Container, caller: str) -> None:
    """Processes killed in the middle of an exec, routed or not, never disturb the others."""
    script = (
        "import os, random, signal, time\n"
        "for path in 40 * ['/c/bin/true', '/bin/true']:\n"
        "    pid = os.fork()\n"
        "    if not pid:\n        os.execv(path, ['true'])\n"
        "    time.sleep(random.random() * 0.003)\n"
        "    os.kill(pid, signal.SIGKILL)\n"
        "    os.waitpid(pid, 0)\n"
        "print(os.system('/c/bin/true'), os.system('/bin/true'))\n"
    )
    result = Attach(container).run("/usr/bin/python3", "-ISc", script)

    assert "0 0\n" == result.out, result.err


def test_set_user_id_programs_work(container: Container) -> None:
    """A set-user-id program gets its rights although it is traced."""
    result = Attach(container).sh(
        "cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id;"
        " setpriv --reuid 1000 --regid 1000 --clear-groups /tmp/id -u"
    )

    assert "0\n" == result.out, result.err


def test_death_of_the_supervisor_kills_the_tree(container: Container) -> None:
    """When the supervisor is killed, every process of the tree is: nothing runs unsupervised."""
    attach = Attach(container)
    output, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    attach.start(
        ["/bin/sh", "-c", "sleep 60 & setsid sleep 60 & /c/bin/sleep 60 & echo up; wait"],
        stdio=(null, writer, null),
    )
    os.read(output, 64)
    time.sleep(0.1)
    pids = {e["subject"] for e in events_of(attach) if e["kind"] == "exec"}
    os.kill(attach.supervisor, signal.SIGKILL)
    status = wait(attach.parent, 5)
    states = [wait_for_state(pid, ",Z,X") for pid in pids]
    os.close(output)
    wait(attach.supervisor, 5)
    attach.channel.close()
    os.close(attach.sink)

    assert 256 - signal.SIGKILL == status
    assert len(pids) >= 4
    assert all(state in ("", "Z", "X") for state in states)


def test_end_of_the_manager_ends_the_tree(container: Container) -> None:
    """When the manager's end of the channel closes, the supervisor and the tree end."""
    attach = Attach(container)
    null = os.open("/dev/null", os.O_RDWR)
    attach.start(["/bin/sleep", "60"], stdio=(null, null, null))
    attach.channel.close()

    assert 256 - signal.SIGKILL == wait(attach.parent, 5)
    assert 0 == wait(attach.supervisor, 5)
    os.close(attach.sink)


def test_daemons_of_the_shell_stay_supervised(container: Container) -> None:
    """The supervisor ends with the last process of the tree, not with the shell."""
    result = Attach(container).sh("(sleep 0.3; /c/bin/cat /etc/marker) & exit 0")

    assert (0, "the container\n") == (result.status, result.out)


def test_program_of_another_abi_is_routed(container: Container, place: Path) -> None:
    """A 32-bit program that executes a program of the container is routed like any other."""
    source = place / "abi.s"
    source.write_text(
        ".globl _start\n_start: mov $path, %ebx; mov $argv, %ecx; xor %edx, %edx\n"
        "mov $11, %eax; int $0x80; mov %eax, %ebx; neg %ebx; mov $1, %eax; int $0x80\n"
        '.data\npath: .asciz "/c/bin/cat"\nmarker: .asciz "/etc/marker"\n'
        "argv: .long path, marker, 0\n"
    )
    subprocess.run(["as", "--32", "-o", place / "abi.o", source], check=True)
    subprocess.run(["ld", "-m", "elf_i386", "-o", place / "abi", place / "abi.o"], check=True)
    result = Attach(container).run(str(place / "abi"))

    assert (0, "the container\n") == (result.status, result.out)


def test_filters_of_a_target_are_read_and_it_runs_on() -> None:
    """The raw seccomp filters come back as installed, oldest first, and the target goes on."""
    allow = bytes.fromhex("060000000000ff7f")
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            execute(Call("prctl", (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))
            for program in (allow, allow + allow):
                packed = Packed("HxxxxxxQ", (len(program) // 8, program))
                execute(Call("seccomp", (SECCOMP_SET_MODE_FILTER, 0, packed)))
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)
    filters = read_filters(pid)
    state = wait_for_state(pid, "S")
    tracer = Path(f"/proc/{pid}/status").read_text().split("TracerPid:\t")[1].split()[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

    assert (allow, allow + allow) == filters
    assert ("S", "0") == (state, tracer)


def test_filter_is_a_valid_program() -> None:
    """The filter's jumps stay inside, every path returns, and it is short."""
    program = filter_program()

    assert 0 == len(program) % 8
    assert len(program) // 8 < 64
