"""`make bench`: what an attach, an exec, a run and a routed exec cost beside their peers.

Nothing is asserted about time: the tables are read by people.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.bench.rounds import ROUNDS, goal, medians, milliseconds, table
from tests.product.attached import LAUNCHER
from tests.product.container import Container
from tests.product.engines import Engines
from tests.product.images import image
from tests.session import Session

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

SPAWNS = 100  # in one attached shell
# Prints the median ms of a fork, exec and wait, many times over in one process.
LOOP = """
import os, statistics, sys, time
path, argv0, taken = sys.argv[1], sys.argv[2], []
for turn in range(int(sys.argv[3])):
    started = time.perf_counter()
    pid = os.posix_spawn(path, [argv0], os.environ)
    os.waitpid(pid, 0)
    taken.append((time.perf_counter() - started) * 1000)
print(statistics.median(taken[5:]))
"""


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print past pytest's capture."""

    def show(text: str) -> None:
        with capsys.disabled():
            print(text)

    return show


@needs.docker
@needs.podman
def test_attach_and_exec(
    start: Callable[..., Container], engines: Engines, show: Callable[[str], None]
) -> None:
    """attach beside docker exec and podman exec; exec beside runc exec and nsenter."""
    docker, podman, runc = (start(name, "busybox") for name in ("docker", "podman", "runc"))
    taken = milliseconds(
        {
            "docker exec T true": docker.engine.exec_command(docker, ("/bin/true",), None),
            "podman exec T true": podman.engine.exec_command(podman, ("/bin/true",), None),
            "runc exec T true": runc.engine.exec_command(runc, ("/bin/true",), None),
            "nsenter -a true": ("nsenter", "-t", str(runc.pid), "-a", "/bin/true"),
            "launcher attach docker:T -- true": (LAUNCHER, "attach", docker.spec, "--", "true"),
            "launcher attach podman:T -- true": (LAUNCHER, "attach", podman.spec, "--", "true"),
            "launcher attach runc:T -- true": (LAUNCHER, "attach", runc.spec, "--", "true"),
            "launcher exec docker:T -- true": (LAUNCHER, "exec", docker.spec, "--", "true"),
            "launcher exec runc:T -- true": (LAUNCHER, "exec", runc.spec, "--", "true"),
        },
        {**engines["docker"].environment, **engines["podman"].environment},
    )

    attach = taken["launcher attach docker:T -- true"]
    podman_attach = taken["launcher attach podman:T -- true"]
    show(table("attach and exec", taken, "docker exec T true"))
    show(goal("attach / docker exec", attach / taken["docker exec T true"], 3.5, "x"))
    show(goal("attach / podman exec", podman_attach / taken["podman exec T true"], 1.0, "x"))
    assert all(ms > 0 for ms in taken.values())


@pytest.fixture
def bundle(session: Session, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The words that run `true` in a new runc container."""
    subprocess.run(["runc", "spec", "--bundle", tmp_path], check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/true"]}
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(image(session, "busybox").path), "readonly": True}
    name = session.unique_name()
    config["linux"]["cgroupsPath"] = f"/{name}"
    (tmp_path / "config.json").write_text(json.dumps(config))
    yield ("runc", "run", "--bundle", str(tmp_path), name)
    subprocess.run(["runc", "delete", "--force", name], capture_output=True)


@needs.runc
@needs.bwrap
def test_run(session: Session, bundle: tuple[str, ...], show: Callable[[str], None]) -> None:
    """run beside unshare, bwrap and runc run."""
    root = str(image(session, "busybox").path)
    here = (LAUNCHER, "run", "--root", root, "--namespaces")
    taken = milliseconds(
        {
            "unshare -mpiunf true": ("unshare", "-mpiunf", "true"),
            "bwrap --unshare-all true": (
                "bwrap", "--unshare-all", "--bind", root, "/", "/bin/true",
            ),
            "runc run true": bundle,
            "launcher run -- true": (*here, "mnt,pid,ipc,uts,net", "--", "/bin/true"),
            "launcher run, without a net namespace": (*here, "mnt,pid,ipc,uts", "--", "/bin/true"),
        },
        {},
    )  # fmt: skip

    show(table("run", taken, "runc run true"))
    assert all(ms > 0 for ms in taken.values())


@needs.runc
def test_execs_in_the_shell(start: Callable[..., Container], show: Callable[[str], None]) -> None:
    """A routed exec beside an ordinary one, and an ordinary one with and without supervision."""
    container = start("runc", "busybox")

    def spawning(path: str, supervise: str) -> Callable[[], float]:
        return lambda: per_exec(container, path, supervise)

    off, tree = "/bin/true, supervise off", "/bin/true, supervise tree (the default)"
    # The same static program on both sides: what differs is the way to it.
    unrouted, routed = "the host's busybox, unrouted", "the container's busybox, routed"
    taken = medians(
        {
            off: spawning("/bin/true", "off"),
            "/bin/true, supervise routed": spawning("/bin/true", "routed"),
            tree: spawning("/bin/true", "tree"),
            unrouted: spawning("/bin/busybox", "tree"),
            routed: spawning("/c/bin/true", "tree"),
        },
        ROUNDS,
    )

    show(table("one fork, exec and wait in the attached shell", taken, off))
    show(goal("ordinary exec, more than without", taken[tree] - taken[off], 0.3, "ms"))
    show(goal("routed exec, more than unrouted", taken[routed] - taken[unrouted], 4.0, "ms"))
    assert all(ms > 0 for ms in taken.values())


def per_exec(container: Container, path: str, supervise: str) -> float:
    """Return the median ms of spawning ``path`` in an attached shell."""
    done = subprocess.run(
        [LAUNCHER, "attach", "--supervise", supervise, container.spec, "--",
         "/usr/bin/python3", "-I", "-c", LOOP, path, "true", str(SPAWNS)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)
