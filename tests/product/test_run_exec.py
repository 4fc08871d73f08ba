"""`launcher run` and `launcher exec` on this machine, as root."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.product.attached import LAUNCHER
from tests.product.container import Container
from tests.product.images import OFFSET, image
from tests.product.view import View
from tests.session import Session


def run(config: dict[str, Any], directory: Path, *command: str) -> Any:
    """Run a configuration."""
    path = directory / "run.json"
    path.write_text(json.dumps(config))
    words = [LAUNCHER, "run", "--config", str(path), "--", *command]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd="/")


@needs.root
@needs.fuse
def test_the_hosts_root_over_fuse(tmp_path: Path) -> None:
    """As root: maps, namespaces, a FUSE root that is supervised, pid 1 above the program."""
    config = {"root": {"source": "/", "fuse": True}, "namespaces": ["user", "mnt", "pid"]}
    script = "stat -f -c %T /etc; cat /proc/self/uid_map; cat /proc/1/comm; readlink /proc/self"
    done = run(config, tmp_path, "sh", "-c", script)
    kind, inside, outside, count, *first, pid = done.stdout.split()

    assert (0, "") == (done.returncode, done.stderr)
    assert ("fuseblk", "0", "0", "4294967295") == (kind, inside, outside, count)
    assert ["ns:[2:INIT]"] == first
    assert int(pid) > 1


@needs.root
def test_a_root_directory_with_a_user_namespace(session: Session, tmp_path: Path) -> None:
    """Its own root, names, /proc and /dev; ids mapped at an offset; a container's capabilities."""
    root = image(session, "busybox").shifted
    ids = [{"inside": 0, "outside": OFFSET, "count": 65536}]
    config = {
        "root": {"path": str(root), "read_only": True},
        "namespaces": ["user", "mnt", "pid", "uts", "ipc", "net", "time"],
        "uid_map": ids, "gid_map": ids, "hostname": "inside", "time_offsets": {"boottime": 1000},
        "mounts": [{"type": "proc", "target": "/proc"},
                   {"type": "tmpfs", "target": "/scratch", "options": ["size=1m", "noexec"]}],
    }  # fmt: skip
    done = run(config, tmp_path, "/bin/onlyhere")
    view = View.parse(done.stdout)

    assert (0, "") == (done.returncode, done.stderr)
    assert ("busybox", "inside") == (view.image, view.one("hostname"))
    assert "00000000a80425fb" == view.status["CapBnd"]
    assert any(" /scratch " in f" {line} " and "noexec" in line for line in view.facts["mount"])
    assert view.namespaces["user"] != os.stat("/proc/self/ns/user").st_ino


@needs.root
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("true",), 0),
        (("sh", "-c", "exit 9"), 9),
        (("sh", "-c", "kill -KILL $$"), 137),
        (("absent",), 127),
        (("/etc/passwd",), 126),
    ],
)
def test_exit_codes(command: tuple[str, ...], status: int, tmp_path: Path) -> None:
    """Of the program, of its signal, of one that cannot be found or executed."""
    config = {"namespaces": ["mnt", "uts"]}

    assert status == run(config, tmp_path, *command).returncode


@needs.root
def test_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    """Every problem by its key, 125, and nothing was started."""
    done = run({"root": {"path": "relative"}, "namespaces": ["moon"]}, tmp_path, "true")

    assert 125 == done.returncode
    assert "root.path:" in done.stderr
    assert "namespaces" in done.stderr


@needs.docker
def test_exec_as_a_user_under_the_engines_filter(start: Callable[..., Container]) -> None:
    """A docker container whose own process is no root, with docker's default seccomp filter."""
    container = start("docker", "busybox", user=1234)
    done = launcher_exec(container, "/bin/onlyhere")
    expected, view = container.view(), View.parse(done.stdout)

    assert (0, "") == (done.returncode, done.stderr)
    for key in ("Uid", "CapEff", "CapBnd", "Seccomp", "Seccomp_filters"):
        assert expected.status[key] == view.status[key], key


def launcher_exec(
    container: Container, *command: str, options: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `launcher exec`."""
    return subprocess.run(
        [LAUNCHER, "exec", *options, container.spec, "--", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **container.engine.environment},
    )
