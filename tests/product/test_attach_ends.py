"""How an attach ends: by signals, by death on any side, by time; and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from nsstages.messages import COMM, FUSE, SUPERVISOR
from tests import needs
from tests.product.attached import attach, running
from tests.product.container import Container
from tests.product.interactive import FEW, ONE

on_few = pytest.mark.parametrize("container", FEW, indirect=True, ids=str)
on_one = pytest.mark.parametrize("container", ONE, indirect=True, ids=str)
engines = pytest.mark.parametrize(
    "engine", [pytest.param("runc", marks=needs.runc), pytest.param("docker", marks=needs.docker)]
)

SOON: float = 2.0  # seconds in which the launcher must have returned
# Says that it runs, and goes on reading the host's files.
BUSY = "echo started; while :; do cat /etc/os-release > /dev/null; done"


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return (code, output, errors) of a launcher that must end soon."""
    output, errors = process.communicate(timeout=SOON)
    return process.returncode, output, errors


def companion(launcher: int, name: str) -> int:
    """Return the pid of a child of the launcher: FUSE or SUPERVISOR."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = (pid for pid in children if _comm(pid) == COMM[name])
    return int(found)


def _comm(pid: str) -> str:
    return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")


@on_few
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_are_forwarded(container: Container, number: signal.Signals) -> None:
    """SIGTERM, SIGHUP and SIGINT to the launcher reach the program, which may handle them."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 5' {name}; echo started; while :; do sleep 0.02; done"
    with running(container, "sh", "-c", script) as process:
        process.send_signal(number)

        assert (5, f"got {name}\n", "") == ended(process)


@on_one
def test_a_forwarded_signal_ends_a_routed_program(container: Container) -> None:
    """The program that a signal reaches can be one of the container's; 128+n is the exit code."""
    with running(container, "sh", "-c", "echo started; exec /c/bin/sleep 1000") as process:
        time.sleep(0.2)  # in the midst of the passage or after it
        process.send_signal(signal.SIGTERM)

        assert (128 + signal.SIGTERM, "", "") == ended(process)


@on_one
def test_what_nohup_ignores_stays_ignored(container: Container) -> None:
    """Under nohup(1) SIGHUP ends neither the launcher nor the program."""
    script = "echo started; sleep 0.3; kill -HUP $$; echo on"
    with running(container, "sh", "-c", script, under=("nohup",)) as process:
        process.send_signal(signal.SIGHUP)
        code, output, _ = ended(process)

    assert (0, "on\n") == (code, output)


@engines
def test_the_container_dies(start: Callable[..., Container], engine: str) -> None:
    """The launcher says so and ends with 137 at once."""
    container = start(engine, "busybox")
    with running(container, "sh", "-c", BUSY) as process:
        os.kill(container.pid, signal.SIGKILL)
        code, _, errors = ended(process)

    assert 137 == code
    assert f"launcher: {engine} container {container.name} has exited\n" == errors


@on_one
@pytest.mark.parametrize(
    "options", [(), ("--supervise", "off"), ("--pid-namespace", "host"), ("--pid-namespace", "new")]
)
@pytest.mark.parametrize(
    "script",
    [
        pytest.param("setsid -f sleep 4321", id="daemon"),
        pytest.param("sleep 4321 & sleep 4321 &", id="jobs"),
        pytest.param("setsid -f sh -c 'setsid -f sleep 4321'", id="daemon's-daemon"),
    ],
)
def test_nothing_started_in_the_shell_outlives_it(
    container: Container, options: tuple[str, ...], script: str
) -> None:
    """Daemons and background jobs are gone when the launcher returns."""
    done = attach(container, "sh", "-c", f"{script}\nexit 3", options=options)

    assert (3, "") == (done.returncode, done.stderr)
    assert [] == _sleepers()


@on_one
def test_a_routed_daemon_does_not_outlive_it(container: Container) -> None:
    """A daemon of the container's own programs that the shell started ends with it, too."""
    before = container.processes()
    done = attach(container, "sh", "-c", "setsid -f /c/bin/sleep 4321; sleep 0.1; exit 3")

    assert (3, "") == (done.returncode, done.stderr)
    assert before == container.processes()


def _sleepers() -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        try:
            line = Path(f"/proc/{entry}/cmdline").read_bytes()
        except OSError:
            continue
        if entry.isdigit() and line == b"sleep\x004321\0":
            found.append(int(entry))
    return found


@on_few
@pytest.mark.parametrize("name", [FUSE, SUPERVISOR])
def test_a_companion_is_killed(container: Container, name: str) -> None:
    """When FUSE server or supervisor is killed in mid-session the launcher names it, ends with
    125, and the whole tree is gone.
    """
    before = container.processes()
    with running(container, "sh", "-c", BUSY) as process:
        os.kill(companion(process.pid, name), signal.SIGKILL)
        code, _, errors = ended(process)

    message = f"launcher: {name}: while the program was running: died (SIGKILL)"
    assert (125, [message]) == (code, [line for line in errors.splitlines() if "launcher:" in line])
    assert before == container.processes()


@on_one
def test_the_launcher_is_killed(container: Container) -> None:
    """Even SIGKILL to the launcher leaves nothing behind."""
    before = container.processes()
    with running(container, "sh", "-c", BUSY) as process:
        companions = [companion(process.pid, name) for name in (FUSE, SUPERVISOR)]
        process.kill()
        process.wait()
        deadline = time.monotonic() + SOON
        while before != container.processes() or any(map(_exists, companions)):
            assert time.monotonic() < deadline
            with suppress(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)  # the orphans come to this process
            time.sleep(0.01)


def _exists(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


@on_one
@pytest.mark.parametrize("script", ["exec sleep 1000", "trap '' TERM HUP INT; sleep 1000"])
def test_the_time_is_over(container: Container, script: str) -> None:
    """--timeout ends the program, whatever it ignores, and the exit code is 124."""
    started = time.monotonic()
    done = attach(container, "sh", "-c", script, options=("--timeout", "1"))

    assert 124 == done.returncode
    assert "launcher: the time limit of 1 s is over\n" == done.stderr
    assert 1 + 2 * SOON > time.monotonic() - started


@engines
def test_a_paused_container_is_refused(start: Callable[..., Container], engine: str) -> None:
    """Whoever joins a frozen cgroup never leaves it: the launcher says that it is paused."""
    container = start(engine, "busybox")
    container.engine.call(engine, "pause", container.name)
    done = attach(container, "true")
    container.engine.call(engine, "unpause" if engine == "docker" else "resume", container.name)

    assert 125 == done.returncode
    assert "is paused" in done.stderr
    assert 0 == attach(container, "true").returncode
