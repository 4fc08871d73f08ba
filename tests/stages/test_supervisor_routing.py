"""Routing: a program of the container runs in the container's view, whoever executes it how."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.syscalls import Call
from tests import needs
from tests.stages.supervised import (
    ID_OFFSET,
    Attach,
    Container,
    build_root,
    start_container,
    write_program,
)
from tests.stages.supervised_programs import build_caller, build_dynamic

pytestmark = [needs.root, needs.musl, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a container's root and the calling program, at the same path for hosts."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    for name in ("root", "work"):
        (directory / name).mkdir()
    build_root(directory / "root")
    build_dynamic(directory / "root")
    build_caller(directory)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=["plain", "userns"])
def container(place: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container, without and with a user namespace."""
    made = start_container(place / "root", userns=request.param == "userns")
    yield made
    made.close()


@pytest.fixture(scope="module")
def caller(place: Path) -> str:
    """The program of the host that calls exec in the way its first argument says."""
    return str(place / "caller")


ROOT_INSIDE = (
    Call("setgroups", (0, b"")),
    Call("setresgid", (0, 0, 0)),
    Call("setresuid", (0, 0, 0)),
)


def attach(container: Container, **how: object) -> Attach:
    """An attach whose routed programs become root of the container."""
    return Attach(container, calls=ROOT_INSIDE, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["tree", "routed"])
def test_program_of_the_container_sees_the_container(container: Container, mode: str) -> None:
    """A program executed below /c has the container's root, whichever way it is supervised."""
    result = attach(container, mode=mode).sh("/c/bin/cat /etc/marker; echo $?; exit 7")

    assert (7, "the container\n0\n", "") == (result.status, result.out, result.err)
    assert [("/bin/cat", "container", 0)] == [
        (e["path"], e["view"], e["errno"]) for e in result.execs(routed=True)
    ]


@pytest.mark.parametrize("name", ["hello-static", "hello-glibc", "hello-musl"])
def test_every_kind_of_program_is_routed(container: Container, name: str) -> None:
    """Static, glibc and musl programs run, with interpreters that only the container has."""
    result = attach(container).sh(f"/c/bin/{name} 5; echo $?")

    assert f"/c/bin/{name} says: the container\n5\n" == result.out


def test_script_runs_with_the_containers_interpreter(container: Container) -> None:
    """A script of the container runs under its own path, by an interpreter of the container."""
    result = attach(container).sh(
        "/c/scripts/where one two; cd /c/scripts; ./where; ../scripts/where"
    )

    assert "the container\n/scripts/where one two\n" + 2 * "the container\n/scripts/where \n" == (
        result.out
    )


def test_link_of_the_host_into_the_container_is_followed(container: Container, place: Path) -> None:
    """A symbolic link of the host that leads below /c is a program of the container."""
    link = place / "link"
    link.symlink_to("/c/bin/hello-static")
    try:
        result = attach(container).sh(f"{link}; cd {place}; ./link; /c/../{place}/link")
    finally:
        link.unlink()

    assert f"{link} says: the container" == result.out.splitlines()[0]
    assert 3 == result.out.count("the container")


def test_program_directory_of_the_path_finds_programs(container: Container) -> None:
    """Programs of the container's PATH are found by name in /.launcher/bin."""
    result = attach(container).sh("PATH=/.launcher/bin; readlink /proc/self/exe; ls -d /opt/box")

    assert "/opt/box/busybox\n/opt/box\n" == result.out


def test_paths_that_leave_the_container_again_are_the_hosts(container: Container) -> None:
    """/c/.. is the host's root: only what the walk ends at counts."""
    result = attach(container).sh("cd /c/bin && ../../usr/bin/test -e /c/etc/marker; echo $?")

    assert "0\n" == result.out
    assert [] == result.execs(routed=True)


@pytest.mark.parametrize("how", ["thread", "leader", "vfork", "spawn", "fd"])
@pytest.mark.parametrize("mode", ["tree", "routed"])
def test_every_way_to_exec_is_routed(
    container: Container, caller: str, how: str, mode: str
) -> None:
    """From a thread, a multi-threaded leader, vfork, posix_spawn, and by descriptor."""
    result = attach(container, mode=mode).run(caller, how, "/c/bin/hello-glibc", "4")

    assert (4, "/c/bin/hello-glibc says: the container\n") == (result.status, result.out)


def test_execveat_below_a_directory_is_routed(container: Container, caller: str) -> None:
    """A relative path below a directory descriptor of the container's tree."""
    result = attach(container).run(caller, "at", "/c/bin", "hello-static")

    assert "hello-static says: the container\n" == result.out


def test_python_subprocess_is_routed(container: Container) -> None:
    """subprocess.run, which uses vfork, of a program found in PATH."""
    script = "import subprocess; print(subprocess.check_output(['/c/bin/cat', '/etc/marker']))"
    result = attach(container).run(sys.base_prefix + "/bin/python3.11", "-ISc", script)

    assert "b'the container\\n'\n" == result.out


def test_ordinary_user_is_routed_to_the_targets_ids(container: Container) -> None:
    """An ordinary user's exec is routed too; the program has the target's ids, not the user's."""
    result = attach(container).sh("/usr/bin/id -u; /c/bin/id -u; /c/bin/hello-musl", uid=1000)

    assert "1000\n0\n/c/bin/hello-musl says: the container\n" == result.out


def test_caller_without_new_privileges_is_refused(container: Container, caller: str) -> None:
    """With no_new_privs the vessel would have no rights: EACCES, as for any refused exec."""
    result = attach(container).run(caller, "nnp", "/c/bin/true", uid=1000)

    assert (3, "errno 13\n") == (result.status, result.out)


def test_environment_is_the_containers(container: Container) -> None:
    """The container's variables, but for the ones to keep, which come from the caller."""
    result = attach(container).run(
        "/bin/sh", "-c", "/c/bin/env", env={"TERM": "vt100", "SECRET": "of the host"}
    )

    assert {"PATH=/bin", "FROM=container", "TERM=vt100"} == set(result.out.split("\n")[:-1])


@pytest.mark.parametrize(
    ("cwd", "inside"),
    [("/c", "/"), ("/c/opt/box", "/opt/box"), ("/proc", "/proc"), ("/usr", "/root")],
)
def test_working_directory_is_mapped(container: Container, cwd: str, inside: str) -> None:
    """/c/x becomes /x, bound directories stay, anything else is the container's own."""
    result = attach(container).sh("/c/bin/pwd", cwd=cwd)

    assert f"{inside}\n" == result.out


def test_namespaces_are_the_containers(container: Container) -> None:
    """The routed program is in every namespace of the container's init."""
    kinds = "mnt pid ipc uts" + (" user" if container.userns else "")
    result = attach(container).sh(f"for k in {kinds}; do /c/bin/readlink /proc/self/ns/$k; done")
    expected = [os.readlink(f"/proc/{container.pid}/ns/{kind}") for kind in kinds.split()]

    assert expected == result.out.split()


def test_ids_are_the_containers(container: Container, place: Path) -> None:
    """What root of the container writes has root's id as seen from outside."""
    file = place / "root/work/written"
    (place / "root/work").chmod(0o777)
    attach(container).sh("/c/bin/sh -c 'echo x > /work/written'")
    try:
        owner = file.stat().st_uid
    finally:
        file.unlink()

    assert (ID_OFFSET if container.userns else 0) == owner


def test_children_of_routed_programs_stay_inside(container: Container) -> None:
    """What a routed program executes is its own business, even below a /c of its own."""
    result = attach(container).sh("/c/bin/sh -c 'cat /etc/marker; hello-static; ls /c'")

    assert "the container\nhello-static says: the container\n" == result.out


def test_descriptors_that_carry_data_stay_open(container: Container, caller: str) -> None:
    """Files and pipes pass a routed exec; directories, O_PATH and namespaces do not."""
    result = attach(container).run(caller, "descriptors", "/c/bin/ls", "/proc/self/fd")
    words = result.out.split()
    file, pipe = int(words[1]), int(words[3])
    listed = {int(word) for word in words[4:]}

    # the second number of ls is its own directory, opened at the first free number
    assert {0, 1, 2, file, pipe, pipe + 1} <= listed
    assert 7 == len(listed), listed


def test_redirections_work(container: Container, place: Path) -> None:
    """A file of the host as standard input or output is read and written by the program."""
    source = place / "input"
    source.write_text("from the host\n")
    try:
        result = attach(container).sh(
            f"/c/bin/cat < {source} > /tmp/copy; /c/bin/cat /etc/marker | cat /tmp/copy -"
        )
    finally:
        source.unlink()

    assert "from the host\nthe container\n" == result.out


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/c/bin/nothing", 127),
        ("/c/etc", 126),
        ("/c/etc/plain", 126),
        ("/c/scripts/orphan", 127),
        ("/c/scripts/headless", 126),
        ("/c/bin/hello-orphan", 127),
        ("/c/etc/marker/x", 127),
    ],
)
def test_what_cannot_be_executed_says_why(container: Container, path: str, status: int) -> None:
    """The caller gets execve's own errno: 127 in a shell for what is missing, else 126."""
    result = attach(container).sh(f"{path}; exit $?")

    assert status == result.status, result.err
    assert "" == result.out


def test_failed_exec_leaves_no_descriptor(container: Container, caller: str) -> None:
    """When the kernel refuses the vessel's exec, the caller goes on as if it had asked directly."""
    result = attach(container).run(caller, "failing", "/c/bin/true")

    assert "errno 7\n" == result.out
    assert 0 == result.status


def test_failure_on_the_way_is_told(container: Container) -> None:
    """A step that fails in the vessel ends the process with a line that names it."""
    refused = Call("setns", (0, 0x20000000))
    result = Attach(container, calls=(refused,)).sh("/c/bin/true; echo $?")

    assert "126\n" == result.out
    assert "launcher: /bin/true: setns: Invalid argument\n" == result.err


def test_many_at_once(container: Container, caller: str) -> None:
    """Two hundred routed execs at the same time all arrive."""
    result = attach(container).run(caller, "many", "200", "/c/bin/true", timeout=30)

    assert "failed 0\n" == result.out
    assert 200 == len(result.execs(routed=True, errno=0))


def test_program_of_the_container_is_not_run_by_way_of_proc(container: Container) -> None:
    """A walk through the root of the container's init is routed; other ways in are refused."""
    result = attach(container).sh(
        "/proc/1/root/bin/cat /etc/marker; /proc/1/exe; echo $?;"
        " cd /proc/1/root/bin && ./cat /etc/marker; echo $?"
    )

    assert "the container\n126\n126\n" == result.out


def test_descriptor_from_elsewhere_is_refused(container: Container, caller: str) -> None:
    """A file of the container's own mounts, passed in as a descriptor, never runs here."""
    fd = os.open(f"/proc/{container.pid}/root/bin/hello-static", os.O_RDONLY | os.O_CLOEXEC)
    try:
        given = attach(container, pass_fds=(fd,))
        result = given.sh(f"{caller} given {fd} hello; /proc/self/fd/{fd}; echo $?")
    finally:
        os.close(fd)

    assert "errno 13\n126\n" == result.out


def test_own_executable_of_a_host_program_runs(container: Container, caller: str) -> None:
    """A host program that executes /proc/self/exe or a descriptor of a host file is let through."""
    script = "/proc/self/exe -c 'echo again'; exec 5</usr/bin/test; /proc/self/fd/5 1 = 1; echo $?"
    result = attach(container).sh(script)

    assert "again\n0\n" == result.out
    assert [] == result.execs(routed=True)


def test_container_that_changes_a_program_is_followed(container: Container, place: Path) -> None:
    """Programs that appear in the container while the shell runs are found."""
    new = place / "root/bin/new"
    write_program(new, "#!/bin/sh\necho new\n")
    try:
        result = attach(container).sh("/c/bin/new; PATH=/.launcher/bin true; echo $?")
    finally:
        new.unlink()

    assert "new\n0\n" == result.out
