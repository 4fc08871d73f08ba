"""A routed program has exactly the target's restrictions, and those of no one else."""

from __future__ import annotations

import dataclasses
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsstages.credentials import CapabilitySets, Credentials, calls, last_capability
from tests import needs
from tests.stages.supervised import BUSYBOX, Attach, Container, build_root, start_container

pytestmark = [needs.root, pytest.mark.timeout(60)]

CHOWN, KILL, SYS_CHROOT = 1 << 0, 1 << 5, 1 << 18


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory with a container's root, which has a smaller root in it."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    for name in ("root", "work"):
        (directory / name).mkdir()
    build_root(directory / "root")
    inner = directory / "root/inner"
    build_root(inner)
    (inner / "etc/marker").write_text("the inner root\n")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=["plain", "userns"])
def container(place: Path, request: pytest.FixtureRequest) -> Iterator[Container]:
    """A running container, without and with a user namespace."""
    made = start_container(place / "root", userns=request.param == "userns")
    yield made
    made.close()


def status_of(text: str) -> dict[str, str]:
    """Parse the text of /proc/PID/status."""
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def deny(number: int, error: int) -> bytes:
    """Return a seccomp filter that fails one system call."""
    return struct.pack(
        "=HBBIHBBIHBBIHBBI",
        0x20, 0, 0, 0, 0x15, 0, 1, number, 0x06, 0, 0, 0x00050000 | error, 0x06, 0, 0, 0x7FFF0000,
    )  # fmt: skip


@pytest.mark.parametrize("uid", [0, 1000])
def test_credentials_are_the_targets(container: Container, uid: int) -> None:
    """Ids, groups, the five capability sets and no_new_privs are what the target's are."""
    sets = CapabilitySets(KILL, CHOWN | KILL, CHOWN, CHOWN | KILL | SYS_CHROOT, KILL)
    wanted = Credentials(7, 8, (9, 10), sets, no_new_privs=True)
    attach = Attach(container, calls=calls(wanted, last_capability()))
    status = status_of(attach.sh("/c/bin/cat /proc/self/status", uid=uid).out)

    assert ("7\t7\t7\t7", "8\t8\t8\t8", "9 10") == (status["Uid"], status["Gid"], status["Groups"])
    assert "1" == status["NoNewPrivs"]
    found = [int(status[f"Cap{name}"], 16) for name in ("Inh", "Bnd", "Amb")]
    assert [KILL, CHOWN | KILL | SYS_CHROOT, KILL] == found


@pytest.mark.parametrize("no_new_privs", [False, True])
def test_seccomp_filters_are_the_targets(container: Container, *, no_new_privs: bool) -> None:
    """The target's filters hold in the routed program, and only there."""
    mkdir, getcwd = 83, 79
    wanted = Credentials(
        0, 0, (), no_new_privs=no_new_privs, seccomp_filters=(deny(mkdir, 77), deny(getcwd, 78))
    )
    attach = Attach(container, calls=calls(wanted, last_capability()))
    result = attach.sh(
        "/c/bin/mkdir /tmp/x; /c/bin/sh -c 'cd /; /bin/readlink -f x';"
        " /c/bin/cat /proc/self/status; mkdir /tmp/y && rmdir /tmp/y && pwd"
    )

    assert "File descriptor in bad state" in result.err  # errno 77
    assert "3" == status_of(result.out)["Seccomp_filters"]
    assert result.out.endswith("\n/\n")


def test_large_filters_and_environments_fit(container: Container) -> None:
    """Filters of the kernel's largest size and an environment of hundreds of kilobytes."""
    largest = deny(83, 77)[:24] + 4092 * deny(83, 77)[24:] + deny(83, 77)[24:]
    assert len(largest) <= 4096 * 8
    wanted = Credentials(0, 0, (), seccomp_filters=(largest, largest))
    environment = tuple(f"V{n}={'x' * 1000}" for n in range(600))
    attach = Attach(container, calls=calls(wanted, last_capability()), environment=environment)
    result = attach.sh("/c/bin/env | /usr/bin/wc -c")

    assert 600 * 1000 < int(result.out)


def test_many_arguments_arrive(container: Container) -> None:
    """The arguments are the caller's, hundreds of kilobytes of them."""
    result = Attach(container).sh(
        "/c/bin/echo $(seq 40000) | /usr/bin/md5sum; seq -s' ' 40000 | md5sum"
    )
    first, second = result.out.split("\n")[:2]

    assert first == second


def test_root_below_the_namespaces_root_is_entered(container: Container) -> None:
    """A target that lives in a chroot: the routed program has that root, not the namespace's."""
    root_fd = os.open(
        f"/proc/{container.pid}/root/inner", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    )
    try:
        inner = dataclasses.replace(container, root_fd=root_fd, top="/inner")
        attach = Attach(inner, extra={"chroot": True})
        result = attach.sh("cd /c/etc; /c/bin/cat marker; /c/bin/pwd; /c/scripts/where")
    finally:
        os.close(root_fd)

    assert "the inner root\n/etc\nthe inner root\n/scripts/where \n" == result.out, result.err


def test_oom_score_is_the_containers(container: Container) -> None:
    """Host tools die first when memory is short; routed programs count as the container's own."""

    def raise_score() -> None:
        Path("/proc/self/oom_score_adj").write_text("900")

    attach = Attach(container, extra={"oom_score_adj": 300}, setup=raise_score)
    result = attach.sh("cat /proc/self/oom_score_adj; /c/bin/cat /proc/self/oom_score_adj")

    assert "900\n300\n" == result.out


def test_routed_program_cannot_be_read_by_others_on_the_way(container: Container) -> None:
    """The program that arrives is as dumpable as its own exec makes it: its owner can look."""
    result = Attach(container).sh(
        "/c/bin/sh -c 'readlink /proc/self/exe; ls /proc/$$/fd | head -1'"
    )

    assert f"{BUSYBOX}\n0\n" == result.out


def test_without_routing_everything_is_the_kernels(container: Container) -> None:
    """Mode off and no routing: the container's tree stays noexec, the host's programs run."""
    for attach in (Attach(container, mode="off"), Attach(container, routed=False)):
        result = attach.sh("/usr/bin/env true; echo $?; /c/opt/box/busybox true; echo $?")

        assert "0\n126\n" == result.out


def test_signal_mask_and_dispositions_survive(container: Container) -> None:
    """What the caller blocked and ignored is blocked and ignored in the routed program."""
    script = (
        "import os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {10, 12})\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "os.execv('/c/bin/cat', ['cat', '/proc/self/status'])\n"
    )
    result = Attach(container).run("/usr/bin/python3", "-ISc", script)
    status = status_of(result.out)

    assert 1 << 9 | 1 << 11 == int(status["SigBlk"], 16)
    assert 1 == int(status["SigIgn"], 16) & 1


def test_nobody_traces_a_routed_program_in_routed_mode(container: Container) -> None:
    """Once it has arrived it is let go: a debugger may have it."""
    script = "/c/bin/cat /proc/self/status"

    assert "0" == status_of(Attach(container, mode="routed").sh(script).out)["TracerPid"]


def test_asking_whether_it_could_run_runs_nothing(container: Container) -> None:
    """execveat with AT_EXECVE_CHECK answers and returns."""
    script = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "for path in (b'/c/bin/cat', b'/c/etc/plain', b'/bin/true'):\n"
        "    result = libc.syscall(322, -100, path, None, None, 0x10000)\n"
        "    print(result, ctypes.get_errno() if result else 0)\n"
    )
    result = Attach(container).run("/usr/bin/python3", "-ISc", script)

    assert "0 0\n-1 13\n0 0\n" == result.out, result.err
