"""A person's tools in the attached shell: debuggers, tracers, other users, sandboxes."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.product.attached import LAUNCHER, attach, attach_shell
from tests.product.container import Container
from tests.product.interactive import FEW, ONE, terminal

on_few = pytest.mark.parametrize("container", FEW, indirect=True, ids=str)
on_one = pytest.mark.parametrize("container", ONE, indirect=True, ids=str)

# Two threads and a child; `seven` is where the debugger stops.
DEBUGGED = """
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
static void *thread(void *x) { return x; }
int seven(int n) { return n + 1; }
int main(void) {
    pthread_t t;
    pthread_create(&t, 0, thread, 0);
    pthread_join(t, 0);
    if (!fork()) { execl("/bin/true", "true", (char *)0); _exit(9); }
    int status = 5;
    wait(&status);
    printf("seven %d child %d\\n", seven(6), status);
    return 3;
}
"""

TYPES = """
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void) {
    char c = 'x';
    int first = ioctl(0, TIOCSTI, &c) ? errno : 0;
    c = 3;
    int second = ioctl(0, TIOCLINUX, &c) ? errno : 0;
    printf("typing: %d %d\\n", first, second);
    return 0;
}
"""


def compiled(source: str, target: Path, *options: str, compiler: str = "gcc") -> Path:
    """Compile a C program."""
    command = [compiler, *options, "-x", "c", "-", "-o", str(target)]
    subprocess.run(command, input=source, text=True, check=True)
    return target


@contextmanager
def running_in(container: Container, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a program run in the container, started by its engine."""
    command = container.engine.exec_command(container, argv, None)
    before = container.processes()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **container.engine.environment},
    )
    deadline = time.monotonic() + 10
    while not any(_comm(pid) == argv[0] for pid in container.processes() - before):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@needs.gdb
@on_one
def test_gdb_runs_a_program_of_the_host(container: Container, home: Path) -> None:
    """Breakpoints, threads, forks and the exit code are as on the host."""
    program = compiled(DEBUGGED, home / "debugged", "-g", "-O0", "-pthread")
    commands = ("break seven", "run", "print n", "backtrace", "continue")
    arguments = [word for command in commands for word in ("-ex", command)]
    output = attach(container, "gdb", "-q", "-nx", "-batch", *arguments, str(program)).stdout

    assert "$1 = 6" in output
    assert re.search(r"#1 .* in main \(\)", output)
    assert "seven 7 child 0" in output
    assert "exited with code 03" in output


@needs.gdb
@on_few
def test_gdb_attaches_to_a_process_of_the_container(container: Container) -> None:
    """With its sysroot at /c gdb reads the symbols of the container's own program."""
    arguments = ("-q", "-nx", "-batch", "-iex", "set sysroot /c", "-p", "1", "-ex", "backtrace")
    output = attach(container, "gdb", *arguments).stdout

    assert re.search(r"in pause \(\)", output)
    assert "(process 1) detached" in output


@needs.strace
@on_one
def test_strace_follows_forks(container: Container, home: Path) -> None:
    """strace -f of a program of the host sees every process, exec and end."""
    log = home / "log"
    script = "/bin/true; echo word | cat; (exit 4)"
    done = attach(container, "strace", "-f", "-o", str(log), "sh", "-c", script)
    text = log.read_text()

    assert (4, "word\n", "") == (done.returncode, done.stdout, done.stderr)
    assert {"/bin/true", "/usr/bin/cat"} <= set(re.findall(r'execve\("([^"]+)"', text))
    assert 4 <= len(set(re.findall(r"^(\d+) ", text, re.MULTILINE)))
    assert re.search(r"exited with 4", text)


@needs.strace
@on_few
def test_strace_attaches_to_a_process_of_the_container(container: Container) -> None:
    """strace -p sees what a process of the container does, and lets it go on."""
    done = attach(container, "timeout", "-s", "INT", "1", "strace", "-p", "1")

    assert "Process 1 attached" in done.stderr
    assert "pause(" in done.stderr
    assert "Process 1 detached" in done.stderr
    assert "S" == Path(f"/proc/{container.pid}/stat").read_text().split()[2]


@needs.lsof
@on_few
def test_kill_and_lsof_reach_the_containers_processes(container: Container) -> None:
    """kill ends a process of the container; lsof shows its files, by the container's paths."""
    with running_in(container, "sleep", "1000") as process:
        output = attach_shell(
            container, 'lsof -a -d txt -p "$(pidof sleep)"; kill -TERM "$(pidof sleep)"'
        )
        process.wait(5)

    assert "/bin/busybox" in output


@needs.user
@needs.sudo
@on_one
def test_sudo_and_su_run_programs_as_another_user(container: Container) -> None:
    """Both are set-user-id programs of the host, and know the host's users."""
    uid = str(pwd.getpwnam(needs.USER).pw_uid)
    by_sudo = attach(container, "sudo", "-u", needs.USER, "id", "-u")  # it misses the host's name
    by_su = attach(container, "su", needs.USER, "-c", "id -u")

    assert (0, uid) == (by_sudo.returncode, by_sudo.stdout.strip())
    assert (0, uid) == (by_su.returncode, by_su.stdout.strip())


@needs.user
@on_one
def test_a_set_user_id_program_gives_an_ordinary_user_its_owners_rights(
    container: Container, home: Path
) -> None:
    """The FUSE root is not mounted nosuid: a host program's bit counts, as on the host."""
    program = Path(shutil.copy("/usr/bin/id", home / "id"))
    program.chmod(0o4755)
    done = attach(container, str(program), "-u", options=("-u", needs.USER))

    assert (0, "0", "") == (done.returncode, done.stdout.strip(), done.stderr)


@on_one
def test_user_namespaces_can_be_made(container: Container) -> None:
    """unshare -U works, as it does not in a plain chroot; also for an ordinary user."""
    assert "65534\n" == attach(container, "unshare", "-U", "id", "-u").stdout
    assert "0\n" == attach(container, "unshare", "-Urm", "id", "-u").stdout
    options = ("-u", needs.USER)
    assert "0\n" == attach(container, "unshare", "-Urm", "id", "-u", options=options).stdout


@needs.bwrap
@needs.user
@on_one
def test_bubblewrap_works(container: Container) -> None:
    """bwrap makes a sandbox of the host's files; an ordinary user drops the shell's one ambient
    capability first, since bwrap runs with none.
    """
    sandbox = ("bwrap", "--unshare-user", "--uid", "77", "--ro-bind", "/", "/", "id", "-u")
    person = attach(
        container, "setpriv", "--ambient-caps=-all", *sandbox, options=("-u", needs.USER)
    )

    assert "77\n" == attach(container, *sandbox).stdout
    assert ("77\n", "") == (person.stdout, person.stderr)


@needs.musl
@on_one
def test_nobody_types_into_the_terminal(container: Container, home: Path) -> None:
    """TIOCSTI and TIOCLINUX are refused to programs of the host and of the container: they share
    the terminal with a shell of the host.
    """
    program = compiled(TYPES, home / "types", "-static", compiler="musl-gcc")
    inside = Path(f"/proc/{container.pid}/root/bin/types")
    shutil.copy(program, inside)
    try:
        with terminal(container, "sh", "-c", f"{program}; /c/bin/types; echo end") as person:
            output = person.wait_for("end")
            person.end()
    finally:
        inside.unlink()

    assert 2 == output.count("typing: 1 1")


@needs.strace
@needs.gdb
@on_few
def test_under_a_debugger_a_program_of_the_container_is_refused(container: Container) -> None:
    """It cannot be routed then, so it does not run at all: never with the host's root."""
    traced = attach(container, "strace", "-o", "/dev/null", "/c/bin/onlyhere")
    found = attach(container, "strace", "-o", "/dev/null", "onlyhere")
    debugged = attach(container, "gdb", "-q", "-nx", "-batch", "-ex", "run", "/c/bin/onlyhere")

    for done in (traced, found, debugged):
        assert "Permission denied" in done.stderr
        assert "image" not in done.stdout


NOTE = "inside another attach: no supervision and no routing here"


@on_few
def test_an_attach_inside_an_attached_shell(container: Container) -> None:
    """It works, says in one line that it has no routing, and refuses the container's programs: a
    process can have one supervisor only.
    """
    script = "head -n1 /etc/os-release; cat /c/image.txt; hostname; /c/bin/onlyhere; exit 7"
    done = attach(container, LAUNCHER, "attach", "1", "--", "sh", "-c", script)
    first, *rest = done.stderr.splitlines()

    assert 7 == done.returncode
    assert NOTE in first
    assert 1 == len(rest)
    assert "Permission denied" in rest[0]
    host = Path("/etc/os-release").read_text().splitlines()[0]
    assert [host, container.image.name, container.name] == done.stdout.splitlines()


@on_one
@pytest.mark.parametrize("inner", ["tree", "off"])
def test_an_attach_inside_one_without_supervision(container: Container, inner: str) -> None:
    """With the outer one at `supervise: off` the inner one is supervised, if it is not told
    otherwise, and not routed; what it starts ends with it.
    """
    script = "head -n1 /etc/os-release; cat /c/image.txt; hostname; sleep 4321 & exit 7"
    words = ("attach", "--supervise", inner, "1", "--", "sh", "-c", script)
    done = attach(container, LAUNCHER, *words, options=("--supervise", "off"))

    note = "launcher: inside another attach: no routing here, programs in /c cannot be executed\n"
    assert (7, note if inner == "tree" else "") == (done.returncode, done.stderr)
    host = Path("/etc/os-release").read_text().splitlines()[0]
    assert [host, container.image.name, container.name] == done.stdout.splitlines()


@on_one
def test_routing_cannot_be_demanded_there(container: Container, home: Path) -> None:
    """routing: true inside an attached shell is refused with the reason."""
    (home / "attach.json").write_text('{"routing": true}')
    command = (LAUNCHER, "attach", "--config", str(home / "attach.json"), "1", "--", "true")
    done = attach(container, *command)

    assert 125 == done.returncode
    assert "another attach supervises this process already" in done.stderr


@needs.runc
def test_another_container_from_a_shell_with_the_hosts_pids(
    start: Callable[..., Container],
) -> None:
    """With pid_namespace host the shell sees all containers, and can attach to another one."""
    outer, inner = start("runc", "busybox"), start("runc", "noshell")
    script = "cat /c/image.txt; hostname; /c/bin/onlyhere; exit 7"
    done = attach(
        outer,
        *(LAUNCHER, "attach", inner.spec, "--", "sh", "-c", script),
        options=("--pid-namespace", "host"),
    )

    assert 7 == done.returncode
    assert NOTE in done.stderr
    assert ["noshell", inner.name] == done.stdout.splitlines()
