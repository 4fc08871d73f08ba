"""The process that keeps what the workers of one test session share, and cleans up after them.

The controlling pytest process starts it and holds the other end of its standard input. When that
closes, because the session is over or because pytest was killed, the keeper stops the docker
daemon, kills and removes whatever the workers left, and exits. Workers ask it by a line on its
socket; it answers "ok" or says what went wrong. It is a subreaper, so the daemon's shims stay
below it and are nobody's leak.

    python -m tests.keeper SESSION_ID
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nsstages.syscalls import MNT_DETACH, PR_SET_CHILD_SUBREAPER, prctl, umount2
from tests import podman
from tests.dockerd import Dockerd
from tests.session import Session

CGROUPS: Final = Path("/sys/fs/cgroup")
_GONE: Final = 5.0  # seconds in which killed processes must be gone


def main(session_id: str) -> None:
    """Serve until standard input closes, then clean up. A terminal's signals are not for us."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    session = Session(session_id, "shared")
    session.make_directories()
    daemon = Dockerd(session)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(session.keeper_socket))
    listener.listen(64)
    print("ready", flush=True)
    try:
        _serve(listener, daemon)
    finally:
        daemon.stop()
        clean(session)


def _serve(listener: socket.socket, daemon: Dockerd) -> None:
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            try:
                answer = _answer(connection.recv(100).decode().strip(), daemon)
                connection.sendall(answer.encode())
            except OSError as error:  # a worker that was killed while it asked
                print(f"keeper: {error}", file=sys.stderr)


def _answer(request: str, daemon: Dockerd) -> str:
    if request != "docker":
        return f"unknown request {request!r}"
    try:
        daemon.start()
    except (OSError, RuntimeError) as error:
        return f"dockerd: {error}"
    return "ok"


def clean(session: Session) -> None:
    """Remove what a session, however it ended, may have left: nothing when all went well.

    Whatever goes wrong in one step is told and does not keep the others from being done.
    """
    for step in (_kill, _forget_podmans, _forget_runcs, _remove_cgroups, _unmount):
        try:
            step(session)
        except (OSError, subprocess.SubprocessError) as error:
            print(f"keeper: {step.__name__}: {error}", file=sys.stderr)
    shutil.rmtree(session.directory, ignore_errors=True)


def _kill(session: Session) -> None:
    """Kill what is in the session's cgroups: containers, their monitors, what they started."""
    deadline = time.monotonic() + _GONE
    while pids := {pid for path in _cgroups(session) for pid in _processes(path)}:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {sorted(pids)} do not die")
        time.sleep(0.02)


def _cgroups(session: Session) -> Iterator[str]:
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        for path, _, _ in os.walk(hierarchy / session.session_id, topdown=False):
            yield path


def _processes(cgroup: str) -> Iterator[int]:
    with suppress(FileNotFoundError):
        # 0 is a process that this PID namespace does not show, and would mean our own group
        yield from filter(None, map(int, Path(cgroup, "cgroup.procs").read_text().split()))


def _forget_podmans(session: Session) -> None:
    for storage in session.directory.glob("*/podman/storage"):
        worker = Session(session.session_id, storage.parts[-3])
        command = ["podman", "rm", "--all", "--force", "--time", "0"]
        variables = os.environ | podman.environment(worker)
        subprocess.run(command, env=variables, capture_output=True, timeout=60)


def _forget_runcs(session: Session) -> None:
    for state in Path("/run/runc").glob(f"{session.session_id}-*"):
        command = ["runc", "delete", "--force", state.name]
        subprocess.run(command, capture_output=True, timeout=60)


def _remove_cgroups(session: Session) -> None:
    for path in _cgroups(session):
        os.rmdir(path)


def _unmount(session: Session) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for line in reversed(lines):
        mount_point = line.split()[4]
        if mount_point.startswith(f"{session.directory}/"):
            umount2(mount_point, MNT_DETACH)


if __name__ == "__main__":
    main(sys.argv[1])
