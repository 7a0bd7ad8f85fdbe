"""Whether two answers of any kind are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rewarders.answers.evaluate import Work, exact
from rewarders.answers.lexer import Unreadable
from rewarders.answers.literals import Node, negated
from rewarders.answers.rationals import Undefined
from rewarders.answers.regions import Line
from rewarders.answers.scalars import RELATIVE, has_decimals, ratio_is_constant, same_value
from rewarders.answers.shapes import Bag, Based, Chain, Equation, Matrix, Named, Ratio, Region, Row, Scalar, holds

PERCENT = ("value", "either")


@dataclass(frozen=True)
class Rules:
    """``percent``: 50% equals 0.5. It also equals 50 if only the reference has the sign (``value``), or either side
    (``either``).

    ``tolerance``: relative difference that is allowed if either side has a decimal.
    """

    percent: str = "value"
    tolerance: float = RELATIVE


@dataclass
class Comparison:
    """Compares one answer with one reference. ``work`` is the budget of both; ``same`` raises Costly above it."""

    rules: Rules = Rules()
    work: Work = field(default_factory=Work)

    def same(self, answer: Any, reference: Any) -> bool:
        answer, reference = self._bare(answer, reference)
        if any(isinstance(s, Region) or s == Scalar(("sym", "Reals")) for s in (answer, reference)):
            return self._regions(answer, reference)
        if (
            isinstance(reference, Row)
            and isinstance(answer, Row)
            and "[" in reference.opening + answer.opening + ("[" if "]" in reference.closing + answer.closing else "")
        ):
            return (
                reference.opening == answer.opening
                and reference.closing == answer.closing
                and self._in_order(answer.items, reference.items)
            )
        if isinstance(answer, Matrix) != isinstance(reference, Matrix):
            return self._vector(answer, reference)
        if (
            isinstance(reference, Row) != isinstance(answer, Row)
            and isinstance(reference, Bag | Row)
            and isinstance(answer, Bag | Row)
        ):
            return self._point(answer, reference)
        if isinstance(reference, Ratio) != isinstance(answer, Ratio):
            return self._ratio_or_fraction(answer, reference)
        compare = _BY_KIND.get(type(reference))
        return compare is not None and type(answer) is type(reference) and compare(self, answer, reference)

    def _bare(self, answer: Any, reference: Any) -> tuple[Any, Any]:
        """Both sides without a name before ``=`` that only one of them has, or braces around a single value."""
        if isinstance(answer, Named) and not isinstance(reference, Named | Equation):
            answer = answer.value
        elif isinstance(reference, Named) and not isinstance(answer, Named | Equation):
            reference = reference.value
        if isinstance(answer, Equation) and isinstance(reference, Named):
            reference = solved(reference)
        elif isinstance(reference, Equation) and isinstance(answer, Named):
            answer = solved(answer)
        answer, reference = self._chain(answer), self._chain(reference)
        if isinstance(answer, Equation) and isinstance(reference, Scalar) and answer.operator == "=":
            answer = self._statement(answer)
        if isinstance(answer, Bag) and len(answer.items) == 1 and not isinstance(reference, Bag):
            answer = answer.items[0]
        if isinstance(reference, Bag) and len(reference.items) == 1 and not isinstance(answer, Bag):
            reference = reference.items[0]
        return answer, reference

    def _statement(self, equation: Equation) -> Any:
        """5 for ``2+3 = 5``, which is true; the false ``7 = 6``, and ``5 = 5``, which computes nothing, are kept."""
        true = (
            equation.left[0] != "num" and not holds(equation.left, "sym") and self.value(equation.left, equation.right)
        )
        return Scalar(equation.right) if true else equation

    def _chain(self, value: Any) -> Any:
        if not isinstance(value, Chain):
            return value
        first, last = value.members[0], value.members[-1]
        return Scalar(last) if self.value(first, last) else value

    def value(self, answer: Node, reference: Node) -> bool:
        """Whether two expressions are equal. Degree signs are optional, percent signs as ``rules.percent`` says."""
        if same_value(answer, reference, self.work, self.rules.tolerance):
            return True
        for kind in ("deg", "pct"):
            left, right = without(answer, kind), without(reference, kind)
            if left is answer and right is reference:
                continue
            written = right is not reference
            if kind == "pct" and not (written or self.rules.percent == "either"):
                continue
            if kind == "pct" and written and left is not answer:
                continue
            if same_value(left, right, self.work, self.rules.tolerance):
                return True
        return False

    def _scalar(self, answer: Scalar, reference: Scalar) -> bool:
        return self.value(answer.node, reference.node)

    def _in_order(self, answers: tuple[Any, ...], references: tuple[Any, ...]) -> bool:
        return len(answers) == len(references) and all(
            self.same(a, r) for a, r in zip(answers, references, strict=True)
        )

    def _row(self, answer: Row, reference: Row) -> bool:
        return self._in_order(answer.items, reference.items)

    def _bag(self, answer: Bag, reference: Bag) -> bool:
        answers = self._distinct(answer) if answer.braces else list(answer.items)
        references = self._distinct(reference) if reference.braces else list(reference.items)
        if len(answers) != len(references):
            return False
        for wanted in references:
            place = next((i for i, given in enumerate(answers) if self.same(given, wanted)), None)
            if place is None:
                return False
            answers.pop(place)
        return True

    def _point(self, answer: Any, reference: Any) -> bool:
        """A point equals a list without brackets in the same order, or ``x=2, y=3`` with its names in alphabetical
        order; a set in braces is not a point."""
        row, bag = (answer, reference) if isinstance(answer, Row) else (reference, answer)
        names = [item.name for item in bag.items if isinstance(item, Named)]
        if (
            bag.braces
            or (row.opening, row.closing) != ("(", ")")
            or (names and (len(names) < len(bag.items) or names != sorted(set(names))))
        ):
            return False
        return self._in_order(tuple(i.value if isinstance(i, Named) else i for i in bag.items), row.items)

    def _distinct(self, bag: Bag) -> list[Any]:
        found: list[Any] = []
        for item in bag.items:
            if not any(self.same(item, other) for other in found):
                found.append(item)
        return found

    def _regions(self, answer: Any, reference: Any) -> bool:
        names = [shape.name for shape in (answer, reference) if isinstance(shape, Region) and shape.name]
        if len(set(names)) > 1:
            return False
        line = Line(self.work)
        try:
            return line.same(line.intervals(answer), line.intervals(reference))
        except Unreadable:
            both = isinstance(answer, Region) and isinstance(reference, Region)
            return both and answer.operator == reference.operator and self._parts(answer, reference)

    def _parts(self, answer: Region, reference: Region) -> bool:
        """Regions that cannot be read as intervals: bounds must be the same trees; other parts may be in any order,
        except those of a difference."""
        if any(isinstance(p, tuple | bool | None) for p in (*answer.parts, *reference.parts)):
            return answer.parts == reference.parts
        if reference.operator == "minus":
            return self._in_order(answer.parts, reference.parts)
        return self._bag(Bag(answer.parts), Bag(reference.parts))

    def _equation(self, answer: Equation, reference: Equation) -> bool:
        if answer.operator != reference.operator:
            return False
        left, right = (("add", (e.left, negated(e.right))) for e in (answer, reference))
        factor = ratio_is_constant(left, right, self.work)
        return factor is not None and (reference.operator == "=" or (factor.imag == 0 and factor.real > 0))

    def _named(self, answer: Named, reference: Named) -> bool:
        return answer.name == reference.name and self.same(answer.value, reference.value)

    def _matrix(self, answer: Matrix, reference: Matrix) -> bool:
        return len(answer.rows) == len(reference.rows) and all(
            len(a) == len(r) and all(self.value(x, y) for x, y in zip(a, r, strict=True))
            for a, r in zip(answer.rows, reference.rows, strict=True)
        )

    def _vector(self, answer: Any, reference: Any) -> bool:
        """A matrix of one row or column equals the point with the same entries."""
        matrix, other = (answer, reference) if isinstance(answer, Matrix) else (reference, answer)
        if (
            not isinstance(other, Row)
            or (other.opening, other.closing) != ("(", ")")
            or 1 not in (len(matrix.rows), len(matrix.rows[0]))
        ):
            return False
        entries = tuple(Scalar(node) for row in matrix.rows for node in row)
        return self._in_order(entries, other.items)

    def _ratio(self, answer: Ratio, reference: Ratio) -> bool:
        a, r = answer.items, reference.items
        if len(a) != len(r):
            return False
        pairs = [(("mul", (a[i], r[i + 1])), ("mul", (a[i + 1], r[i]))) for i in range(len(a) - 1)]
        zeros = all(self.is_zero(x) == self.is_zero(y) for x, y in zip(a, r, strict=True))
        return zeros and all(same_value(x, y, self.work, self.rules.tolerance) for x, y in pairs)

    def is_zero(self, node: Node) -> bool:
        return same_value(node, ("num", Fraction(0), False), self.work)

    def _ratio_or_fraction(self, answer: Any, reference: Any) -> bool:
        ratio, other = (answer, reference) if isinstance(answer, Ratio) else (reference, answer)
        if not isinstance(other, Scalar) or len(ratio.items) != 2 or self.is_zero(ratio.items[1]):
            return False
        return self.value(("mul", (ratio.items[0], ("pow", ratio.items[1], ("num", Fraction(-1), False)))), other.node)

    def _based(self, answer: Based, reference: Based) -> bool:
        return answer == reference


_BY_KIND: dict[type, Callable[[Comparison, Any, Any], bool]] = {
    Scalar: Comparison._scalar, Bag: Comparison._bag, Row: Comparison._row, Equation: Comparison._equation, Named: Comparison._named,
    Matrix: Comparison._matrix, Ratio: Comparison._ratio, Based: Comparison._based,
}  # fmt: skip


def solved(named: Named) -> Any:
    """``y = 2x+1`` as an equation. ``x = 5`` is kept, so that the unsolved ``2x = 10`` does not equal it."""
    if isinstance(named.value, Scalar) and named.name.isalpha() and holds(named.value.node, "sym"):
        return Equation("=", ("sym", named.name), named.value.node)
    return named


def without(node: Any, kind: str) -> Any:
    """The tree without signs of ``kind`` (deg, pct) outside function calls; the same object if it has none."""
    if not isinstance(node, tuple) or not node or node[0] == "call":
        return node
    if node[0] == kind:
        return without(node[1], kind)
    parts = tuple(without(part, kind) for part in node)
    return node if all(a is b for a, b in zip(parts, node, strict=True)) else parts


def value_of(node: Node) -> Fraction | None:
    """The exact value of a tree without variables; None if it is not known to be rational. Raises Costly."""
    try:
        return exact(node, {}, Work())
    except Undefined:
        return None


__all__ = ["Comparison", "Rules", "has_decimals", "value_of"]
