"""A docker daemon of our own: own containerd, own data, own sockets, no network, no iptables.

Nothing of it is shared with a docker that already runs on the machine. Both daemons are killed
with their starter (PR_SET_PDEATHSIG), and their containers die with their cgroups.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from nsstages.syscalls import PR_SET_PDEATHSIG, prctl
from tests.session import Session

START: Final = 30.0  # seconds; 0.2 on an idle machine
STOP: Final = 15.0

_CONTAINERD: Final = """\
version = 2
root = "{0}/containerd/root"
state = "{0}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/containerd.sock"
"""


def docker_host(session: Session) -> str:
    """Return the DOCKER_HOST of the session's daemon."""
    return f"unix://{session.shared}/docker.sock"


class Dockerd:
    """containerd and dockerd, started once, by the keeper."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._directory = session.shared
        self._processes: list[subprocess.Popen[bytes]] = []
        self._run_existed = Path("/run/containerd").exists()

    def start(self) -> None:
        """Start both daemons and wait until dockerd answers; a second call does nothing.

        Raises RuntimeError with the end of the log when one dies or does not answer in time.
        """
        if self._processes:
            return
        directory = self._directory
        (directory / "containerd.toml").write_text(_CONTAINERD.format(directory))
        (directory / "daemon.json").write_text("{}")
        self._spawn("containerd", "--config", str(directory / "containerd.toml"))
        self._wait(directory / "containerd.sock", "containerd")
        self._spawn(
            "dockerd",
            f"--containerd={directory}/containerd.sock",
            f"--config-file={directory}/daemon.json",
            f"--data-root={directory}/docker/data",
            f"--exec-root={directory}/docker/exec",
            f"--pidfile={directory}/docker.pid",
            f"--host={docker_host(self._session)}",
            f"--cgroup-parent={self._session.cgroup}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
        )
        self._wait(directory / "docker.sock", "dockerd", ping=True)

    def stop(self) -> None:
        """Stop both, the client first; SIGKILL after STOP seconds. Never raises."""
        for process in reversed(self._processes):
            process.terminate()
            try:
                process.wait(STOP)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._processes and not self._run_existed:
            self._remove_containerds_directory()
        self._processes.clear()

    def _spawn(self, *argv: str) -> None:
        with open(self._directory / f"{argv[0]}.log", "wb") as log:
            self._processes.append(
                subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # the keeper has one thread
                    preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
                )
            )

    def _wait(self, path: Path, name: str, *, ping: bool = False) -> None:
        deadline = time.monotonic() + START
        while not (_answers_ping(path) if ping else path.exists()):
            dead = self._processes[-1].poll() is not None
            if dead or time.monotonic() > deadline:
                log = (self._directory / f"{name}.log").read_text(errors="replace")
                self.stop()
                raise RuntimeError(f"{name} {'died' if dead else 'is silent'}: {log[-2000:]}")
            time.sleep(0.02)

    @staticmethod
    def _remove_containerds_directory() -> None:
        """Shims put their sockets into /run/containerd/s whatever the configuration says."""
        for path in (Path("/run/containerd/s"), Path("/run/containerd")):
            try:
                path.rmdir()
            except OSError:  # somebody else uses it by now
                return


def _answers_ping(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        try:
            connection.connect(str(path))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
        except OSError:
            return False
