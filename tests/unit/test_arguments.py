"""The command line: its grammar, what it says of the configuration, and exit codes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import cli
from launcher.arguments import overrides, parse
from launcher.causes import TargetDied, TimeLimit
from launcher.errors import (
    CannotExecute,
    CommandNotFound,
    LauncherError,
    TargetNotFound,
    UsageError,
)
from nsstages.errors import DeadlineExceeded, Failure, NsstagesError, StageFailed


def given_keys(*words: str) -> dict[str, Any]:
    """Return the keys that a command line gives."""
    return overrides(parse(words))


def test_an_option_that_is_not_given_says_nothing() -> None:
    """So it cannot override the file."""
    assert {} == given_keys("run")
    assert {"target": "web"} == given_keys("attach", "web")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["exec", "-u", "33:34", "web", "--", "id"],
         {"user": "33:34", "target": "web", "command": ["id"]}),
        (["exec", "-w", "/srv", "-e", "A=1", "-e", "B=x=y", "web"],
         {"cwd": "/srv", "env": {"A": "1", "B": "x=y"}, "target": "web"}),
        (["exec", "-t", "7"], {"terminal": True, "target": "7"}),
        (["exec", "--no-terminal", "7"], {"terminal": False, "target": "7"}),
        (["exec", "--clear-env", "7"], {"clear_env": True, "target": "7"}),
        (["exec", "--timeout", "1.5", "7"], {"timeout": 1.5, "target": "7"}),
        (["exec", "--cgroup", "host", "7"], {"cgroup": "host", "target": "7"}),
        (["exec", "--namespaces", "net,mount", "7"],
         {"namespaces": ["net", "mnt"], "target": "7"}),
        (["exec", "--namespaces", "network=/run/netns/x,uts", "7"],
         {"namespaces": {"net": "/run/netns/x", "uts": "join"}, "target": "7"}),
        (["run", "--namespaces", "net=/run/netns/x,uts"],
         {"namespaces": {"net": "/run/netns/x", "uts": "new"}}),
        (["run", "--name", "n", "--root", "/r", "--hostname", "h"],
         {"name": "n", "root": {"path": "/r"}, "hostname": "h"}),
        (["attach", "web", "--read-only", "--trust-container"],
         {"target": "web", "root": {"read_only": True}, "trust_container": True}),
        (["attach", "--supervise", "off", "--pid-namespace", "new", "--user-namespace", "host",
          "web"],
         {"supervise": "off", "pid_namespace": "new", "user_namespace": "host", "target": "web"}),
    ],
)  # fmt: skip
def test_options_are_keys(words: list[str], expected: dict[str, Any]) -> None:
    """Each option is one key of the configuration, by nsenter's and docker's words."""
    assert expected == given_keys(*words)


def test_a_variable_without_a_value_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """-e NAME passes the variable on, as with docker."""
    monkeypatch.setenv("MINE", "value")

    assert {"MINE": "value", "NOT_THERE": ""} == given_keys(
        "exec", "-e", "MINE", "-e", "NOT_THERE", "web"
    )["env"]


def test_the_trace_is_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is made absolute before anything changes the directory."""
    monkeypatch.chdir(tmp_path)

    assert str(tmp_path / "t.jsonl") == given_keys("run", "--trace", "t.jsonl")["trace"]


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_follows_the_dashes_is_not_touched(command: list[str]) -> None:
    """The program's arguments are its own, whatever they look like."""
    assert command == given_keys("exec", "web", "--", *command)["command"]


@pytest.mark.parametrize("words", [["--", "-t", "--help"], ["--", "--", "x"], ["--", "run", "--"]])
def test_options_of_the_program_are_not_ours(words: list[str]) -> None:
    """Only the first -- is ours."""
    assert words[1:] == given_keys("attach", "web", *words)["command"]


@pytest.mark.parametrize(
    "words",
    [
        [], ["fly"], ["exec", "--nonsense", "web"], ["exec", "--timeout", "soon", "web"],
        ["attach", "--supervise", "some", "web"], ["attach", "--term", "web"],
        ["run", "--cgroup", "join"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What the grammar has not ends with 2 and the usage; options are not guessed."""
    with pytest.raises(SystemExit) as raised:
        cli.main(words)

    assert 2 == raised.value.code
    assert "usage: launcher" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints one line and ends well."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["--version"])

    assert 0 == raised.value.code
    assert capsys.readouterr().out.startswith("launcher ")


@pytest.mark.parametrize("command", ["attach", "run", "exec", "explain", "report"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help prints and ends well."""
    with pytest.raises(SystemExit) as raised:
        cli.main([command, "--help"])

    assert 0 == raised.value.code
    assert capsys.readouterr().out.startswith(f"usage: launcher {command}")


@pytest.mark.parametrize(
    ("status", "code"),
    [(0, 0), (7 << 8, 7), (255 << 8, 255), (signal.SIGKILL, 137), (signal.SIGSEGV | 0x80, 139)],
)
def test_exit_codes_of_programs(status: int, code: int) -> None:
    """The program's own, and 128+n for signal n."""
    assert code == cli.exit_code(status)


def refused(errno: int) -> StageFailed:
    """Return the failure of an exec."""
    return StageFailed(Failure("stage 2 (INIT)", "exec", "execve", errno, "x"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LauncherError("x"), 125),
        (UsageError("x"), 2),
        (CommandNotFound("x"), 127),
        (CannotExecute("x"), 126),
        (TargetNotFound("x"), 125),
        (TargetDied("x"), 137),
        (TimeLimit("x"), 124),
        (refused(2), 127),
        (refused(13), 126),
        (refused(8), 126),
        (StageFailed(Failure("stage 1 (CHILD)", "join", "setns", 2, "x")), 125),
        (DeadlineExceeded("a", "b", "RUN", 1), 125),
    ],
    ids=str,
)
def test_exit_codes_of_the_launcher(
    error: LauncherError | NsstagesError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As runc and docker have them; the error is one line, the remedy a second."""
    error.hint = "do this"

    def fail(_options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_ACTIONS", {"launch": fail})

    assert code == cli.main(["run"])
    assert f"launcher: {error}\nhint: do this\n" == capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), 141)])
def test_interruptions_are_signals(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C and a closed pipe end like the signals that they are, without a traceback."""

    def fail(_options: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_ACTIONS", {"launch": fail})

    assert code == cli.main(["run"])


def test_a_wrong_file_is_refused_by_all_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every problem with its key, at once, before anything is forked."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"hostname": 7, "rooot": {}, "uid_map": "some"}))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    assert 125 == cli.main(["run", "--config", str(path)])
    error = capsys.readouterr().err
    assert all(key in error for key in (str(path), "hostname", "rooot", "uid_map"))
    assert children == Path(f"/proc/self/task/{os.getpid()}/children").read_text()


def test_the_command_line_comes_before_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Key by key: what is not given stays the file's; environments are merged by name."""
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"hostname": "old", "env": {"A": "1"}, "command": ["true"]}))
    words = ["--config", str(path), "-e", "B=2", "-w", "/usr", "--", "false"]

    assert 0 == cli.main(["explain", *words])
    made = json.loads(capsys.readouterr().out)
    assert "old" == made["init"]["hostname"]
    assert {"A", "B"} <= set(made["init"]["process"]["env"])
    assert ["false"] == made["init"]["process"]["argv"]
