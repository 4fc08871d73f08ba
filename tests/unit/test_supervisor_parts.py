"""The pure parts of the supervisor: filter, vessel, batches, descriptors, mounts, programs."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.supervisor.descriptors import free_numbers
from launcher.supervisor.itinerary import Departure, Itinerary, merged
from launcher.supervisor.machine import MACHINE, abi_of, is_ptrace
from launcher.supervisor.mounts import Tree, parse
from launcher.supervisor.notify import filter_program
from launcher.supervisor.options import Routing, SupervisorOptions
from launcher.supervisor.program import error_of, is_program
from launcher.supervisor.vessel import SCRATCH_SIZE, image
from nsstages.syscalls import CLONE_NEWNS, CLONE_NEWUSER, Call, Packed

X86_64, I386 = 0xC000003E, 0x40000003
X32 = 0x40000000
NOTIFY, ALLOW, EPERM = 0x7FC00000, 0x7FFF0000, 0x00050001


def run_filter(arch: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Run the filter as the kernel would; return its action."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    program = list(struct.iter_unpack("=HBBI", filter_program()))
    accumulator, at = 0, 0
    while True:
        code, on_true, on_false, value = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x15:
            at += on_true if accumulator == value else on_false
        else:
            assert 0x06 == code
            return int(value)


@pytest.mark.parametrize(
    ("arch", "number"),
    [
        (X86_64, 59),
        (X86_64, 322),
        (X86_64, X32 | 520),
        (X86_64, X32 | 545),
        (I386, 11),
        (I386, 358),
    ],
)
def test_every_exec_of_every_abi_is_notified(arch: int, number: int) -> None:
    """execve and execveat, as a 64-bit, x32 or 32-bit program calls them."""
    assert NOTIFY == run_filter(arch, number)
    assert abi_of(arch, number) is not None


@pytest.mark.parametrize(("arch", "number"), [(X86_64, 101), (X86_64, X32 | 521), (I386, 26)])
@pytest.mark.parametrize(
    ("request_", "action"),
    [(0, NOTIFY), (16, NOTIFY), (0x4206, NOTIFY), (1, ALLOW), (7, ALLOW), (0x4207, ALLOW)],
)
def test_taking_over_is_notified(arch: int, number: int, request_: int, action: int) -> None:
    """ptrace is notified for TRACEME, ATTACH and SEIZE only, or strace would crawl."""
    assert action == run_filter(arch, number, (request_,))
    assert is_ptrace(arch, number)


@pytest.mark.parametrize(("arch", "number"), [(X86_64, 16), (X86_64, X32 | 514), (I386, 54)])
@pytest.mark.parametrize(
    ("command", "action"),
    [(0x5412, EPERM), (0x541C, EPERM), (2**32 | 0x5412, EPERM), (0x5413, ALLOW), (0x5411, ALLOW)],
)
def test_typing_into_a_terminal_is_refused(
    arch: int, number: int, command: int, action: int
) -> None:
    """TIOCSTI and TIOCLINUX get EPERM, whatever the upper half of the argument holds."""
    assert action == run_filter(arch, number, (0, command))


@pytest.mark.parametrize(
    ("arch", "number"), [(X86_64, 0), (X86_64, 11), (X86_64, 26), (I386, 59), (I386, 101), (7, 59)]
)
def test_all_else_is_allowed(arch: int, number: int) -> None:
    """Other calls, and the same numbers of another architecture, are none of our business."""
    assert ALLOW == run_filter(arch, number, (0, 0x5413))


def test_vessel_by_itself_exits(tmp_path: Path) -> None:
    """The vessel is a valid program that does nothing when someone starts it."""
    vessel = tmp_path / "vessel"
    vessel.write_bytes(image())
    vessel.chmod(0o755)

    assert 126 == subprocess.run([vessel]).returncode
    assert len(image()) < 256
    assert image().endswith(MACHINE.EXIT + MACHINE.BATCH)


def test_batch_points_at_its_own_data() -> None:
    """bytes and structures become addresses of copies behind the table."""
    from launcher.supervisor.inject import Step, table_of

    base = 0x1000
    steps = (
        Step(Call("chdir", (b"/somewhere",)), "chdir", may_fail=True),
        Step(Call("execve", (b"/x", -1, Packed("=2Q", (b"A=b\0", 0)))), "exec"),
    )
    memory = table_of(steps, base)
    first = struct.unpack_from("<8Q", memory, 0)
    second = struct.unpack_from("<8Q", memory, 64)
    (variable,) = struct.unpack_from("<Q", memory, second[3] - base)

    assert (80, 1) == (first[0], first[7])
    assert b"/somewhere\0" == memory[first[1] - base :][:11]
    assert (59, 2**64 - 1, 0) == (second[0], second[2], second[7])
    assert b"/x\0" == memory[second[1] - base :][:3]
    assert b"A=b\0" == memory[variable - base :][:4]
    assert len(memory) < SCRATCH_SIZE


@pytest.fixture
def routing(tmp_path: Path) -> Iterator[Routing]:
    """A routing into a directory."""
    root_fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield Routing(
        container_root_fd=root_fd,
        namespace_fds=((70, CLONE_NEWNS), (71, CLONE_NEWUSER)),
        environment=("PATH=/bin", "TERM=dumb", "A=1"),
        keep=("TERM", "LANG"),
        calls=(Call("setuid", (5,)),),
        chroot=True,
        cwd="/home",
    )
    os.close(root_fd)


def test_steps_come_in_the_order_that_keeps_the_host_hidden(routing: Routing) -> None:
    """Undumpable first, descriptors gone before any join, user namespace last, then credentials."""
    itinerary = Itinerary(routing)
    departure = Departure("/bin/x", 99, (b"TERM=xterm",), "/work", (0, 1, 2, 5, 7), (7,))
    names = [step.call.name for step in itinerary.steps(departure, (3, 4, 6))]
    fds = itinerary.fds
    itinerary.close()

    assert (70, 71) == fds[:2]
    assert 3 == len(fds)
    joins = ["setns", "setns", "fchdir", "chroot", "chdir", "chdir", "chdir"]
    assert ["prctl", "unshare", "close", "execveat", *joins, "setuid", "execve"] == names


def test_environment_keeps_what_was_asked_for(routing: Routing) -> None:
    """The container's variables, with the named ones of the caller in place of its own."""
    caller = (b"TERM=xterm", b"SECRET=1", b"LANGUAGE=x", b"", b"A=2")

    assert (b"PATH=/bin", b"A=1", b"TERM=xterm") == merged(routing, caller)


def test_free_numbers_avoid_open_descriptors() -> None:
    """The lowest numbers above standard error that are not in use."""
    assert (4, 6, 7) == free_numbers(3, (0, 1, 2, 3, 5))


def test_options_name_the_descriptors_to_keep(routing: Routing) -> None:
    """The forked supervisor keeps the container's root and namespaces open, and nothing else."""
    assert (routing.container_root_fd, 70, 71) == SupervisorOptions("tree", routing).descriptors()
    assert () == SupervisorOptions("off").descriptors()


def test_mounts_are_told_apart_by_mount_point() -> None:
    """Mounts at and below the container's prefixes are its own; names that only look alike not."""
    lines = (
        "20 1 0:30 / / rw - fuse host rw\n"
        "21 20 8:1 / /c ro,noexec - ext4 /dev/x rw\n"
        "22 21 0:31 / /c/data rw shared:5 - tmpfs none rw\n"
        "23 20 0:32 / /cc rw - tmpfs none rw\n"
        "24 20 0:33 / /proc rw - proc proc rw\n"
        "25 20 0:34 / /my\\040c/x rw - tmpfs none rw\n"
    )
    mounts = parse(lines, ("/c", "/proc", "/my c"))

    assert {
        20: Tree.HOST, 21: Tree.CONTAINER, 22: Tree.CONTAINER, 23: Tree.HOST, 24: Tree.CONTAINER,
        25: Tree.CONTAINER,
    } == mounts.trees  # fmt: skip
    assert mounts.has_genuine_proc


@pytest.mark.parametrize(
    "line",
    [
        "24 20 0:33 / /proc rw - tmpfs proc rw",
        "24 20 0:33 /1 /proc rw - proc proc rw",
        "24 20 0:33 / /proc rw - proc proc rw\n25 24 0:34 / /proc rw - tmpfs none rw",
    ],
)
def test_false_proc_is_noticed(line: str) -> None:
    """Anything but the whole of procfs at /proc is not believed."""
    assert not parse(line, ()).has_genuine_proc


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A root directory with an interpreter, and its descriptor."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sh").write_bytes(image())
    (tmp_path / "bin/sh").chmod(0o755)
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


@pytest.mark.parametrize(
    ("content", "mode", "error"),
    [
        (image(), 0o755, 0),
        (image(), 0o644, errno.EACCES),
        (b"#!/bin/sh\n", 0o755, 0),
        (b"#! /bin/sh -e", 0o755, 0),
        (b"#!/bin/missing\n", 0o755, errno.ENOENT),
        (b"#!\n", 0o755, errno.EACCES),
        (b"#!/self", 0o755, errno.ELOOP),
        (b"echo hello\n", 0o755, errno.EACCES),
        (b"", 0o755, errno.EACCES),
        (b"\x7fELF", 0o755, 0),
        (b"\x7fELF\x01" + bytes(4000), 0o755, 0),
        (b"\x7fELF\x02" + 4000 * b"\xff", 0o755, 0),
    ],
)
def test_what_execve_would_say_is_known_before(
    root: tuple[Path, int], content: bytes, mode: int, error: int
) -> None:
    """Programs, scripts and what is neither, however damaged."""
    path, fd = root
    (path / "self").write_bytes(content)
    (path / "self").chmod(mode)

    assert error == error_of(fd, "/self")


def test_links_are_resolved_inside_the_root(root: tuple[Path, int]) -> None:
    """Absolute links mean the container's root, and no link leads out of it."""
    path, fd = root
    (path / "absolute").symlink_to("/bin/sh")
    (path / "outside").symlink_to("../../../../../../bin/cat")
    (path / "directory").symlink_to("bin")

    assert 0 == error_of(fd, "/absolute")
    assert errno.ENOENT == error_of(fd, "/outside")
    assert is_program(fd, "directory/sh")
    assert not is_program(fd, "directory")


def test_interpreter_of_a_host_program_is_asked_for(root: tuple[Path, int]) -> None:
    """A dynamic program without its interpreter is ENOENT, as the kernel says."""
    path, fd = root
    (path / "python").write_bytes(Path(sys.executable).resolve().read_bytes()[:8192])
    (path / "python").chmod(0o755)

    assert errno.ENOENT == error_of(fd, "/python")


def test_manager_side_imports_nothing_heavy() -> None:
    """Options, filter and vessel are built by the manager, which must not load the tracer."""
    script = (
        "import sys, launcher.supervisor.options, launcher.supervisor.notify,"
        " launcher.supervisor.vessel; print('ptrace' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )

    assert "False\n" == done.stdout, done.stderr
