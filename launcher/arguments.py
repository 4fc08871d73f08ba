"""The command line's grammar, and its values as a partial configuration.

Options override the configuration file key by key; an option that is not given says nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias

_WIDTH: Final = 96  # columns of --help
_AddOptions: TypeAlias = Callable[[argparse.ArgumentParser], None]
_TEXT: Final = "not a security boundary by itself: docs/explanation says what is promised"


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands, or for speed of the one that is given."""
    top = argparse.ArgumentParser(
        prog="launcher",
        description="The host's tools inside any running container; programs in new namespaces.",
        epilog=_TEXT,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    top.add_argument("--version", action=_Version)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name in _COMMANDS if command is None else (command,):
        text, add_options = _COMMANDS[name]
        add_options(
            commands.add_parser(
                name,
                help=text,
                description=text,
                allow_abbrev=False,
                formatter_class=_HelpFormatter,
            )
        )
    return top


class _HelpFormatter(argparse.HelpFormatter):
    """One for every option is made while a parser is built, to check its metavar: argparse's own
    asks for the terminal's width each time, with shutil, whose import is 2 ms.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH)


class _Version(argparse.Action):
    """Print the version; looked up only when it is asked for."""

    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_rest: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("nslauncher")
        except PackageNotFoundError:
            number = "unknown (not installed)"
        sys.stdout.write(f"launcher {number}\n")
        parser.exit()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; what stands after the first `--` is the command, untouched."""
    words = list(arguments)
    command = words[words.index("--") + 1 :] if "--" in words else []
    named = words[0] if words and words[0] in _COMMANDS else None
    options = parser(named).parse_args(words[: words.index("--")] if "--" in words else words)
    if command:
        options.command = command
    return options


def _add_launch(command: argparse.ArgumentParser, engine: str) -> None:
    command.set_defaults(action="launch", engine=engine)
    _add_settings(command, engine)


def _add_settings(command: argparse.ArgumentParser, engine: str) -> None:
    add = command.add_argument
    if engine == "run":
        command.set_defaults(target=None)
        add("--name", help="what other commands call the container")
        add("--root", metavar="DIR", help="the directory that becomes the root")
        add("--hostname", help="host name in the new uts namespace")
    else:
        add("target", nargs="?", metavar="TARGET", help="NAME, ENGINE:NAME or a process id")
    if engine != "exec":
        add("--config", metavar="FILE", help=f"{engine}.json")
    else:
        command.set_defaults(config=None)
    add("-u", "--user", help="user to be")
    add("-w", "--cwd", metavar="DIR", help="directory to start in")
    add("-e", "--env", metavar="K=V", action="append", default=[], help="set a variable")
    add("--clear-env", action="store_const", const=True, help="start with an empty environment")
    add("-t", "--terminal", action="store_const", const=True, help="give it a terminal")
    add("--no-terminal", action="store_const", const=False, dest="terminal", help="give it none")
    add("--namespaces", metavar="KIND[=FILE],...", help="which namespaces, by kind or file")
    add("--timeout", type=float, metavar="SECONDS", help="end the program after that time")
    add("--trace", metavar="FILE", help="write what every process did to FILE")
    if engine != "run":
        add("--cgroup", choices=("join", "host"), help="whether to enter the target's cgroups")
    if engine == "attach":
        _add_attach(command)
    add("command", nargs="*", metavar="COMMAND", help="the program and its arguments, after --")


def _add_attach(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--pid-namespace", choices=("join", "host", "new"), help="the shell's pid namespace")
    add("--user-namespace", choices=("join", "host"), help="the shell's user namespace")
    add("--supervise", choices=("tree", "routed", "off"), help="whom the supervisor traces")
    add("--read-only", action="store_const", const=True, help="the host's files cannot be written")
    add("--trust-container", action="store_const", const=True,
        help="attach even where the container could reach the shell")  # fmt: skip


def _add_explain(command: argparse.ArgumentParser) -> None:
    command.set_defaults(action="explain")
    command.add_argument("--engine", choices=("attach", "run", "exec"),
                         help="whose plan; by default attach with a target, else run")  # fmt: skip
    _add_settings(command, "attach")


def _add_reader(command: argparse.ArgumentParser, action: str, argument: str) -> None:
    command.add_argument(argument, metavar=argument.upper())
    command.set_defaults(action=action)


# name -> what it is, and the function that adds its options
_COMMANDS: Final[Mapping[str, tuple[str, _AddOptions]]] = MappingProxyType({
    "attach": (
        "a shell with the host's tools in a running container",
        partial(_add_launch, engine="attach"),
    ),
    "run": ("a program in new namespaces", partial(_add_launch, engine="run")),
    "exec": (
        "a program in a running container, as one of its own",
        partial(_add_launch, engine="exec"),
    ),
    "explain": ("print the plan that would run", _add_explain),
    "schema": (
        "print the JSON Schema of attach or run",
        partial(_add_reader, action="schema", argument="name"),
    ),
    "report": ("print a trace as tables", partial(_add_reader, action="report", argument="file")),
    "diagram": (
        "print a trace as a sequence diagram",
        partial(_add_reader, action="diagram", argument="file"),
    ),
})  # fmt: skip


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration keys that the command line gave."""
    given = vars(options)
    plain = (
        "target", "user", "cwd", "clear_env", "terminal", "timeout", "trace", "name", "hostname",
        "pid_namespace", "user_namespace", "supervise", "trust_container", "cgroup",
    )  # fmt: skip
    values = {key: given[key] for key in plain if given.get(key) is not None}
    if options.command:
        values["command"] = list(options.command)
    if options.env:
        values["env"] = dict(_variable(entry) for entry in options.env)
    if options.namespaces is not None:
        own = "new" if options.engine == "run" else "join"
        values["namespaces"] = _namespaces(options.namespaces, own)
    if given.get("root") is not None:
        values["root"] = {"path": given["root"]}
    if given.get("read_only"):
        values["root"] = {"read_only": True}
    if "trace" in values:
        values["trace"] = os.path.abspath(values["trace"])
    return values


def _variable(entry: str) -> tuple[str, str]:
    """K=V sets V; K alone takes this process's own value, as docker's -e does."""
    name, equals, value = entry.partition("=")
    return name, value if equals else os.environ.get(name, "")


def _namespaces(text: str, own: str) -> list[str] | dict[str, str]:
    """KIND,KIND=FILE: nsenter's words, too (mount, network); ``own`` says where no file is."""
    words = {"mount": "mnt", "network": "net"}
    parts = [part.partition("=") for part in text.split(",") if part]
    kinds = [(words.get(kind, kind), file) for kind, _, file in parts]
    if any(file for _, file in kinds):
        return {kind: file or own for kind, file in kinds}
    return [kind for kind, _ in kinds]
