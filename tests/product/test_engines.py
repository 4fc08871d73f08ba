"""The test containers themselves: every engine starts every image, and leaves nothing."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import needs, podman
from tests.product.container import COMMAND, MARK, SCRATCH, Container
from tests.product.engines import Engines
from tests.product.images import OFFSET
from tests.session import Session, new_session_id


def test_a_program_of_the_container_sees_the_container(container: Container) -> None:
    """A program that the engine runs inside sees the image's root, the name, the environment."""
    view = container.view()

    assert container.image.name == view.image
    assert container.name == view.one("hostname")
    assert container.name == view.environment[MARK]
    assert "0" == view.one("uid")
    assert SCRATCH in {line.split()[4] for line in view.facts["mount"]}


def test_the_pid_is_that_of_the_first_process(container: Container) -> None:
    """The container's pid is the host's number of its process 1, which runs the given command."""
    status = Path(f"/proc/{container.pid}/status").read_text()
    command = Path(f"/proc/{container.pid}/cmdline").read_text().split("\0")[:-1]

    assert ["NSpid:", str(container.pid), "1"] == status[status.index("NSpid:") :].split()[:3]
    assert list(COMMAND) == command
    assert frozenset({container.pid}) == container.processes()


def test_a_user_namespace_maps_its_root(container: Container) -> None:
    """With a user namespace the container's root is an ordinary id outside, without it root."""
    owner = os.stat(f"/proc/{container.pid}").st_uid

    assert (OFFSET if container.userns else 0) == owner


def test_the_container_has_what_the_host_has_not(container: Container) -> None:
    """The programs that routing is tested with are in the container and not on the host."""
    done = container.exec("/bin/onlylink", "word")

    assert 0 == done.returncode
    assert "argument word" in done.stdout
    assert not os.path.exists("/bin/onlyhere")
    assert not os.path.exists("/lib/ld-onlyhere.so.1")


@pytest.mark.parametrize(
    ("engine", "image", "program"),
    [
        pytest.param("runc", "busybox", "onlymusl", marks=needs.runc),
        pytest.param("runc", "busybox", "onlyscript", marks=needs.runc),
        pytest.param("runc", "debian", "onlyglibc", marks=needs.runc),
        pytest.param("runc", "debian", "onlyscript", marks=needs.runc),
    ],
)
def test_each_kind_of_program_runs_inside(
    start: Callable[..., Container], engine: str, image: str, program: str
) -> None:
    """Programs for musl's and glibc's loader and scripts work in their images."""
    done = start(engine, image).exec(program)

    assert (0, "") == (done.returncode, done.stderr)
    assert f"image {image}" in done.stdout


def test_a_container_can_have_an_ordinary_user(start: Callable[..., Container]) -> None:
    """The first process runs as the wanted user."""
    container = start("runc", "busybox", user=1234)

    assert 1234 == os.stat(f"/proc/{container.pid}").st_uid


@needs.docker
def test_a_session_that_is_killed_leaves_nothing() -> None:
    """When the test session dies, its keeper ends the daemon, its containers and their traces."""
    session = Session(new_session_id(), "gw0")
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.keeper", session.session_id],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    keeper.stdout.readline()
    session.make_directories()
    podman.write_settings(session)
    engines = Engines(session)
    containers = [engines[name].start("noshell") for name in ("docker", "podman", "runc")]
    pidfds = [os.pidfd_open(container.pid) for container in containers]
    keeper.stdin.close()
    keeper.stdout.close()
    status = keeper.wait(30)

    assert 0 == status
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 2)[0]
        os.close(pidfd)
    assert not session.directory.exists()
    assert session.session_id not in Path("/proc/self/mountinfo").read_text()
    assert [] == [*Path("/sys/fs/cgroup").glob(f"**/{session.session_id}")]
    assert [] == [*Path("/run/runc").glob(f"{session.session_id}*")]
