"""Containers of root's podman, with storage and settings of the worker's own."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from tests.product.container import MARK, SCRATCH, Container, Engine, Wish, ends
from tests.product.images import COUNT, OFFSET
from tests.product.overlay import Overlay
from tests.session import Session

_STORAGE: Final = """\
[storage]
driver = "overlay"
graphroot = "{0}/storage"
runroot = "{0}/run"
[storage.options.overlay]
skip_mount_home = "true"
"""
# Limits within those of the tests: podman's own are above what root without CAP_SYS_RESOURCE may
# set. Locks in files: those in /dev/shm are shared by all podmans of the machine.
_SETTINGS: Final = """\
[containers]
default_ulimits = ["nofile={1}:{1}", "nproc={2}:{2}"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{0}/tmp"
static_dir = "{0}/static"
volume_path = "{0}/volumes"
"""


class PodmanEngine(Engine):
    """podman(1) over runc. Its containers' roots are overlays that the tests mount."""

    name: ClassVar[str] = "podman"
    has_userns: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._directory = session.own / "podman"
        self._directory.mkdir(exist_ok=True)
        settings = _SETTINGS.format(
            self._directory,
            _limit(resource.RLIMIT_NOFILE, 20000),
            _limit(resource.RLIMIT_NPROC, 10000),
        )
        (self._directory / "containers.conf").write_text(settings)
        (self._directory / "storage.conf").write_text(_STORAGE.format(self._directory))

    @property
    def environment(self) -> Mapping[str, str]:
        """The files with this worker's settings."""
        return {
            "CONTAINERS_CONF": f"{self._directory}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self._directory}/storage.conf",
        }

    def run(self, wish: Wish) -> Container:
        """Start it with podman's default profile and without a network."""
        options = ["--user", str(wish.user)] if wish.user is not None else []
        options += [f"--cap-add={name}" for name in wish.capabilities]
        if wish.userns:
            options += [f"--uidmap=0:{OFFSET}:{COUNT}", f"--gidmap=0:{OFFSET}:{COUNT}"]
        root = Overlay(self.session, wish.name).mount(wish.image, shifted=wish.userns)
        identity = self.call(
            "podman", "run", "--detach", "--network=none", f"--name={wish.name}",
            f"--hostname={wish.name}", f"--env={MARK}={wish.name}", f"--tmpfs={SCRATCH}",
            f"--cgroup-parent={self.session.cgroup}", *options,
            "--rootfs", str(root), *wish.command,
        )  # fmt: skip
        pid = int(self.call("podman", "inspect", "--format={{.State.Pid}}", identity))
        return Container(self, wish.name, pid, wish.image, wish.userns, identity)

    def exec_command(
        self, container: Container, argv: Sequence[str], user: int | None
    ) -> list[str]:
        """Use podman exec."""
        options = ["--user", str(user)] if user is not None else []
        return ["podman", "exec", *options, container.name, *argv]

    def remove(self, container: Container) -> None:
        """Use podman rm, wait for the monitor, which ends a moment later, and unmount the root."""
        state = "--format={{.State.ConmonPid}}"
        monitor = int(self.call("podman", "inspect", state, container.name))
        with ends(monitor, f"the monitor of {container.spec}"):
            self.call("podman", "rm", "--force", "--time=0", container.name)
        Overlay(self.session, container.name).remove()


def _limit(kind: int, wanted: int) -> int:
    hard = resource.getrlimit(kind)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
