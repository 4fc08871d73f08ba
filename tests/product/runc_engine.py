"""Containers of runc itself, from a bundle that is written here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from tests.product.container import MARK, SCRATCH, Container, Engine, Wish
from tests.product.images import COUNT, OFFSET
from tests.product.overlay import Overlay

_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES: Final = (  # docker's default set
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
    "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID",
    "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip
_MOUNTS: Final = (
    ("/proc", "proc", "proc", ()),
    ("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    ("/dev/pts", "devpts", "devpts",
     ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")),
    ("/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777", "size=65536k")),
    ("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    ("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
    (SCRATCH, "tmpfs", "tmpfs", ("nosuid", "nodev", "mode=1777")),
)  # fmt: skip
_MASKED: Final = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware")
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class RuncEngine(Engine):
    """runc(8), whose containers are found in /run/runc by their unique names."""

    name: ClassVar[str] = "runc"
    has_userns: ClassVar[bool] = True

    def run(self, wish: Wish) -> Container:
        """Write the bundle and start it detached, with no standard streams."""
        overlay = Overlay(self.session, wish.name)
        root = overlay.mount(wish.image, shifted=wish.userns)
        config = _config(wish, str(root), f"{self.session.cgroup}/{wish.name}")
        (overlay.directory / "config.json").write_text(json.dumps(config))
        subprocess.run(
            ["runc", "run", "--detach", "--bundle", overlay.directory, wish.name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=60, check=True,
        )  # fmt: skip
        pid = json.loads(self.call("runc", "state", wish.name))["pid"]
        return Container(self, wish.name, pid, wish.image, wish.userns, wish.name)

    def exec_command(
        self, container: Container, argv: Sequence[str], user: int | None
    ) -> list[str]:
        """Use runc exec."""
        options = ["--user", str(user)] if user is not None else []
        return ["runc", "exec", *options, container.name, *argv]

    def remove(self, container: Container) -> None:
        """Use runc delete, then unmount the root."""
        self.call("runc", "delete", "--force", container.name)
        Overlay(self.session, container.name).remove()


def _config(wish: Wish, root: str, cgroup: str) -> dict[str, Any]:
    capabilities = [*_CAPABILITIES, *wish.capabilities]
    sets = ("bounding", "effective", "permitted")
    user = wish.user or 0
    return {
        "ociVersion": "1.0.2",
        "hostname": wish.name,
        "root": {"path": root},
        "process": {
            "args": list(wish.command),
            "env": [_PATH, f"{MARK}={wish.name}"],
            "cwd": "/",
            "user": {"uid": user, "gid": user},
            "capabilities": dict.fromkeys(sets, capabilities),
        },
        "mounts": [
            {"destination": target, "type": kind, "source": source, "options": list(options)}
            for target, kind, source, options in _MOUNTS
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in _namespaces(wish)],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READ_ONLY),
            **(_maps() if wish.userns else {}),
        },
    }


def _namespaces(wish: Wish) -> list[str]:
    return ["pid", "network", "ipc", "uts", "mount", *(["user"] if wish.userns else [])]


def _maps() -> dict[str, Any]:
    id_map = [{"containerID": 0, "hostID": OFFSET, "size": COUNT}]
    return {"uidMappings": id_map, "gidMappings": id_map}
