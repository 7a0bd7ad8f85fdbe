"""Finds what kind of answer a tree is: a value, list, set, tuple, part of the real line, equation, matrix or ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewarders.answers.lexer import Unreadable
from rewarders.answers.literals import Node, negated

MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Scalar:
    node: Node


@dataclass(frozen=True, slots=True)
class Bag:
    """Values in any order. ``braces``: written as a set, so that repetitions do not count."""

    items: tuple[Any, ...]
    braces: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """Values in order, in brackets: a point or an interval."""

    opening: str
    closing: str
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the real line as written. ``name`` is its variable, empty if there is none.

    ``operator`` is ``cup``, ``cap`` or ``minus``, with shapes (or ``("reals",)``) as ``parts``; or ``interval``, with
    the parts low, high (nodes, None if infinite), open_low and open_high.
    """

    operator: str
    parts: tuple[Any, ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Equation:
    """``left = right``, ``left < right`` or ``left <= right``; compared by ``left - right``."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Named:
    """``name = value``."""

    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Based:
    digits: str
    base: str


def shape(node: Node) -> Any:
    """The shape of a tree. Raises Unreadable if it makes no sense as an answer."""
    return _SHAPES.get(node[0], _scalar)(node)


def _scalar(node: Node) -> Any:
    if holds(node, "pm"):
        return Bag(tuple(Scalar(signed(node, sign)) for sign in (1, -1)))
    for kind in ("group", "list", "set", "rel", "setop", "ratio", "based", "build"):
        if holds(node, kind):
            raise Unreadable(f"a {kind} within an expression")
    return Scalar(node)


def holds(node: Any, kind: str) -> bool:
    if not isinstance(node, tuple) or not node:
        return False
    return node[0] == kind or any(holds(part, kind) for part in node)


def signed(node: Any, sign: int) -> Any:
    """The tree with every plus-minus replaced by ``sign`` (1 or -1)."""
    if not isinstance(node, tuple) or not node:
        return node
    if node[0] == "pm":
        inner = signed(node[2], sign)
        return inner if node[1] * sign > 0 else negated(inner)
    return tuple(signed(part, sign) for part in node)


def _flat(items: list[Any]) -> tuple[Any, ...]:
    """The items; a plus-minus (a Bag without braces) becomes its two values. Raises Unreadable above MAX_ITEMS."""
    found: list[Any] = []
    for item in items:
        found.extend(item.items if isinstance(item, Bag) and not item.braces else (item,))
    if len(found) > MAX_ITEMS:
        raise Unreadable("too many items")
    return tuple(found)


def _list(node: Node) -> Any:
    separators, parts = set(node[1]), [shape(part) for part in node[2]]
    if any(isinstance(p, Region) for p in parts):
        operator = "cap" if separators == {"and"} else "cup"
        return join(operator, parts)
    names = {p.name for p in parts if isinstance(p, Named)}
    first = parts[0]
    if isinstance(first, Named) and len(names) == 1 and all(isinstance(p, Scalar | Named | Bag) for p in parts):
        values = _flat([p.value if isinstance(p, Named) else p for p in parts])  # x = 1, 2 and x = 1 or x = 2
        return Named(first.name, Bag(values))
    return Bag(_flat(parts))


def _set(node: Node) -> Any:
    return Bag(_flat([shape(part) for part in node[1]]), True)


def _group(node: Node) -> Any:
    return Row(node[1], node[2], tuple(shape(part) for part in node[3]))


def join(operator: str, parts: list[Any]) -> Region:
    names = {p.name for p in parts if isinstance(p, Region) and p.name}
    if len(names) > 1:
        raise Unreadable("conditions on several variables")
    return Region(operator, tuple(parts), names.pop() if names else "")


def _setop(node: Node) -> Any:
    return join(node[1], [shape(node[2]), shape(node[3])])


def _build(node: Node) -> Any:
    inner = shape(node[2])
    if isinstance(inner, Named):
        inner = inner.value
    return inner


def name_of(node: Node) -> str | None:
    """The name that the left side of ``=`` consists of: ``x``, ``x_1``, ``f(x)``; None for any other expression."""
    if node[0] == "sym":
        return str(node[1])
    if node[0] == "mul" and len(node[1]) == 2 and node[1][0][0] == "sym" and node[1][1][0] in ("sym", "group", "num"):
        applied = node[1][1]
        inner = applied[3] if applied[0] == "group" else (applied,)
        if (
            all(part[0] in ("sym", "num") for part in inner)
            and len(str(node[1][0][1])) == 1
            and node[1][0][1] in "fghpqFGHPQy"
        ):
            return f"{node[1][0][1]}({','.join(str(part[1]) for part in inner)})"
    if node[0] == "mul" and all(p[0] == "sym" and len(p[1]) == 1 and p[1].isupper() for p in node[1]):
        return "".join(p[1] for p in node[1])  # a segment AB, an angle ABC
    if node[0] == "mul" and len(node[1]) == 2 and node[1][0][:2] == ("pow", ("sym", "f")) and node[1][1][0] == "sym":
        return f"f^-1({node[1][1][1]})"
    return None


def _relation(node: Node) -> Any:
    operators, members = node[1], node[2]
    if operators == ("in",):
        inner = shape(members[1])
        if members[0][0] != "sym":
            raise Unreadable("a membership of no variable")
        return Region("cup", (inner,), members[0][1]) if not isinstance(inner, Bag) else Named(members[0][1], inner)
    if set(operators) == {"="}:
        return _equation(members)
    if "=" in operators or "in" in operators:
        raise Unreadable("a mixed chain of relations")
    region = bounds(operators, members)
    if region is not None:
        return region
    if len(members) != 2 or operators[0] == "!=":
        raise Unreadable("a chain of relations between expressions")
    left, right = members if operators[0] in ("<", "<=") else members[::-1]
    return Equation({"<": "<", ">": "<", "<=": "<=", ">=": "<="}[operators[0]], left, right)


def _equation(members: tuple[Node, ...]) -> Any:
    name = name_of(members[0])
    if name is not None and len(members) == 2:
        try:
            return Named(name, shape(members[1]))
        except Unreadable:
            raise Unreadable("an equation of no value") from None
    if len(members) == 2:
        return Equation("=", *members)
    if name is not None and len(members) == 3:
        return Named(name, Chain(members[1:]))
    raise Unreadable("a chain of equations")


@dataclass(frozen=True, slots=True)
class Chain:
    """Expressions joined by ``=``: ``10/2 = 5``. They may be unequal."""

    members: tuple[Node, ...]


def bounds(operators: tuple[str, ...], members: tuple[Node, ...]) -> Region | None:
    """``x > 2``, ``2 < x``, ``0 < x <= 1``, ``x != 3`` as a Region; None unless they bound one variable by
    expressions without variables."""
    places = [i for i, member in enumerate(members) if member[0] == "sym"]
    if len(places) != 1 or any(_has_variables(m) for i, m in enumerate(members) if i != places[0]):
        return None
    at = places[0]
    if (len(members) == 3 and at != 1) or len(members) > 3:
        return None
    if operators == ("!=",):
        return Region("minus", (("reals",), Bag((Scalar(members[1 - at]),), True)), members[at][1])
    low, high, open_low, open_high = None, None, True, True
    for i, operator in enumerate(operators):
        left_smaller = operator in ("<", "<=")
        if operator == "!=" or (len(members) == 3 and left_smaller != (operators[0] in ("<", "<="))):
            return None
        strict = operator in ("<", ">")
        if (i < at) == left_smaller:
            low, open_low = members[i if i < at else i + 1], strict
        else:
            high, open_high = members[i if i < at else i + 1], strict
    return Region("interval", (low, high, open_low, open_high), members[at][1])


def _has_variables(node: Node) -> bool:
    return holds(node, "sym")


def _matrix(node: Node) -> Any:
    return Matrix(node[1])


_SHAPES = {
    "list": _list, "set": _set, "group": _group, "setop": _setop, "rel": _relation, "matrix": _matrix, "build": _build,
    "ratio": lambda node: Ratio(node[1]), "based": lambda node: Based(node[1], node[2]),
}  # fmt: skip
