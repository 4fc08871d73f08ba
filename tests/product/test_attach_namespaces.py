"""The settings of an attach: which namespaces, which root, whose shell."""

from __future__ import annotations

import json
import os
import pwd
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import needs
from tests.product.attached import attach, attach_shell, routed_view, running
from tests.product.container import Container
from tests.product.images import OFFSET
from tests.product.interactive import FEW, ONE

on_few = pytest.mark.parametrize("container", FEW, indirect=True, ids=str)
on_one = pytest.mark.parametrize("container", ONE, indirect=True, ids=str)

LINKS = "for kind in uts ipc net pid; do readlink /proc/self/ns/$kind; done"
REFUSED = 126


def namespaces(pid: int | str) -> list[str]:
    """Return what LINKS prints for a process."""
    return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("uts", "ipc", "net", "pid")]


# --- pid namespaces


@on_few
def test_the_hosts_pids(container: Container) -> None:
    """pid_namespace host: the host's /proc and ps, all other namespaces the container's."""
    options = ("--pid-namespace", "host")
    output = attach_shell(container, f"{LINKS}; ps -o pid= -p {os.getpid()}", options=options)
    *links, seen = output.split()

    assert [*namespaces(container.pid)[:3], namespaces("self")[3]] == links
    assert str(os.getpid()) == seen


@on_few
def test_no_routing_with_the_hosts_pids(container: Container) -> None:
    """There the container's programs are refused: they cannot live in the host's namespace."""
    options = ("--pid-namespace", "host")
    by_path = attach(container, "sh", "-c", "/c/bin/onlyhere", options=options)
    by_name = attach(container, "onlyhere", options=options)

    assert (REFUSED, "") == (by_path.returncode, by_path.stdout)
    assert (127, "") == (by_name.returncode, by_name.stdout)


@on_few
def test_new_pids(container: Container) -> None:
    """pid_namespace new: a namespace below the container's with its own /proc; its first process
    is the launcher's, and routed programs live there, too.
    """
    options = ("--pid-namespace", "new")
    output = attach_shell(
        container, "cat /proc/1/comm; readlink /proc/self/ns/pid; ps -e -o comm=", options=options
    )
    first, link, *processes = output.splitlines()
    view = routed_view(container, "onlyhere", options=options)

    assert "ns:[2:INIT]" == first
    assert link not in (namespaces("self")[3], namespaces(container.pid)[3])
    assert ["ns:[2:INIT]", "sh", "ps"] == processes
    assert container.image.name == view.image
    assert view.namespaces["pid"] != container.view().namespaces["pid"]


# --- other namespaces


@on_one
def test_a_choice_of_namespaces(container: Container) -> None:
    """--namespaces joins the kinds named and no other; a routed program is in all nevertheless."""
    options = ("--namespaces", "mnt,pid,uts")
    links = attach_shell(container, LINKS, options=options).split()
    uts, ipc, net, pid = zip(namespaces(container.pid), namespaces("self"), strict=True)

    assert [uts[0], ipc[1], net[1], pid[0]] == links
    view = routed_view(container, "/c/bin/onlyhere", options=options)
    assert container.view().namespaces == view.namespaces


@needs.runc
def test_a_namespace_by_its_file(start: Callable[..., Container]) -> None:
    """--namespaces net=FILE joins that one instead of the target's."""
    container, other = start("runc", "busybox"), start("runc", "noshell")
    options = ("--namespaces", f"mnt,pid,net=/proc/{other.pid}/ns/net")
    links = attach_shell(container, LINKS, options=options).split()

    assert namespaces(other.pid)[2] == links[2]
    assert namespaces(container.pid)[3] == links[3]
    view = routed_view(container, "/c/bin/onlyhere", options=options)
    assert container.view().namespaces == view.namespaces


@needs.runc
def test_joining_the_user_namespace(start: Callable[..., Container], home: Path) -> None:
    """user_namespace join: the shell is the container's root and no more than that on the host,
    whose files show the ids as mapped; new ones belong to the mapped id.
    """
    container = start("runc", "busybox", userns=True)
    os.chmod(home, 0o777)
    options = ("--user-namespace", "join")
    script = "id -u; readlink /proc/self/ns/user; stat -c %u /etc; touch made; stat -c %u made"
    output = attach_shell(container, script, options=options, cwd=str(home)).split()
    closed = attach(container, "cat", "/etc/shadow", options=options)

    user = os.readlink(f"/proc/{container.pid}/ns/user")
    assert ["0", user, "65534", "0"] == output
    assert OFFSET == os.stat(home / "made").st_uid
    assert 1 == closed.returncode
    assert "Permission denied" in closed.stderr
    assert container.view().namespaces == routed_view(container, "onlyhere").namespaces


@needs.runc
def test_root_of_the_host_stays_in_its_own_user_namespace(
    start: Callable[..., Container],
) -> None:
    """By default: so the container's root, which could act on a shell of its own namespace, cannot
    reach it; only routed programs join.
    """
    container = start("runc", "busybox", userns=True)
    link = attach_shell(container, "readlink /proc/self/ns/user").strip()
    escape = "ls /proc/*/root/etc/shadow 2> /dev/null | wc -l"
    seen = attach_shell(container, f"/c/bin/sh -c '{escape}'").strip()

    assert os.readlink("/proc/self/ns/user") == link
    assert "0" == seen


# --- the root


@on_one
def test_a_read_only_root(container: Container, tmp_path: Path) -> None:
    """--read-only refuses every change of the host's files, native ones included; /c stays as it
    is.
    """
    script = (
        f"for d in /var/tmp /tmp /run {tmp_path}; do touch $d/made; mkdir $d/made; done 2>&1;"
        " touch /c/made && rm /c/made && echo changed"
    )
    *refusals, last = attach(
        container, "sh", "-c", script, options=("--read-only",)
    ).stdout.splitlines()

    assert 8 == len(refusals)
    assert all("Read-only file system" in line for line in refusals)
    assert "changed" == last


@contextmanager
def echo_server(path: Path) -> Iterator[None]:
    """Answer one connection at a unix socket of the host with what it says."""
    server = socket.socket(socket.AF_UNIX)
    server.settimeout(20)
    server.bind(str(path))
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(connection.recv(100))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    thread.join(20)
    server.close()
    path.unlink()


TALK = (
    "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
    " s.sendall(b'hello'); print(s.recv(100).decode())"
)


@on_one
@pytest.mark.parametrize("directory", ["/run", "/tmp", "agent"])
def test_sockets_of_the_host(
    container: Container, home: Path, unique_name: str, directory: str
) -> None:
    """Those in /run and /tmp, and the one of $SSH_AUTH_SOCK wherever it is, can be talked to."""
    path = home / "agent" if directory == "agent" else Path(directory, unique_name)
    environment = {"SSH_AUTH_SOCK": str(path)} if directory == "agent" else {}
    with echo_server(path):
        talk = ("/usr/bin/python3", "-I", "-c", TALK, str(path))
        done = attach(container, *talk, environment=environment)

    assert (0, "hello\n", "") == (done.returncode, done.stdout, done.stderr)


@on_one
def test_more_native_directories(container: Container, home: Path) -> None:
    """root.native lists those to attach without FUSE, instead of /run and /tmp."""
    (home / "sockets").mkdir()
    config = home / "attach.json"
    config.write_text(json.dumps({"root": {"native": [str(home / "sockets")]}}))
    path = home / "sockets" / "socket"
    with echo_server(path):
        talk = ("/usr/bin/python3", "-I", "-c", TALK, str(path))
        done = attach(container, *talk, options=("--config", str(config)))
    kinds = attach_shell(container, "stat -f -c %T /tmp", options=("--config", str(config)))

    assert (0, "hello\n") == (done.returncode, done.stdout)
    assert "fuse" in kinds


@on_one
def test_the_containers_tree_elsewhere(container: Container, home: Path) -> None:
    """root.container_path names another place; routing and the refusals follow it."""
    config = home / "attach.json"
    config.write_text(json.dumps({"root": {"container_path": "/mnt/inside"}}))
    view = routed_view(container, "/mnt/inside/bin/onlyhere", options=("--config", str(config)))

    assert container.image.name == view.image
    assert container.view().root == view.root


# --- supervision

STATUS = "grep -E '^(TracerPid|Seccomp):' /proc/self/status | cut -f2; onlyhere exit 5 || echo $?"


@on_one
def test_supervision_of_the_whole_tree(container: Container) -> None:
    """By default every process is traced, and the container's programs are routed."""
    tracer, filtered, code = attach_shell(container, STATUS).split()

    # the tracer lives outside the container's pid namespace, where it has no number
    assert ("0", "2", "5") == (tracer, filtered, code)
    assert _tracer_while_running(container) != "0"


@on_one
def test_supervision_of_routed_programs_only(container: Container) -> None:
    """supervise routed: nobody is traced but for the passage of a routed program."""
    options = ("--supervise", "routed")

    assert ["0", "2", "5"] == attach_shell(container, STATUS, options=options).split()
    assert _tracer_while_running(container, options) == "0"


@on_one
def test_no_supervision(container: Container) -> None:
    """supervise off: no filter, no tracer; the container's programs are refused by the kernel."""
    options = ("--supervise", "off")
    done = attach(container, "sh", "-c", f"{STATUS}; /c/bin/onlyhere", options=options)

    assert ["0", "0", "127"] == done.stdout.split()
    assert REFUSED == done.returncode
    assert _tracer_while_running(container, options) == "0"


def _tracer_while_running(container: Container, options: tuple[str, ...] = ()) -> str:
    """Return the tracer of a program in the attached shell, as the host sees it."""
    before = container.processes()
    script = "echo started; sleep 1000; true"
    with running(container, "bash", "-c", script, options=options) as process:
        inside = container.processes() - before
        pid = min(pid for pid in inside if _status(pid, "Name") == "bash")
        tracer = _status(pid, "TracerPid")
        process.terminate()
        process.wait(20)
    return tracer


def _status(pid: int, key: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":", 1) for line in lines)[key].strip()


# --- whose shell


@on_one
@needs.user
def test_another_user(container: Container, home: Path) -> None:
    """-u gives the user's ids, groups, home and shell; files are made as that user."""
    entry = pwd.getpwnam(needs.USER)
    os.chmod(home, 0o777)
    script = "id -u; id -g; id -G; echo $HOME $SHELL $USER; touch made"
    output = attach_shell(container, script, options=("-u", needs.USER), cwd=str(home))
    uid, gid, groups, words = output.splitlines()
    facts = os.stat(home / "made")
    refused = attach(container, "touch", "/etc/made-by-test", options=("-u", needs.USER))

    assert [str(entry.pw_uid), str(entry.pw_gid)] == [uid, gid]
    assert sorted(os.getgrouplist(needs.USER, entry.pw_gid)) == sorted(map(int, groups.split()))
    assert f"{entry.pw_dir} {entry.pw_shell} {needs.USER}" == words
    assert (entry.pw_uid, entry.pw_gid) == (facts.st_uid, facts.st_gid)
    assert "Permission denied" in refused.stderr


@on_one
def test_variables(container: Container) -> None:
    """-e sets one, or takes the launcher's own; the rest is the launcher's environment."""
    environment = {"OF_THE_LAUNCHER": "own word", "TAKEN": "as it is"}
    script = 'echo "$OF_THE_LAUNCHER|$TAKEN|$SET"'
    options = ("-e", "TAKEN", "-e", "SET=a=b c")
    done = attach(container, "sh", "-c", script, options=options, environment=environment)

    assert "own word|as it is|a=b c\n" == done.stdout


@on_one
def test_an_empty_environment(container: Container) -> None:
    """--clear-env leaves who the person is, PATH, and what -e sets."""
    options = ("--clear-env", "-e", "SET=word")
    output = attach(container, "env", options=options).stdout
    names = {line.partition("=")[0] for line in output.splitlines()}

    assert {"HOME", "USER", "LOGNAME", "SHELL", "PATH", "SET"} == names
    assert "SET=word" in output


@on_one
def test_the_directory_to_start_in(container: Container, home: Path) -> None:
    """The launcher's own, as the host's path; where the shell's root lacks it, the home; or -w,
    which must exist.
    """
    hidden = Path("/dev/shm", home.name)
    hidden.mkdir()
    own = attach(container, "pwd", cwd=str(home))
    lacking = attach(container, "pwd", cwd=str(hidden), environment={"HOME": str(home)})
    hidden.rmdir()
    chosen = attach(container, "pwd", options=("-w", "/c/bin"))
    absent = attach(container, "pwd", options=("-w", "/absent"))

    assert (f"{home}\n", f"{home}\n", "/c/bin\n") == (own.stdout, lacking.stdout, chosen.stdout)
    assert 125 == absent.returncode
    assert "change directory to /absent" in absent.stderr


# --- who may be attached to

RISKY = ("CAP_SYS_PTRACE",)


@pytest.mark.parametrize("engine", [pytest.param("runc", marks=needs.runc),
                                    pytest.param("docker", marks=needs.docker)])  # fmt: skip
def test_a_container_that_could_reach_the_shell(
    start: Callable[..., Container], engine: str
) -> None:
    """With CAP_SYS_PTRACE in the shell's user namespace its root could take the shell over: it is
    refused, unless the shell is out of its sight or the container is trusted.
    """
    container = start(engine, "busybox", capabilities=RISKY)
    refused = attach(container, "true")

    assert 125 == refused.returncode
    assert "CAP_SYS_PTRACE" in refused.stderr
    assert "--trust-container" in refused.stderr
    assert 125 == attach(container, "true", options=("--pid-namespace", "new")).returncode
    assert 0 == attach(container, "true", options=("--pid-namespace", "host")).returncode
    assert 0 == attach(container, "true", options=("--trust-container",)).returncode


@needs.runc
def test_the_same_in_a_user_namespace(start: Callable[..., Container]) -> None:
    """There the capability does not reach the shell of the host's root, unless it joins."""
    container = start("runc", "busybox", userns=True, capabilities=RISKY)

    assert 0 == attach(container, "true").returncode
    assert 125 == attach(container, "true", options=("--user-namespace", "join")).returncode
