"""An attach as an ordinary person: the container's processes of the same uid stay out."""

from __future__ import annotations

import pwd
import subprocess
import time
from collections.abc import Callable

from tests import needs
from tests.product.attached import LAUNCHER, attach
from tests.product.container import Container

# Lists the root of every process of the own uid, by its name.
PROBE = "for p in /proc/[0-9]*; do echo $(cat $p/comm): $(ls $p/root/); done 2>/dev/null"


@needs.runc
@needs.user
def test_the_same_uid_in_the_container_cannot_look_into_the_shell(
    start: Callable[..., Container],
) -> None:
    """A process of the person's uid in the container sees the root of its like, not the host's
    through the attached shell.
    """
    container = start("runc", "busybox")
    uid = pwd.getpwnam(needs.USER).pw_uid
    like = [LAUNCHER, "exec", "-u", str(uid), container.spec, "--", "sleep", "30"]
    shell = [LAUNCHER, "attach", "-u", needs.USER, container.spec, "--", "sleep", "30"]
    running = [subprocess.Popen(command, cwd="/") for command in (like, shell)]
    try:
        deadline = time.monotonic() + 20
        while len([pid for pid in container.processes() if _comm(pid) == "sleep"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        probe = [LAUNCHER, "exec", "-u", str(uid), container.spec, "--", "sh", "-c", PROBE]
        done = subprocess.run(probe, capture_output=True, text=True, cwd="/", timeout=60)
    finally:
        for process in running:
            process.terminate()
            process.wait(20)

    seen = sorted(line for line in done.stdout.splitlines() if line.startswith("sleep:"))
    assert 2 == len(seen)
    assert "sleep:" == seen[0]
    assert "scratch" in seen[1]


@needs.runc
@needs.user
def test_the_person_has_one_harmless_capability(start: Callable[..., Container]) -> None:
    """The shell's only capability is one that the container does not have."""
    container = start("runc", "busybox")
    done = attach(
        container, "grep", "^Cap\\(Eff\\|Amb\\)", "/proc/self/status", options=("-u", needs.USER)
    )

    assert ["CapEff:\t0000000800000000", "CapAmb:\t0000000800000000"] == done.stdout.splitlines()


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
