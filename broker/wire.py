"""Building blocks of the records on the wire: validation on creation, and typed reading of msgpack values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from broker.errors import MessageError

Json = Any  # the types of JSON: None, bool, int, float, str, list, dict with string keys


class Position(NamedTuple):
    """The position of a record in its topic."""

    partition: int
    offset: int


def require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise MessageError(f"{name} is {str(value)[:200]!r}; it must be {expected}")


def text(value: Json) -> str:
    if type(value) is not str:
        raise TypeError(f"{type(value).__name__} where text is expected")
    return value


def optional_text(value: Json) -> str | None:
    return None if value is None else text(value)


def integer(value: Json) -> int:
    if type(value) is not int:
        raise TypeError(f"{type(value).__name__} where an integer is expected")
    return value


def number(value: Json) -> float:
    if type(value) is not float and type(value) is not int:
        raise TypeError(f"{type(value).__name__} where a number is expected")
    return float(value)


def optional_number(value: Json) -> float | None:
    return None if value is None else number(value)


def flag(value: Json) -> bool:
    if type(value) is not bool:
        raise TypeError(f"{type(value).__name__} where true or false is expected")
    return value


def raw(value: Json) -> bytes:
    if type(value) is not bytes:
        raise TypeError(f"{type(value).__name__} where bytes are expected")
    return value


def mapping(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict) or not all(type(k) is str for k in value):
        raise TypeError("a map with text keys is expected")
    return value


def strings(value: Json) -> tuple[str, ...]:
    return tuple(text(v) for v in value)


def numbers(value: Json) -> dict[str, float]:
    return {text(k): number(v) for k, v in value.items()}


def position(value: Json) -> Position:
    partition, offset = value
    return Position(integer(partition), integer(offset))


def offsets(value: Json) -> dict[int, int]:
    return {integer(p): integer(o) for p, o in value}


def pairs(offsets: Mapping[int, int]) -> list[list[int]]:
    return [[p, o] for p, o in offsets.items()]


class Extra(NamedTuple):
    """A field that came after version 1: absent from the wire at its ``default``, so that older records are read and written unchanged."""

    default: Any
    read: Callable[[Json], Any]
    write: Callable[[Any], Json] = lambda value: value


def pack_extras(record: object, extras: Mapping[str, Extra]) -> dict[str, Json]:
    """The optional fields of ``record`` that are not at their defaults."""
    found = {name: getattr(record, name) for name in extras}
    return {name: extras[name].write(value) for name, value in found.items() if value != extras[name].default}


def read_extras(wire: Mapping[str, Json], extras: Mapping[str, Extra]) -> dict[str, Any]:
    """The optional fields that ``wire`` has."""
    return {name: extra.read(wire[name]) for name, extra in extras.items() if name in wire}
