"""Frozen dataclasses to msgpack values and back, refusing what is unknown or malformed by name.

Supports what travels: int, str, bool, bytes, ``X | None``, tuples of one type, dataclasses.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from nsstages.errors import Malformed

T = TypeVar("T")
_hints = cache(get_type_hints)


def to_payload(value: Any) -> dict[str, Any]:
    """Return a dataclass as msgpack values."""
    return dataclasses.asdict(value)


def from_payload(kind: type[T], payload: object, where: str = "") -> T:
    """Build ``kind`` from msgpack values; raises Malformed naming the field."""
    label = where or kind.__name__
    if not isinstance(payload, Mapping):
        raise Malformed(label, f"a map expected, got {type(payload).__name__}")
    hints = _hints(kind)  # type: ignore[arg-type]  # classes are hashable
    for name in payload:
        if name not in hints:
            raise Malformed(f"{label}.{name}", "unknown field")
    fields = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]  # T is a dataclass here
        if field.name in payload:
            path = f"{label}.{field.name}"
            fields[field.name] = _convert(hints[field.name], payload[field.name], path)
        elif _is_required(field):
            raise Malformed(f"{label}.{field.name}", "missing")
    return kind(**fields)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, types.UnionType):
        return None if value is None else _convert(_without_none(hint), value, path)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise Malformed(path, f"a list expected, got {type(value).__name__}")
        item = get_args(hint)[0]
        return tuple(_convert(item, v, f"{path}[{n}]") for n, v in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_payload(hint, value, path)  # type: ignore[arg-type]  # a class, not a value
    if type(value) is not hint:
        raise Malformed(path, f"{hint.__name__} expected, got {type(value).__name__}")
    return value


def _without_none(hint: Any) -> Any:
    return next(member for member in get_args(hint) if member is not type(None))
