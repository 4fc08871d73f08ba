"""Write the reference pages that are made from the code: the command line, the configuration.

    .venv/bin/python docs/generate.py

tests/docs/test_generated.py fails while a page in the checkout differs from what this would write.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import inspect

from launcher.arguments import parser
from launcher.schema import describe as accepted
from launcher.settings import Attach, Run

REFERENCE: Final = Path(__file__).parent / "reference"
_NOTE: Final = "<!-- Made by docs/generate.py from {}: edit that and run it again. -->"
_CONFIGURATION: Final = """\
`launcher attach --config attach.json` and `launcher run --config run.json` read one JSON object.
Command-line options come before the file, key by key; of `env` and `root` each inner key counts for
itself, any other value replaces the whole. Everything wrong with a file is reported at once, each
problem with its key and what was expected, before anything is started. `launcher schema attach`
and `launcher schema run` print the same as JSON Schema, for editors and validators; `launcher
explain --config FILE` prints the plan that a file leads to and starts nothing.

A key that is left out has the default of the table; `null` as a default means that the launcher
chooses, and the meaning says how.
"""
_CLI: Final = """\
Words after `--` are the program and its arguments and are not looked at. Options that are not given
leave the configuration file's value alone. Exit statuses are in [exit-codes.md](exit-codes.md), the
keys of the files in [configuration.md](configuration.md).
"""


def pages() -> Mapping[str, str]:
    """Return the text of each generated page by its file name in docs/reference."""
    return {"cli.md": command_line(), "configuration.md": configuration()}


def command_line() -> str:
    """Return the page of the commands and their options."""
    top = parser()
    parts = [_NOTE.format("launcher/arguments.py"), "# Command line", top.description or "", _CLI]
    for name, command in _commands(top):
        parts += [f"## launcher {name}", _sentence(command.description), _options_of(command)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _sentence(text: str | None) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _commands(top: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in top._actions:  # noqa: SLF001  # argparse shows its options nowhere else
        if isinstance(action.choices, dict):
            yield from action.choices.items()


def _options_of(command: argparse.ArgumentParser) -> str:
    actions = command._actions  # noqa: SLF001  # see above
    rows = [(_spelling(a), a.help) for a in actions if not isinstance(a, argparse._HelpAction)]  # noqa: SLF001
    return _table(("option", "what"), rows)


def _spelling(action: argparse.Action) -> str:
    """Return how an option or operand is written, `-u USER`, `--user USER`."""
    choices = "|".join(map(str, action.choices)) if action.choices else ""
    value = choices or str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"`{value}`"
    takes_value = action.nargs != 0
    return ", ".join(f"`{o} {value}`" if takes_value else f"`{o}`" for o in action.option_strings)


def configuration() -> str:
    """Return the page of the keys of attach.json and run.json."""
    parts = [_NOTE.format("launcher/settings.py"), "# Configuration files", _CONFIGURATION]
    for name, of in (("attach.json", Attach), ("run.json", Run)):
        parts += [f"## {name}", _about(of), _keys_of(of)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _about(of: type[msgspec.Struct]) -> str:
    return _sentence((of.__doc__ or "").partition(": ")[2].rstrip("."))


def _keys_of(of: type[msgspec.Struct]) -> str:
    rows = list(_rows(inspect.type_info(of), ""))
    return _table(("key", "value", "default", "meaning"), rows)


def _rows(node: inspect.Type, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each key of a struct, the keys of structs in it after their own key."""
    for field in getattr(node, "fields", ()):
        key = f"{prefix}{field.encode_name}"
        yield f"`{key}`", accepted(field.type), _default_of(field), _meaning(field.type)
        for inner, mark in _structs_in(field.type):
            yield from _rows(inner, f"{key}{mark}.")


def _structs_in(node: inspect.Type) -> Iterator[tuple[inspect.StructType, str]]:
    """Yield the structs that a value of ``node`` may be, and those in a list with `[]`."""
    if isinstance(node, inspect.Metadata):
        yield from _structs_in(node.type)
    elif isinstance(node, inspect.UnionType):
        for member in node.types:
            yield from _structs_in(member)
    elif isinstance(node, inspect.VarTupleType):
        yield from ((struct, f"[]{mark}") for struct, mark in _structs_in(node.item_type))
    elif isinstance(node, inspect.StructType):
        yield node, ""


def _meaning(node: inspect.Type) -> str:
    if isinstance(node, inspect.Metadata) and node.extra_json_schema:
        return str(node.extra_json_schema.get("description", "")) or _meaning(node.type)
    inner = [struct for struct, _ in _structs_in(node)]
    return (inner[0].cls.__doc__ or "") if inner else ""


def _default_of(field: inspect.Field) -> str:
    if field.required:
        return "required"
    value: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "as below"
    return f"`{msgspec.json.encode(value).decode()}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Write every generated page."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)


if __name__ == "__main__":
    main()
