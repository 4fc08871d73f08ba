"""Containers of root's podman, with storage and settings of the worker's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from tests import podman
from tests.product.container import MARK, SCRATCH, Container, Engine, Wish, ends
from tests.product.images import COUNT, OFFSET
from tests.product.overlay import Overlay


class PodmanEngine(Engine):
    """podman(1) over runc. Its containers' roots are overlays that the tests mount."""

    name: ClassVar[str] = "podman"
    has_userns: ClassVar[bool] = True

    @property
    def environment(self) -> Mapping[str, str]:
        """The files with this worker's settings."""
        return podman.environment(self.session)

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
