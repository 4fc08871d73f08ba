"""The main job against every engine, image and kind of user namespace."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.product.attached import attach, attach_shell, routed_view
from tests.product.container import MARK, SCRATCH, Container

CONTAINER_ROOT_OFFSET = 100000


def test_the_root_is_the_hosts(container: Container) -> None:
    """At / are the host's files, read through FUSE."""
    output = attach_shell(container, "cat /etc/os-release; stat -f -c %T /etc")

    assert Path("/etc/os-release").read_text() in output
    assert "fuse" in output.splitlines()[-1]


def test_the_containers_files_are_in_c(container: Container) -> None:
    """At /c is the container's tree with its mounts, without FUSE, /proc, /dev and /sys."""
    output = attach_shell(
        container, f"ls /c/bin/onlyhere; stat -f -c %T /c{SCRATCH} /c; ls /c/proc /c/sys | wc -w"
    )

    first, scratch, tree, *_ = output.split()
    assert "/c/bin/onlyhere" == first
    assert "tmpfs" == scratch
    assert "fuse" not in tree


def test_the_shell_lives_in_the_containers_namespaces(container: Container) -> None:
    """Host name, pids, network and IPC are the container's; the mount namespace is a new one."""
    output = attach_shell(
        container, "hostname; for n in uts ipc net pid mnt; do readlink /proc/self/ns/$n; done"
    )
    hostname, *links = output.split()
    inside = [os.readlink(f"/proc/{container.pid}/ns/{kind}") for kind in ("uts", "ipc", "net")]

    assert container.name == hostname
    assert hostname != socket.gethostname()
    assert inside == links[:3]
    assert os.readlink(f"/proc/{container.pid}/ns/pid") == links[3]
    assert links[4] not in (
        os.readlink(f"/proc/{container.pid}/ns/mnt"),
        os.readlink("/proc/self/ns/mnt"),
    )


def test_it_sees_the_containers_processes(container: Container) -> None:
    """The host's ps shows the container's first process as pid 1."""
    output = attach_shell(container, "cat /proc/1/cmdline | tr '\\0' ' '; kill -0 1")

    expected = Path(f"/proc/{container.pid}/cmdline").read_bytes().replace(b"\0", b" ")
    assert expected.decode() == output


def test_a_routed_program_is_one_of_the_containers(container: Container) -> None:
    """A program started from /c sees root, namespaces, mounts, rights and environment of the
    container, just as one that the engine starts, and nothing of the host.
    """
    expected = container.view()
    view = routed_view(container, "/c/bin/onlyhere")

    assert expected.image == view.image
    assert expected.root == view.root
    assert expected.namespaces == view.namespaces
    assert expected.facts["mount"] == view.facts["mount"]
    assert expected.environment[MARK] == view.environment[MARK]
    assert "uid" not in view.facts or expected.one("uid") == view.one("uid")
    for key in ("CapEff", "CapPrm", "CapBnd", "CapInh", "NoNewPrivs"):
        assert expected.status[key] == view.status[key], key
    assert {0, 1, 2} >= set(view.descriptors)


def test_programs_are_found_by_name(container: Container) -> None:
    """A program that only the container has is found in PATH; also behind an absolute link."""
    assert container.image.name == routed_view(container, "onlyhere").image
    assert container.image.name == routed_view(container, "onlylink").image
    assert container.image.name == routed_view(container, "/c/bin/onlylink").image


def test_relative_paths_are_routed(container: Container) -> None:
    """`./program` below /c is the container's, and its directory is the container's."""
    view = routed_view(container, "cd /c/bin; ./onlyhere")

    assert container.image.name == view.image
    assert view.one("cwd") in ("/bin", "/usr/bin")


def test_execveat_is_routed(container: Container) -> None:
    """A program executed by descriptor is recognised by what the descriptor is."""
    script = (
        "import os; fd = os.open('/c/bin/onlyhere', os.O_PATH);"
        " os.execve(fd, ['onlyhere', 'word'], os.environ)"
    )
    view = routed_view(container, f'/usr/bin/python3 -I -c "{script}"')

    assert container.image.name == view.image


def test_exit_codes_come_through(container: Container) -> None:
    """Of a host program, of a routed one, of a signal, of what is not there."""
    assert 7 == attach(container, "sh", "-c", "exit 7").returncode
    assert 9 == attach(container, "/c/bin/onlyhere", "exit", "9").returncode
    assert 128 + 15 == attach(container, "sh", "-c", "kill -TERM $$").returncode
    assert 127 == attach(container, "no-such-program").returncode
    assert 126 == attach(container, "/etc/passwd").returncode


def test_files_have_the_right_owner_on_both_sides(container: Container) -> None:
    """A file made in /c by the shell's root is the container root's; chown shows the same id."""
    name = f"{SCRATCH}/owned"
    output = attach_shell(
        container,
        f"echo text > /c{name}; stat -c %u:%g /c{name}; chown 5:6 /c{name}; stat -c %u:%g /c{name}",
    )
    facts = os.stat(f"/proc/{container.pid}/root{name}")
    shift = CONTAINER_ROOT_OFFSET if container.userns else 0
    os.unlink(f"/proc/{container.pid}/root{name}")

    assert ["0:0", "5:6"] == output.split()
    assert (5 + shift, 6 + shift) == (facts.st_uid, facts.st_gid)


def test_files_of_the_host_can_be_written(container: Container, tmp_path: Path) -> None:
    """What the shell writes outside /c is on the host, with the person's owner."""
    attach_shell(container, "echo text > file; mkdir directory", cwd=str(tmp_path))

    assert "text\n" == (tmp_path / "file").read_text()
    assert os.geteuid() == os.stat(tmp_path / "directory").st_uid


def test_nothing_changes_in_the_container(container: Container) -> None:
    """Its mounts are after an attach as they were before it, and so are its cgroup's processes."""
    before = Path(f"/proc/{container.pid}/mountinfo").read_text()
    attach_shell(container, "/c/bin/onlyhere; true")

    assert before == Path(f"/proc/{container.pid}/mountinfo").read_text()
