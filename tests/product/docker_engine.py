"""Containers of the session's own docker daemon, which the keeper starts for whoever asks first."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from typing import ClassVar

from tests.dockerd import docker_host
from tests.product.container import MARK, SCRATCH, Container, Engine, Wish
from tests.product.debian import locked
from tests.product.images import Image
from tests.session import Session


class DockerEngine(Engine):
    """docker(1) with a daemon of its own; images are imported once a session."""

    name: ClassVar[str] = "docker"
    has_userns: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(session.keeper_socket))
            connection.sendall(b"docker\n")
            answer = connection.recv(4096).decode()
        if answer != "ok":
            raise RuntimeError(answer)

    @property
    def environment(self) -> Mapping[str, str]:
        """The address of the daemon."""
        return {"DOCKER_HOST": docker_host(self.session)}

    def run(self, wish: Wish) -> Container:
        """Start it with docker's default profile and without a network."""
        options = ["--user", str(wish.user)] if wish.user is not None else []
        options += [f"--cap-add={name}" for name in wish.capabilities]
        identity = self.call(
            "docker", "run", "--detach", "--network=none", f"--name={wish.name}",
            f"--hostname={wish.name}", f"--env={MARK}={wish.name}", f"--tmpfs={SCRATCH}",
            *options, self._imported(wish.image), *wish.command,
        )  # fmt: skip
        pid = int(self.call("docker", "inspect", "--format={{.State.Pid}}", identity))
        return Container(self, wish.name, pid, wish.image, wish.userns, identity)

    def exec_command(
        self, container: Container, argv: Sequence[str], user: int | None
    ) -> list[str]:
        """Use docker exec."""
        options = ["--user", str(user)] if user is not None else []
        return ["docker", "exec", *options, container.name, *argv]

    def remove(self, container: Container) -> None:
        """Use docker rm."""
        self.call("docker", "rm", "--force", container.name)

    def _imported(self, image: Image) -> str:
        tag = f"launcher-test/{image.name}"
        with locked(image.path.with_suffix(".docker-lock")):
            if not self.call("docker", "images", "--quiet", tag):
                with subprocess.Popen(
                    ["tar", "-c", "-C", image.path, "."], stdout=subprocess.PIPE
                ) as tar:
                    subprocess.run(
                        ["docker", "import", "-", tag],
                        stdin=tar.stdout,
                        env=os.environ | self.environment,
                        check=True,
                        capture_output=True,
                    )
        return tag
