"""Containers of `launcher run` itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from tests.product.container import MARK, SCRATCH, Container, Engine, Wish
from tests.product.images import COUNT, OFFSET
from tests.product.overlay import Overlay
from tests.session import Session

LAUNCHER: Final = str(Path(sys.executable).with_name("launcher"))
_START: Final = 20.0
_NAMESPACES: Final = ("mnt", "uts", "ipc", "net", "pid")
_MOUNTS: Final = (("proc", "/proc"), ("dev", "/dev"), ("sysfs", "/sys"), ("tmpfs", SCRATCH))


class SandboxEngine(Engine):
    """`launcher run`, which stays in the foreground; its state file names the first process."""

    name: ClassVar[str] = "launcher"
    has_userns: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._runs: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, wish: Wish) -> Container:
        """Start it and wait for its state file."""
        overlay = Overlay(self.session, wish.name)
        root = overlay.mount(wish.image, shifted=wish.userns)
        config = overlay.directory / "run.json"
        cgroup = f"{self.session.cgroup}/{wish.name}"
        config.write_text(json.dumps(_config(wish, str(root), cgroup)))
        with open(overlay.directory / "log", "wb") as log:
            process = subprocess.Popen(
                [LAUNCHER, "run", "--config", str(config), "--", *wish.command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._runs[wish.name] = process
        pid = self._wait_pid(wish.name, overlay.directory / "log")
        return Container(self, wish.name, pid, wish.image, wish.userns, wish.name)

    def exec_command(
        self, container: Container, argv: Sequence[str], user: int | None
    ) -> list[str]:
        """Use launcher exec."""
        options = ["-u", str(user)] if user is not None else []
        return [LAUNCHER, "exec", *options, container.spec, "--", *argv]

    def remove(self, container: Container) -> None:
        """End the launcher as a user would, then unmount the root."""
        process = self._runs.pop(container.name)
        process.terminate()
        process.wait(10)
        Overlay(self.session, container.name).remove()

    def _wait_pid(self, name: str, log: Path) -> int:
        state = Path("/run/launcher", f"{name}.json")
        deadline = time.monotonic() + _START
        while not state.exists():
            if self._runs[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"launcher run: {log.read_text(errors='replace')}")
            time.sleep(0.01)
        return int(json.loads(state.read_text())["pid"])


def _config(wish: Wish, root: str, cgroup: str) -> dict[str, Any]:
    id_map = [{"inside": 0, "outside": OFFSET, "count": COUNT}]
    return {
        "name": wish.name,
        "hostname": wish.name,
        "namespaces": [*_NAMESPACES, *(["user"] if wish.userns else [])],
        "root": {"path": root},
        "mounts": [{"type": kind, "target": target} for kind, target in _MOUNTS],
        "cgroup": cgroup,
        "clear_env": True,
        "env": {MARK: wish.name, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"},
        **({"user": str(wish.user)} if wish.user is not None else {}),
        **({"uid_map": id_map, "gid_map": id_map} if wish.userns else {}),
    }
