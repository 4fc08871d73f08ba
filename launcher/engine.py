"""The Operations interface between the launcher and what it launches, and the engines' registry.

attach, run and exec are engines; lifecycle.py drives any of them through the same phases. What
runs inside the namespaces is data (the plan's InitConfig), executed by stage 2: an engine has no
code there, and so nothing of it can be loaded from the other side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

from launcher.errors import UsageError
from launcher.plan import Plan

if TYPE_CHECKING:
    from launcher.session import Session

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Common(Generic[C]):
    """What every engine is given: its name, the id of the launch, its configuration."""

    engine: str
    id: str
    config: C


class Operations(ABC, Generic[C]):
    """One use of the launcher. Methods are listed in the order in which they are called.

    All run in the manager. Those marked *none* neither have nor gain rights; a privileged helper
    called there raises launcher.phases.PhaseError.
    """

    name: ClassVar[str]

    @abstractmethod
    def config(self) -> C:
        """Return the zero value of this engine's configuration. Rights: none."""

    @abstractmethod
    def init_config(self, common: Common[C], *, privileged: bool) -> None:
        """Store the parsed configuration; ``privileged`` when started by root. Rights: none."""

    @abstractmethod
    def prepare_config(self) -> Plan:
        """Validate everything and return the plan, before the first fork. Rights: none gained.

        Raises LauncherError; a wrong configuration is refused by key name.
        """

    def create_container(self, pid: int, session: Session) -> None:
        """Prepare the container of ``pid`` (stage 2) through requests that stage 2 executes."""
        session.create(pid)

    def pre_start_process(self, pid: int, session: Session) -> None:
        """Optional. Last moment before the program starts; it waits at the start gate."""

    def start_process(self, session: Session) -> None:
        """Open the start gate: stage 2 takes the target's rights and becomes the program."""
        session.release()

    def post_start_process(self, pid: int) -> None:
        """Optional. The exec succeeded; never called otherwise."""

    def monitor_container(self, pid: int, session: Session) -> int:
        """Block until the program ends; return its wait status. Rights: not used."""
        del pid
        return session.monitor()

    def cleanup_container(self, error: BaseException | None, status: int | None) -> None:
        """Optional. Runs exactly once, also after a failed start; removes what the engine made."""


_ENGINES: Final = {
    "attach": ("launcher.engines.attach", "Attach"),
    "run": ("launcher.engines.sandbox", "Sandbox"),
    "exec": ("launcher.engines.exec", "Exec"),
}


def engine(name: str) -> Operations[Any]:
    """Return a new engine; its module is imported only now, imports are start-up time."""
    if name not in _ENGINES:
        raise UsageError(f"no engine {name!r}; there are {', '.join(_ENGINES)}")
    module, attribute = _ENGINES[name]
    make: Callable[[], Operations[Any]] = getattr(import_module(module), attribute)
    return make()
