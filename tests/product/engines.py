"""Every engine and every kind of container that the product is tested against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from tests.product.container import Container, Engine
from tests.product.docker_engine import DockerEngine
from tests.product.images import RECIPES
from tests.product.podman_engine import PodmanEngine
from tests.product.runc_engine import RuncEngine
from tests.product.sandbox_engine import SandboxEngine
from tests.session import Session

ENGINES: Final[Mapping[str, type[Engine]]] = MappingProxyType(
    {engine.name: engine for engine in (DockerEngine, PodmanEngine, RuncEngine, SandboxEngine)}
)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of container: who runs it, what is in it, whether it has a user namespace."""

    engine: str
    image: str
    userns: bool = False

    def __str__(self) -> str:
        return f"{self.engine}-{self.image}" + ("-userns" if self.userns else "")


CASES: Final = tuple(
    Case(name, image, userns)
    for name, engine in ENGINES.items()
    for image in RECIPES
    for userns in (False, True)
    if engine.has_userns or not userns
)


class Engines:
    """The engines of one worker, each made when the first test asks for it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._made: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._made:
            self._made[name] = ENGINES[name](self._session)
        return self._made[name]

    def live(self) -> list[Container]:
        """Return every container that runs now."""
        return [container for engine in self._made.values() for container in engine.live]

    def start(self, case: Case) -> Container:
        """Start a container of this kind."""
        return self[case.engine].start(case.image, userns=case.userns)

    def stop_all(self) -> None:
        """Stop what still runs."""
        for container in self.live():
            container.engine.stop(container)
