"""`make bench`: what an attach, an exec and a routed exec cost beside their peers, in one run.

Nothing is asserted about time: the table is read by people.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests import needs
from tests.bench.rounds import ROUNDS, milliseconds, table
from tests.product.attached import LAUNCHER
from tests.product.container import Container
from tests.product.engines import Engines
from tests.product.images import image
from tests.session import Session

pytestmark = [pytest.mark.bench, pytest.mark.timeout(900)]

# Prints the ms that one fork, exec and wait takes, over and over in one process.
LOOP = """
import os, statistics, sys, time
path, taken = sys.argv[1], []
for turn in range(int(sys.argv[2])):
    started = time.perf_counter()
    pid = os.posix_spawn(path, [path], os.environ)
    os.waitpid(pid, 0)
    taken.append((time.perf_counter() - started) * 1000)
print(statistics.median(taken[5:]))
"""


def show(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print past pytest's capture."""
    with capsys.disabled():
        print(text)


@needs.docker
@needs.podman
def test_attach_and_exec(
    start: Callable[..., Container], engines: Engines, capsys: pytest.CaptureFixture[str]
) -> None:
    """attach beside docker exec and podman exec; exec beside runc exec and nsenter."""
    docker, podman, runc = (start(name, "busybox") for name in ("docker", "podman", "runc"))
    environment = {**engines["docker"].environment, **engines["podman"].environment}
    every = ("nsenter", "-t", str(runc.pid), "-a")
    medians = milliseconds(
        {
            "docker exec T true": docker.engine.exec_command(docker, ("/bin/true",), None),
            "podman exec T true": podman.engine.exec_command(podman, ("/bin/true",), None),
            "runc exec T true": runc.engine.exec_command(runc, ("/bin/true",), None),
            "nsenter -a true": (*every, "/bin/true"),
            "launcher attach docker:T -- true": (LAUNCHER, "attach", docker.spec, "--", "true"),
            "launcher attach runc:T -- true": (LAUNCHER, "attach", runc.spec, "--", "true"),
            "launcher exec runc:T -- true": (LAUNCHER, "exec", runc.spec, "--", "true"),
        },
        environment,
    )

    show(capsys, table("attach and exec", medians, "docker exec T true"))
    assert set() == {name for name, ms in medians.items() if ms <= 0}


@needs.runc
@needs.bwrap
def test_run(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """run beside unshare and bwrap."""
    root = str(image(session, "busybox").path)
    kinds = "mnt,pid,ipc,uts,net"
    medians = milliseconds(
        {
            "unshare -mpiunf true": ("unshare", "-mpiunf", "true"),
            "bwrap --unshare-all true": (
                "bwrap", "--unshare-all", "--bind", root, "/", "/bin/true",
            ),
            "launcher run -- true": (
                LAUNCHER, "run", "--root", root, "--namespaces", kinds, "--", "/bin/true",
            ),
        },
        {},
    )  # fmt: skip

    show(capsys, table("run", medians, "bwrap --unshare-all true"))
    assert set() == {name for name, ms in medians.items() if ms <= 0}


@needs.runc
def test_execs_in_the_shell(
    start: Callable[..., Container], capsys: pytest.CaptureFixture[str]
) -> None:
    """A routed exec beside an ordinary one, and an ordinary one with and without supervision."""
    container = start("runc", "busybox")
    medians = {
        "ordinary exec, --supervise off": per_exec(container, "/bin/true", "off"),
        "ordinary exec, --supervise routed": per_exec(container, "/bin/true", "routed"),
        "ordinary exec, --supervise tree": per_exec(container, "/bin/true", "tree"),
        "routed exec of /c/bin/true": per_exec(container, "/c/bin/true", "tree"),
    }

    show(capsys, table("one fork, exec and wait", medians, "ordinary exec, --supervise off"))
    assert set() == {name for name, ms in medians.items() if ms <= 0}


def per_exec(container: Container, path: str, supervise: str) -> float:
    """Return the median ms of spawning ``path`` in the shell, the best of three attaches."""
    results = []
    for _ in range(3):
        done = subprocess.run(
            [LAUNCHER, "attach", "--supervise", supervise, container.spec, "--",
             "/usr/bin/python3", "-I", "-c", LOOP, path, str(20 * ROUNDS)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        results.append(float(json.loads(done.stdout)))
    return min(results)
