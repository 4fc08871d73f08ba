"""Values checked against types key by key, and the types as JSON Schema.

msgspec stops at the first error; this walk visits every key, so that a user sees all of them at
once. It runs only when msgspec refused. The types are those of settings.py: structs, tuples,
mappings, unions of one of each, and plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect

from launcher.errors import Problem

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
DROPPED: Final = object()
_SHOWN: Final = 60  # characters of a refused string in a message


def json_schema(of: type[msgspec.Struct], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a struct, for editors and validators."""
    return {"$schema": DIALECT, "title": title, **msgspec.json.schema(of)}


def check(value: Any, of: type[msgspec.Struct]) -> tuple[Any, list[Problem]]:
    """Return ``value`` without the parts that ``of`` refuses, and a problem for each of them."""
    problems: list[Problem] = []
    rest = _check(value, inspect.type_info(of), "", problems)
    return ({} if rest is DROPPED else rest), problems


def _check(value: Any, node: inspect.Type, key: str, problems: list[Problem]) -> Any:
    """Return what of ``value`` fits ``node``; report the rest. DROPPED when nothing does."""
    member = _member_for(value, node)
    visit = _VISITORS.get(type(member))
    if visit is not None:
        return visit(value, member, key, problems)
    if not _fits(value, node):
        problems.append(Problem(key, f"expected {_describe(node)}, got {_shown(value)}"))
        return DROPPED
    return value


def _member_for(value: Any, node: inspect.Type) -> inspect.Type | None:
    """Return the container type inside ``node`` that a container ``value`` is to be held against."""
    node = _bare(node)
    members = node.types if isinstance(node, inspect.UnionType) else (node,)
    wanted: tuple[type, ...] = ()
    if isinstance(value, dict):
        wanted = (inspect.StructType, inspect.DictType)
    elif isinstance(value, (list, tuple)):
        wanted = (inspect.VarTupleType,)
    return next((bare for m in members if isinstance(bare := _bare(m), wanted)), None)


def _bare(node: inspect.Type) -> inspect.Type:
    return node.type if isinstance(node, inspect.Metadata) else node


def _check_struct(
    value: dict[str, Any], node: inspect.StructType, key: str, problems: list[Problem]
) -> Any:
    fields = {field.encode_name: field for field in node.fields}
    rest = {}
    for name, item in value.items():
        if name not in fields:
            known = ", ".join(fields)
            problems.append(Problem(_join(key, name), f"unknown key, expected one of {known}"))
        elif (kept := _check(item, fields[name].type, _join(key, name), problems)) is not DROPPED:
            rest[name] = kept
    missing = [name for name, field in fields.items() if field.required and name not in value]
    problems += [
        Problem(_join(key, name), f"missing, expected {_describe(fields[name].type)}")
        for name in missing
    ]
    incomplete = any(field.required and name not in rest for name, field in fields.items())
    return DROPPED if incomplete else rest


def _check_dict(
    value: dict[str, Any], node: inspect.DictType, key: str, problems: list[Problem]
) -> Any:
    rest = {}
    for name, item in value.items():
        if not _fits(name, node.key_type):
            problems.append(
                Problem(key, f"expected {_describe(node.key_type)} as key, got {_shown(name)}")
            )
        elif (kept := _check(item, node.value_type, _join(key, name), problems)) is not DROPPED:
            rest[name] = kept
    return rest


def _check_list(
    value: list[Any], node: inspect.VarTupleType, key: str, problems: list[Problem]
) -> Any:
    kept = [_check(v, node.item_type, f"{key}[{i}]", problems) for i, v in enumerate(value)]
    return [item for item in kept if item is not DROPPED]


_VISITORS: Final[Mapping[type, Callable[[Any, Any, str, list[Problem]], Any]]] = {
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
    import re

    return pattern is None or re.search(pattern, value) is not None


def _describe(node: inspect.Type) -> str:
    """Return what ``node`` accepts, as a phrase that follows "expected"."""
    if isinstance(node, inspect.Metadata) and node.extra:
        return str(node.extra["expected"])
    node = _bare(node)
    match node:
        case inspect.UnionType():
            members = [m for m in node.types if not isinstance(_bare(m), inspect.NoneType)]
            return " or ".join(_describe(member) for member in members)
        case inspect.LiteralType():
            return "one of " * (len(node.values) > 1) + ", ".join(map(str, node.values))
        case inspect.IntType() | inspect.FloatType():
            return "a number" + _describe_range(node)
        case inspect.VarTupleType():
            return f"a list ({_describe(node.item_type)} in each place)"
        case inspect.BoolType():
            return "true or false"
    return "an object"


def _describe_range(node: inspect.IntType | inspect.FloatType) -> str:
    limits = (("above", node.gt), ("from", node.ge), ("to", node.le))
    return "".join(f" {word} {limit}" for word, limit in limits if limit is not None)


def _shown(value: Any) -> str:
    """Return a refused value for a message; of what is no string only its type: it may be secret."""
    if isinstance(value, str):
        return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")
    names = {bool: "true or false", int: "a number", float: "a number", dict: "an object"}
    return "null" if value is None else names.get(type(value), "a list")
