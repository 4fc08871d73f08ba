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
from pathlib import Path

from nsstages.syscalls import MNT_DETACH, PR_SET_CHILD_SUBREAPER, prctl, umount2
from tests import podman
from tests.dockerd import Dockerd
from tests.session import Session

CGROUPS = Path("/sys/fs/cgroup")


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
    """Remove what a session, however it ended, may have left: nothing when all went well."""
    for directory in session.directory.glob("*/podman"):
        worker = Session(session.session_id, directory.parent.name)
        command = ["podman", "rm", "--all", "--force", "--time", "0"]
        if (directory / "storage").exists():
            variables = os.environ | podman.environment(worker)
            subprocess.run(command, env=variables, capture_output=True)
    for state in Path("/run/runc").glob(f"{session.session_id}-*"):
        subprocess.run(["runc", "delete", "--force", state.name], capture_output=True)
    _kill_cgroups(session.session_id)
    _unmount_below(str(session.directory))
    shutil.rmtree(session.directory, ignore_errors=True)


def _kill_cgroups(session_id: str) -> None:
    for hierarchy in (CGROUPS, *CGROUPS.iterdir()):
        for path, _, _ in os.walk(hierarchy / session_id, topdown=False):
            for pid in Path(path, "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            try:
                os.rmdir(path)
            except OSError as error:  # its processes are dying: the kernel says EBUSY
                print(f"keeper: {path}: {error}", file=sys.stderr)


def _unmount_below(directory: str) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for line in reversed(lines):
        mount_point = line.split()[4]
        if mount_point.startswith(directory + "/"):
            umount2(mount_point, MNT_DETACH)


if __name__ == "__main__":
    main(sys.argv[1])
