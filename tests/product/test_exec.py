"""`launcher exec`: one program in a running container, as one of the container's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests import needs
from tests.product.attached import LAUNCHER
from tests.product.container import SCRATCH, Container
from tests.product.engines import Case
from tests.product.view import View

SECONDS = 60
CASES = [
    pytest.param(case, marks=pytest.mark.need(case.engine))
    for case in (
        Case("docker", "busybox"),
        Case("podman", "busybox"),
        Case("podman", "noshell", userns=True),
        Case("runc", "noshell"),
        Case("runc", "busybox", userns=True),
        Case("launcher", "busybox"),
        Case("launcher", "noshell", userns=True),
    )
]
ONE = [pytest.param(Case("runc", "busybox", userns=True), marks=needs.runc)]
each_kind = pytest.mark.parametrize("container", CASES, indirect=True, ids=str)
one_kind = pytest.mark.parametrize("container", ONE, indirect=True, ids=str)


def words_of(container: Container, *command: str, options: tuple[str, ...] = ()) -> list[str]:
    """Return the words of a command line."""
    return [LAUNCHER, "exec", *options, container.spec, "--", *command]


def environment_of(container: Container) -> dict[str, str]:
    """Return the environment in which the container is found."""
    return {**os.environ, **container.engine.environment}


def execute(
    container: Container, *command: str, options: tuple[str, ...] = (), **wishes: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    wishes.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        words_of(container, *command, options=options), capture_output=True, text=True,
        timeout=SECONDS, cwd="/", env=environment_of(container), **wishes,
    )  # fmt: skip


def printed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a program that went well."""
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def view_of(container: Container, *options: str) -> View:
    """Return how a program sees the world that exec starts."""
    return View.parse(printed(execute(container, "/bin/onlyhere", options=options)))


# --- the same as the container's first process


@each_kind
def test_it_lives_where_the_first_process_lives(container: Container) -> None:
    """The same eight namespaces, root, mounts, host name, directory and cgroups."""
    view = view_of(container)
    proc = Path(f"/proc/{container.pid}")
    first = {kind: os.stat(proc / "ns" / kind).st_ino for kind in view.namespaces}

    assert first == view.namespaces
    assert container.image.name == view.image
    assert container.name == view.one("hostname")
    assert os.readlink(proc / "cwd") == view.one("cwd")
    mounts = [line.split()[0] for line in (proc / "mountinfo").read_text().splitlines()]
    assert mounts == [line.split()[0] for line in view.facts["mount"]]


@each_kind
def test_it_is_in_the_containers_cgroups(container: Container) -> None:
    """In every hierarchy, of version 1 and 2, as the host sees it."""
    with subprocess.Popen(
        words_of(container, "/bin/pause"), env=environment_of(container)
    ) as process:
        try:
            pid = wait_for_new(container)
            expected = Path(f"/proc/{container.pid}/cgroup").read_text()

            assert expected == Path(f"/proc/{pid}/cgroup").read_text()
        finally:
            process.terminate()
            process.wait(SECONDS)


def wait_for_new(container: Container) -> int:
    """Return the host's pid of the process that comes to a container."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        for pid in container.processes() - {container.pid}:
            if os.path.exists(f"/proc/{pid}") and _executes(pid, "/bin/pause"):
                return pid
        time.sleep(0.01)
    raise AssertionError("no process came")


def _executes(pid: int, program: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(program.encode() + b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


@each_kind
def test_it_has_the_rights_of_the_first_process(container: Container) -> None:
    """Ids, groups, five capability sets, no_new_privs and seccomp filters: no more, no less."""
    mine = view_of(container).status
    lines = Path(f"/proc/{container.pid}/status").read_text().splitlines()
    first = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    keys = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
            "Seccomp_filters", "Umask")  # fmt: skip

    assert {key: first[key] for key in keys} == {key: mine[key] for key in keys}
    assert ["0"] * 4 == mine["Uid"].split()
    assert ["0"] * 4 == mine["Gid"].split()


@pytest.mark.parametrize("container", [CASES[0], CASES[4]], indirect=True, ids=str)
def test_its_limits_and_score_are_the_containers(container: Container) -> None:
    """Resource limits and oom_score_adj."""
    output = printed(execute(container, "cat", "/proc/self/limits", "/proc/self/oom_score_adj"))
    proc = Path(f"/proc/{container.pid}")

    assert (proc / "limits").read_text() + (proc / "oom_score_adj").read_text() == output


@each_kind
def test_it_has_the_containers_environment(container: Container) -> None:
    """That of the first process and nothing of ours; no descriptor but the standard ones."""
    raw = Path(f"/proc/{container.pid}/environ").read_bytes().decode()
    first = dict(entry.split("=", 1) for entry in raw.split("\0") if "=" in entry)
    view = view_of(container)

    assert first.items() <= view.environment.items()
    assert set(view.environment) - set(first) <= {"PATH", "HOME"}
    assert {0, 1, 2} == set(view.descriptors)


@each_kind
def test_nothing_of_the_launcher_can_be_seen_inside(container: Container) -> None:
    """Before and after there are only the container's own processes."""
    before = container.processes()
    printed(execute(container, "/bin/onlyhere"))

    assert before == container.processes()


# --- options


@pytest.mark.parametrize("container", [CASES[1], *ONE], indirect=True, ids=str)
@pytest.mark.parametrize(
    ("user", "ids"),
    [("worker", "1234 1234"), ("1234", "1234 1234"), ("77:88", "77 88"), ("0:worker", "0 1234")],
)
def test_a_user_of_the_container(container: Container, user: str, ids: str) -> None:
    """By name of the container's own files or by number, with a group or its own."""
    output = printed(execute(container, "sh", "-c", "echo $(id -u) $(id -g)", options=("-u", user)))

    assert ids == output.strip()


@one_kind
def test_a_user_has_no_capabilities(container: Container) -> None:
    """Whoever is not root in the container has none, and their own home."""
    script = "grep -E 'Cap(Prm|Eff|Inh|Amb)' /proc/self/status; echo $HOME"
    *sets, home = printed(
        execute(container, "sh", "-c", script, options=("-u", "worker"))
    ).splitlines()

    assert {"0" * 16} == {line.split()[1] for line in sets}
    assert "/tmp" == home


@one_kind
def test_environment_and_directory(container: Container) -> None:
    """-e sets or passes on, --clear-env starts empty, -w changes the directory."""
    options = ("-e", "A=b c", "-e", "TEST_OWN", "-w", SCRATCH)
    wishes = {"env": environment_of(container) | {"TEST_OWN": "mine"}}
    words = words_of(container, "sh", "-c", 'echo "$A,$TEST_OWN,$PWD"', options=options)
    done = subprocess.run(words, capture_output=True, text=True, **wishes)  # type: ignore[call-overload]
    assert f"b c,mine,{SCRATCH}\n" == printed(done)

    view = view_of(container, "--clear-env", "-e", "ONLY=1")
    assert {"ONLY", "PATH"} == set(view.environment)


@one_kind
def test_a_program_is_found_in_the_containers_path(container: Container) -> None:
    """A name without a slash means the container's program, never the host's."""
    assert "image busybox" in printed(execute(container, "onlyhere"))
    assert 127 == execute(container, "python3").returncode


@one_kind
def test_namespaces_by_kind(container: Container) -> None:
    """Without mnt a program of the host runs in the container's other namespaces."""
    show = ("readlink", "/proc/self/ns/net", "/proc/self/ns/uts", "/proc/self/ns/mnt")
    output = printed(execute(container, *show, options=("--namespaces", "network,uts"))).split()
    inside = [os.readlink(f"/proc/{container.pid}/ns/{kind}") for kind in ("net", "uts")]

    assert [*inside, os.readlink("/proc/self/ns/mnt")] == output


@one_kind
def test_namespaces_by_file(container: Container, tmp_path: Path) -> None:
    """A file decides for its kind; it is refused by its key where it cannot be opened."""
    file = f"net=/proc/{os.getpid()}/ns/net,mnt,pid,user,uts"
    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/uts"
    output = printed(execute(container, "sh", "-c", script, options=("--namespaces", file)))
    theirs = os.readlink(f"/proc/{container.pid}/ns/uts")
    assert [os.readlink("/proc/self/ns/net"), theirs] == output.split()

    done = execute(container, "true", options=("--namespaces", f"net={tmp_path}/none"))
    assert (125, True) == (done.returncode, "namespaces.net" in done.stderr)


@one_kind
def test_the_cgroup_can_stay_ours(container: Container) -> None:
    """--cgroup host: the program is charged to the launcher."""
    command = words_of(container, "/bin/pause", options=("--cgroup", "host"))
    with subprocess.Popen(command, env=environment_of(container)) as process:
        try:
            cgroup = Path(f"/proc/{wait_for_new(container)}/cgroup").read_text()

            assert Path("/proc/self/cgroup").read_text() == cgroup
            assert Path(f"/proc/{container.pid}/cgroup").read_text() != cgroup
        finally:
            process.terminate()
            process.wait(SECONDS)


# --- streams, terminals, signals and the end


@pytest.mark.parametrize("container", [CASES[0], *ONE], indirect=True, ids=str)
def test_a_terminal_of_the_containers(container: Container) -> None:
    """-t: a pty of the container's devpts, the controlling terminal, owned by the user."""
    script = "tty; test -t 0 -a -t 1 -a -t 2 && stat -c %u $(tty); echo $TERM"
    done = execute(container, "sh", "-c", script, options=("-t", "-u", "worker", "-e", "TERM=x"))
    name, owner, term = done.stdout.split()

    assert (0, "1234", "x") == (done.returncode, owner, term)
    assert re.fullmatch(r"/dev/pts/\d+", name)


@one_kind
def test_a_shell_at_a_terminal(container: Container) -> None:
    """Prompt, Ctrl-C for the program and not for the launcher, size, and the exit code."""
    words = words_of(container, "sh", options=("-e", "PS1=ready> "))
    child = pexpect.spawn(words[0], words[1:], timeout=SECONDS, encoding="utf-8",
                          env=environment_of(container), dimensions=(33, 77))  # fmt: skip
    try:
        child.expect_exact("ready> ")
        child.sendline("stty size; sh -c 'echo started; exec sleep 100'")
        child.expect_exact("33 77\r\nstarted")
        child.sendintr()
        child.expect_exact("ready> ")
        child.sendline("exit 9")
        child.expect(pexpect.EOF)
    finally:
        child.close()

    assert 9 == child.exitstatus


@one_kind
def test_bytes_pass_unharmed(container: Container) -> None:
    """Standard streams are the program's own: any bytes, separate, and end of file."""
    data = bytes(range(256)) * 2000
    done = subprocess.run(words_of(container, "sh", "-c", "cat; echo end >&2"), input=data,
                          capture_output=True, timeout=SECONDS)  # fmt: skip

    assert (0, data, b"end\n") == (done.returncode, done.stdout, done.stderr)


@one_kind
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_program(container: Container, number: signal.Signals) -> None:
    """What the launcher is sent, the program gets; 128+n when it dies of it."""
    words = words_of(container, "sh", "-c", "echo up; exec sleep 1000")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "up\n" == process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=SECONDS)

    assert 128 + number == process.returncode


@one_kind
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 200"), 200),
        (("sh", "-c", "kill -SEGV $$"), 139),
        (("/nonexistent",), 127),
        (("nonexistent",), 127),
        (("/image.txt",), 126),
        (("/",), 126),
    ],
)
def test_exit_codes(container: Container, command: tuple[str, ...], status: int) -> None:
    """The program's own, its signal's, not found, not executable."""
    assert status == execute(container, *command).returncode


@needs.runc
def test_a_time_limit(start: Callable[..., Container]) -> None:
    """124 soon after the limit; the program is gone with all that it has in the background."""
    container = start("runc", "busybox", "/bin/sh", "-c", "while :; do sleep 1000; done")
    before = len(container.processes())
    started = time.monotonic()
    script = "trap '' TERM; sleep 1000 & sleep 1000"
    done = execute(container, "sh", "-c", script, options=("--timeout", "0.4"))

    assert (124, True) == (done.returncode, "0.4 s" in done.stderr)
    assert time.monotonic() - started < SECONDS / 4
    deadline = time.monotonic() + SECONDS / 4
    while len(container.processes()) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert before == len(container.processes())


@needs.runc
def test_the_end_of_the_container_is_told(start: Callable[..., Container]) -> None:
    """When the container dies while the program runs, the launcher says so and returns."""
    container = start("runc", "busybox")
    words = words_of(container, "sh", "-c", "echo up; exec sleep 1000")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "up\n" == process.stdout.readline()
        os.kill(container.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=SECONDS)

    assert 137 == process.returncode
    assert f"runc container {container.name} has exited" in errors


# --- what cannot work


@one_kind
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-u", "nobody-here"), "nobody-here"),
        (("-u", "root:no-group"), "no-group"),
        (("-w", "/nonexistent"), "/nonexistent"),
        (("-w", "relative"), "cwd"),
        (("-e", "=x"), "env"),
        (("--namespaces", "moon"), "namespaces"),
    ],
)
def test_what_cannot_work_is_said(
    container: Container, options: tuple[str, ...], text: str
) -> None:
    """125 and a line that names the option's key or value."""
    done = execute(container, "true", options=options)

    assert 125 == done.returncode
    assert text in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["no-such-container", "docker:", "moon:x", "4194304", "0", "-1"])
def test_a_target_that_does_not_exist(name: str) -> None:
    """An error of one line that names it."""
    words = [LAUNCHER, "exec", "--", name, "true"] if name == "-1" else None
    done = subprocess.run(words or [LAUNCHER, "exec", name, "--", "true"], capture_output=True,
                          text=True, timeout=SECONDS)  # fmt: skip

    assert done.returncode in (2, 125)
    assert done.stderr
    assert "Traceback" not in done.stderr


@needs.docker
def test_a_paused_container_is_refused(start: Callable[..., Container]) -> None:
    """Who enters a frozen cgroup never comes out: nothing is even tried."""
    container = start("docker", "busybox")
    container.engine.call("docker", "pause", container.name)
    try:
        done = execute(container, "true")
    finally:
        container.engine.call("docker", "unpause", container.name)

    assert 125 == done.returncode
    assert "paused" in done.stderr


@needs.podman
def test_a_restricted_container(start: Callable[..., Container]) -> None:
    """An ordinary user as the container's first process: so is the program."""
    container = start("podman", "busybox", user=1234)
    status = view_of(container).status
    first = dict(line.split(":\t", 1) for line in
                 Path(f"/proc/{container.pid}/status").read_text().splitlines())  # fmt: skip

    assert ["1234"] * 4 == status["Uid"].split()
    for key in ("CapPrm", "CapEff", "CapBnd", "Seccomp", "Seccomp_filters", "Groups"):
        assert first[key].split() == status[key].split(), key
