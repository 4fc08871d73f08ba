"""The phases of a launch: their order, their rights, and a clean-up that always comes, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher import engine as engines
from launcher import lifecycle, phases
from launcher.engine import Common, Operations
from launcher.errors import LauncherError, UsageError
from launcher.plan import Plan
from nsstages.bootstrap import Bootstrap
from nsstages.init_config import InitConfig, Process
from nsstages.messages import MANAGER
from nsstages.trace import Recorder

PLAN = Plan(
    "fake", Bootstrap(), InitConfig(Process(("x",), ())), notes=("a note",), warnings=("beware",)
)
METHODS = list(phases.MAY_USE_RIGHTS)[1:]  # config() is the caller's
ORDER = [
    "init_config", "prepare_config", "warn beware", "start", "create_container",
    "pre_start_process", "tell a note", "start_process", "post_start_process",
    "monitor_container", "end", "cleanup_container",
]  # fmt: skip


class Boom(LauncherError):
    """What a fake fails with."""


class Recorded:
    """A diary that the fake engine and the fake session share; fails at one entry."""

    def __init__(self, fails_at: str = "") -> None:
        self.entries: list[str] = []
        self.phases: dict[str, str] = {}
        self.fails_at = fails_at
        self.cleaned: list[tuple[str, int | None]] = []

    def note(self, entry: str) -> None:
        """Write down what happens, and in which phase."""
        self.entries.append(entry)
        self.phases[entry] = phases._current[-1] if phases._current else ""
        if entry == self.fails_at:
            raise Boom(entry)


def noted(name: str, result: object = None) -> Callable[..., object]:
    """Return a method of the fake engine that notes its name."""

    def method(self: Any, *_arguments: object, **_options: object) -> object:
        self.diary.note(name)
        return result

    return method


def fake(diary: Recorded) -> Operations[str]:
    """Return an engine that only takes notes."""

    def cleanup(self: Any, error: BaseException | None, status: int | None) -> None:
        self.diary.cleaned.append((str(error or ""), status))
        self.diary.note("cleanup_container")

    results = {"prepare_config": PLAN, "monitor_container": 7 << 8}
    methods = {name: noted(name, results.get(name)) for name in ("config", *METHODS)}
    kind = type("Fake", (Operations,), methods | {"cleanup_container": cleanup, "diary": diary})
    made: Operations[str] = kind()
    return made


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Launch a fake engine with a fake session; returns the status."""

    def launch(diary: Recorded) -> int:
        class FakeSession:
            def __init__(self, plan: Plan, recorder: Recorder, _servers: object) -> None:
                self.plan, self.recorder = plan, recorder

            def start(self) -> int:
                diary.note("start")
                return 4711

            def end(self) -> None:
                diary.note("end")

        monkeypatch.setattr(lifecycle, "Session", FakeSession)
        return lifecycle.launch(
            fake(diary),
            Common("fake", "1", ""),
            Recorder(MANAGER),
            tell=lambda text: diary.note(f"tell {text}"),
            warn=lambda text: diary.note(f"warn {text}"),
        )

    return launch


def test_the_phases_come_in_their_order(launch: Any) -> None:
    """Each once, each in the phase of its name, which decides its rights; the status comes back."""
    diary = Recorded()

    assert 7 << 8 == launch(diary)
    assert ORDER == diary.entries
    assert {name: name for name in METHODS} == {name: diary.phases[name] for name in METHODS}
    assert [("", 7 << 8)] == diary.cleaned


@pytest.mark.parametrize("failing", ORDER[:-1])
def test_whatever_fails_is_cleaned_up_after(launch: Any, failing: str) -> None:
    """The error comes out as it was, nothing of the later phases runs, clean-up once and last."""
    diary = Recorded(failing)
    with pytest.raises(Boom, match=failing):
        launch(diary)

    before = ORDER[: ORDER.index(failing) + 1]
    started = ORDER.index(failing) >= ORDER.index("warn beware")
    ending = ["end"] if started and failing != "end" else []
    assert [*before, *ending, "cleanup_container"] == diary.entries
    status = 7 << 8 if failing == "end" else None
    assert [("" if failing == "end" else failing, status)] == diary.cleaned


def test_explain_stops_before_the_first_fork() -> None:
    """prepare() runs the two phases without rights and returns the plan."""
    diary = Recorded()

    assert PLAN == lifecycle.prepare(fake(diary), Common("fake", "1", ""))
    assert ORDER[:2] == diary.entries


@pytest.mark.parametrize("name", ["attach", "run", "exec"])
def test_the_engines_are_found_by_name(name: str) -> None:
    """Each is an Operations with a zero configuration of its own, new at every call."""
    made = engines.engine(name)

    assert name == made.name
    assert made.config() == made.config()
    assert made is not engines.engine(name)


def test_an_unknown_engine_is_wrong_usage() -> None:
    """The error lists those that there are."""
    with pytest.raises(UsageError, match="no engine 'fly'; there are attach, run, exec"):
        engines.engine("fly")
