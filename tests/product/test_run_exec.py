"""`launcher run` and `launcher exec` on this machine, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.product.attached import LAUNCHER
from tests.product.container import MARK, Container
from tests.product.engines import Case
from tests.product.images import OFFSET, image
from tests.product.view import View
from tests.session import Session


def run(config: dict[str, Any], directory: Path, *command: str, user: str = "") -> Any:
    """Run a configuration; as another user where one is named."""
    path = directory / "run.json"
    path.write_text(json.dumps(config))
    for above in (directory, *directory.parents[:3]):
        above.chmod(above.stat().st_mode | 0o055)
    words = [LAUNCHER, "run", "--config", str(path), *(["--", *command] if command else [])]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=60, cwd="/", user=user or None,
        extra_groups=[] if user else None, group=user or None,
        env={**os.environ, **({"HOME": pwd.getpwnam(user).pw_dir} if user else {})},
    )  # fmt: skip


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


@needs.fuse
@needs.user
@needs.userns
def test_the_hosts_root_over_fuse_as_an_ordinary_user(tmp_path: Path) -> None:
    """With subordinate ids, maps by newuidmap: root inside, the user's rights outside."""
    uid = pwd.getpwnam(needs.USER).pw_uid
    config = {"root": {"source": "/", "fuse": True}}
    script = "id -u; cat /proc/self/uid_map; touch ~/made; stat -c %u ~/made; cat /etc/shadow"
    done = run(config, tmp_path, "sh", "-c", script, user=needs.USER)
    made = Path(pwd.getpwnam(needs.USER).pw_dir, "made")
    owner = made.stat().st_uid
    made.unlink()
    lines = done.stdout.splitlines()

    assert "Permission denied" in done.stderr
    assert ["0", ["0", str(uid), "1"], "0"] == [lines[0], lines[1].split(), lines[-1]]
    assert ["1"] == lines[2].split()[:1]
    assert uid == owner


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
def test_a_time_limit(tmp_path: Path) -> None:
    """A program that takes too long is ended: 124, with a message."""
    done = run({"namespaces": ["mnt"], "timeout": 0.3}, tmp_path, "sleep", "60")

    assert 124 == done.returncode
    assert "0.3 s" in done.stderr


@needs.root
def test_a_wrong_configuration_is_refused(tmp_path: Path) -> None:
    """Every problem by its key, 125, and nothing was started."""
    done = run({"root": {"path": "relative"}, "namespaces": ["moon"]}, tmp_path, "true")

    assert 125 == done.returncode
    assert "root.path:" in done.stderr
    assert "namespaces" in done.stderr


EXEC_CASES = [
    pytest.param(case, marks=pytest.mark.need(case.engine))
    for case in (
        Case("docker", "busybox"), Case("podman", "busybox", userns=True), Case("runc", "debian"),
        Case("runc", "busybox", userns=True), Case("launcher", "busybox"),
    )
]  # fmt: skip


@pytest.mark.parametrize("container", EXEC_CASES, indirect=True, ids=str)
def test_exec_is_one_of_the_containers(container: Container) -> None:
    """exec gives what the engine's own exec gives: namespaces, root, rights, environment."""
    expected = container.view()
    done = launcher_exec(container, "/bin/onlyhere")
    view = View.parse(done.stdout)

    assert (0, "") == (done.returncode, done.stderr)
    assert (expected.image, expected.root) == (view.image, view.root)
    assert expected.namespaces == view.namespaces
    assert expected.environment[MARK] == view.environment[MARK]
    for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert expected.status[key] == view.status[key], key


@pytest.mark.parametrize("container", EXEC_CASES[-2:], indirect=True, ids=str)
def test_exec_as_a_user(container: Container) -> None:
    """-u, -w and -e mean what they mean to docker: no capabilities for a user that is not root."""
    script = "id -u; id -g; pwd; echo $A; grep CapEff /proc/self/status; exit 5"
    options = ("-u", "1234:77", "-w", "/bin", "-e", "A=B")
    done = launcher_exec(container, "sh", "-c", script, options=options)

    assert 5 == done.returncode, done.stderr
    assert ["1234", "77", "/bin", "B", "CapEff:", "0000000000000000"] == done.stdout.split()


@pytest.mark.parametrize("container", EXEC_CASES[-1:], indirect=True, ids=str)
def test_exec_with_chosen_namespaces(container: Container) -> None:
    """By kind, and by file as nsenter's users expect."""
    here = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "uts")]
    there = [os.readlink(f"/proc/{container.pid}/ns/{kind}") for kind in ("net", "uts")]
    show = ("readlink", "/proc/self/ns/net", "/proc/self/ns/uts")
    by_kind = launcher_exec(container, *show, options=("--namespaces", "net"))
    file = f"net=/proc/{container.pid}/ns/net,uts=/proc/self/ns/uts"
    by_file = launcher_exec(container, *show, options=("--namespaces", file))

    assert [there[0], here[1]] == by_kind.stdout.split()
    assert [there[0], here[1]] == by_file.stdout.split()


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
