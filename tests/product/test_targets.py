"""Finding and reading containers of every engine, as they really run."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from launcher.errors import TargetNotFound, TargetNotRunning
from launcher.targets import find
from launcher.targets.cgroups import directories, frozen_directory
from launcher.targets.mounts import parse_mountinfo
from launcher.targets.snapshot import take
from launcher.targets.users import User, look_up
from nsstages.idmap import IDENTITY, IdRange
from tests import needs
from tests.product.container import MARK, SCRATCH, Container
from tests.product.engines import Case, Engines
from tests.product.images import COUNT, OFFSET

KINDS = [
    pytest.param(Case("docker", "busybox"), marks=needs.docker),
    pytest.param(Case("podman", "busybox"), marks=needs.podman),
    pytest.param(Case("podman", "busybox", userns=True), marks=needs.podman),
    pytest.param(Case("runc", "noshell"), marks=needs.runc),
    pytest.param(Case("runc", "noshell", userns=True), marks=needs.runc),
]
each_kind = pytest.mark.parametrize("container", KINDS, indirect=True, ids=str)


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the launcher the variables that say where the engine of the container is."""
    if "container" in request.fixturenames:
        container: Container = request.getfixturevalue("container")
        for name, value in container.engine.environment.items():
            monkeypatch.setenv(name, value)


@each_kind
def test_a_container_is_found_by_name(container: Container) -> None:
    """With and without its engine's name, a container's name means its first process."""
    named = find(container.spec)

    assert (container.engine.name, container.name, container.pid) == (
        named.engine, named.name, named.pid
    )  # fmt: skip
    assert named == find(container.name)


@each_kind
def test_a_container_is_found_by_id(container: Container) -> None:
    """An engine's full id, and where the engine has it a unique prefix, mean the container."""
    assert container.pid == find(container.identity).pid
    if container.identity != container.name:
        assert container.pid == find(container.identity[:20]).pid


@each_kind
def test_finding_starts_no_program(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """A running container is found from state files and sockets alone."""
    monkeypatch.setenv("PATH", "/nowhere")

    assert container.pid == find(container.name).pid


@each_kind
def test_a_snapshot_is_what_the_engine_made(container: Container) -> None:
    """Environment, namespaces, root, maps, capabilities and cgroups are the container's."""
    view = container.view()

    with closing(take(find(container.spec))) as target:
        assert f"{MARK}={container.name}" in target.environment
        assert {"mnt", "uts", "ipc", "net", "pid"} <= {
            kind for kind, ref in target.namespaces.items() if not ref.is_ours
        }
        assert container.userns != target.namespaces["user"].is_ours
        assert ("/", 1) == (target.cwd, target.pid_inside)
        assert target.root_is_namespace_root
        assert SCRATCH in {mount.mount_point for mount in target.mounts}
        expected = (IdRange(0, OFFSET, COUNT),) if container.userns else IDENTITY
        assert (expected, expected) == (target.uid_map, target.gid_map)
        credentials = target.credentials
        assert ("0", "0") == (str(credentials.uid), view.one("gid"))
        assert view.status["CapBnd"] == f"{target.capabilities.bounding:016x}"
        assert view.status["Seccomp"] == str(target.seccomp_mode)
        limit = resource.prlimit(container.pid, resource.RLIMIT_NOFILE)
        assert limit == target.limits[resource.RLIMIT_NOFILE]


@each_kind
def test_the_cgroups_exist_here(container: Container) -> None:
    """Every membership has a directory, and the container's process is in each of them."""
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))

    with closing(take(find(container.spec))) as target:
        found = directories(target.cgroups, mounts)

    assert found
    for directory in found.values():
        assert str(container.pid) in Path(directory, "cgroup.procs").read_text().split()
    assert frozen_directory(found.values()) is None


@each_kind
def test_the_root_is_the_containers(container: Container) -> None:
    """The root descriptor shows what only the container has, and nothing follows it out."""
    with closing(take(find(container.spec))) as target:
        names = os.listdir(f"/proc/self/fd/{target.root_fd}/bin")
        user = look_up(target.root_fd, "4711")

    assert "onlyhere" in names
    assert User(4711, 0) == user


@needs.docker
def test_a_frozen_container_is_noticed(
    start: Callable[..., Container], engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`docker pause` freezes the cgroup, which would stop whoever joins it."""
    container = start("docker", "noshell")
    monkeypatch.setenv("DOCKER_HOST", container.engine.environment["DOCKER_HOST"])
    mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    with closing(take(find(container.spec))) as target:
        found = directories(target.cgroups, mounts).values()

    container.engine.call("docker", "pause", container.name)
    frozen = frozen_directory(found)
    container.engine.call("docker", "unpause", container.name)

    assert frozen is not None
    assert container.identity in frozen
    assert frozen_directory(found) is None


@needs.docker
def test_a_stopped_docker_container_is_said_so(
    start: Callable[..., Container], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that docker knows and that has no process is not simply unknown."""
    container = start("docker", "noshell")
    monkeypatch.setenv("DOCKER_HOST", container.engine.environment["DOCKER_HOST"])
    container.engine.call("docker", "stop", "--time=0", container.name)

    try:
        with pytest.raises(TargetNotRunning, match=f"'{container.name}' is not running .*exited"):
            find(container.name)
    finally:
        container.engine.remove(container)


@needs.podman
def test_a_created_podman_container_is_said_so(
    engines: Engines, tmp_path: Path, unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that podman knows and that has no process is not simply unknown."""
    engine = engines["podman"]
    for name, value in engine.environment.items():
        monkeypatch.setenv(name, value)
    engine.call("podman", "create", f"--name={unique_name}", "--network=none",
                "--rootfs", str(tmp_path), "/bin/true")  # fmt: skip

    try:
        with pytest.raises(TargetNotRunning, match=f"'{unique_name}' is not running"):
            find(unique_name)
    finally:
        engine.call("podman", "rm", unique_name)


@needs.podman
def test_a_renamed_container_has_its_new_name_only(
    start: Callable[..., Container], unique_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names are read where `podman rename` writes them."""
    container = start("podman", "noshell")
    for name, value in container.engine.environment.items():
        monkeypatch.setenv(name, value)
    container.engine.call("podman", "rename", container.name, unique_name)

    found = find(unique_name)
    with pytest.raises(TargetNotFound):
        find(container.spec)
    container.engine.call("podman", "rename", unique_name, container.name)

    assert (unique_name, container.pid) == (found.name, found.pid)
