"""Values checked against types key by key, and the types as JSON Schema.

msgspec stops at the first error; this walk visits every key, so that a user sees all of them at
once. It runs only when msgspec refused. The types are those of settings.py: structs, tuples,
mappings, unions of one of each, and plain values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import inspect

from launcher.errors import Problem

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DROPPED: Final = object()
_SHOWN: Final = 60  # characters of a refused string in a message
_INDEXED: Final = re.compile(r"([\w.]+)\[(\d+)\]")
_NUMBERS: Final = (inspect.IntType, inspect.FloatType)


def json_schema(of: type[msgspec.Struct], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a struct, for editors and validators."""
    return {"$schema": DIALECT, "title": title, **msgspec.json.schema(of)}


@dataclass(slots=True)
class Checked:
    """What a walk found: the problems, and ``rest``, the value without the refused parts.

    ``indexes`` says for each list that lost items which ones of it are left.
    """

    rest: Any = None
    problems: list[Problem] = field(default_factory=list)
    indexes: dict[str, list[int]] = field(default_factory=dict)

    def refuse(self, key: str, text: str) -> None:
        """Note a problem."""
        self.problems.append(Problem(key, text))

    def as_written(self, problem: Problem) -> Problem:
        """Return a problem of ``rest`` with the list indexes of the value that was checked."""
        return Problem(
            _INDEXED.sub(self._index_as_written, problem.key),
            _INDEXED.sub(self._index_as_written, problem.text),
        )

    def _index_as_written(self, match: re.Match[str]) -> str:
        key, index = match[1], int(match[2])
        return f"{key}[{self.indexes[key][index] if key in self.indexes else index}]"


def check(value: Any, of: type[msgspec.Struct]) -> Checked:
    """Hold ``value`` against ``of``, every key of it."""
    checked = Checked()
    rest = _check(value, inspect.type_info(of), "", checked)
    checked.rest = {} if rest is DROPPED else rest
    return checked


def _check(value: Any, node: inspect.Type, key: str, checked: Checked) -> Any:
    """Return what of ``value`` fits ``node``; report the rest. DROPPED when nothing does."""
    member = _member_for(value, node)
    visit = _VISITORS.get(type(member))
    if visit is not None:
        return visit(value, member, key, checked)
    if not _fits(value, node):
        checked.refuse(key, f"expected {describe(node)}, got {_shown(value, node)}")
        return DROPPED
    return value


def _member_for(value: Any, node: inspect.Type) -> inspect.Type | None:
    """Return the type inside ``node`` for a container ``value``; None for a plain one."""
    wanted: tuple[type, ...] = ()
    if isinstance(value, dict):
        wanted = (inspect.StructType, inspect.DictType)
    elif isinstance(value, (list, tuple)):
        wanted = (inspect.VarTupleType,)
    return next((member for member in _members(node) if isinstance(member, wanted)), None)


def _members(node: inspect.Type) -> list[inspect.Type]:
    """Return the types of a union, or the type itself, without their metadata."""
    node = _bare(node)
    return [_bare(m) for m in (node.types if isinstance(node, inspect.UnionType) else (node,))]


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _check_struct(
    value: dict[str, Any], node: inspect.StructType, key: str, checked: Checked
) -> Any:
    fields = {field.encode_name: field for field in node.fields}
    rest = {}
    for name, item in value.items():
        if name not in fields:
            checked.refuse(_join(key, name), f"unknown key, expected one of {', '.join(fields)}")
        elif (kept := _check(item, fields[name].type, _join(key, name), checked)) is not DROPPED:
            rest[name] = kept
    required = [name for name, field in fields.items() if field.required]
    for name in required:
        if name not in value:
            checked.refuse(_join(key, name), f"missing, expected {describe(fields[name].type)}")
    return rest if all(name in rest for name in required) else DROPPED


def _check_dict(value: dict[str, Any], node: inspect.DictType, key: str, checked: Checked) -> Any:
    rest = {}
    for name, item in value.items():
        if not _fits(name, node.key_type):
            checked.refuse(key, f"expected {describe(node.key_type)} as key, got {name!r}")
        elif (kept := _check(item, node.value_type, _join(key, name), checked)) is not DROPPED:
            rest[name] = kept
    return rest


def _check_list(value: list[Any], node: inspect.VarTupleType, key: str, checked: Checked) -> Any:
    kept = {i: _check(v, node.item_type, f"{key}[{i}]", checked) for i, v in enumerate(value)}
    rest = {i: item for i, item in kept.items() if item is not DROPPED}
    if len(rest) != len(kept):
        checked.indexes[key] = list(rest)
    return list(rest.values())


_VISITORS: Final[Mapping[type, Callable[[Any, Any, str, Checked], Any]]] = {
    inspect.StructType: _check_struct,
    inspect.DictType: _check_dict,
    inspect.VarTupleType: _check_list,
}


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _fits(value: Any, node: inspect.Type) -> bool:
    """Tell whether a plain value is of the type ``node``."""
    node = _bare(node)
    match node:
        case inspect.UnionType():
            return any(_fits(value, member) for member in node.types)
        case inspect.LiteralType():
            return isinstance(value, str) and value in node.values
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.NoneType():
            return value is None
        case inspect.IntType():
            return type(value) is int and _in_range(value, node)
        case inspect.FloatType():
            return type(value) in (int, float) and _in_range(value, node)
        case inspect.StrType():
            return isinstance(value, str) and _matches(value, node.pattern)
    return False


def _in_range(value: float, node: inspect.IntType | inspect.FloatType) -> bool:
    return (
        (node.ge is None or value >= node.ge)
        and (node.le is None or value <= node.le)
        and (node.gt is None or value > node.gt)
    )


def _matches(value: str, pattern: str | None) -> bool:
    return pattern is None or re.search(pattern, value) is not None


def describe(node: inspect.Type) -> str:
    """Return what ``node`` accepts, as a phrase that follows "expected"."""
    if isinstance(node, inspect.Metadata) and node.extra:
        return str(node.extra["expected"])
    node = _bare(node)
    match node:
        case inspect.UnionType():
            members = [m for m in node.types if not isinstance(_bare(m), inspect.NoneType)]
            return " or ".join(describe(member) for member in members)
        case inspect.LiteralType():
            words = ", ".join(f'"{value}"' for value in node.values)
            return f"one of {words}" if len(node.values) > 1 else words
        case inspect.IntType() | inspect.FloatType():
            return "a number" + _describe_range(node)
        case inspect.VarTupleType():
            return f"a list ({describe(node.item_type)} in each place)"
        case inspect.BoolType():
            return "true or false"
    return "an object"


def _describe_range(node: inspect.IntType | inspect.FloatType) -> str:
    limits = (("above", node.gt), ("from", node.ge), ("to", node.le))
    return "".join(f" {word} {limit}" for word, limit in limits if limit is not None)


def _shown(value: Any, node: inspect.Type) -> str:
    """Return a refused value for a message; of a misplaced one its type only: it may be secret."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    if type(value) in (int, float):
        return repr(value) if any(isinstance(n, _NUMBERS) for n in _members(node)) else "a number"
    names = {bool: "true or false", type(None): "null", dict: "an object"}
    return names.get(type(value), "a list")
