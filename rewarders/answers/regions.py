"""Parts of the real line as sorted, disjoint intervals."""

from __future__ import annotations

from typing import Any, NamedTuple

from rewarders.answers.evaluate import Numeric, Work, variables
from rewarders.answers.lexer import Unreadable
from rewarders.answers.rationals import Undefined
from rewarders.answers.scalars import EXACTNESS, close
from rewarders.answers.shapes import Bag, Named, Region, Row, Scalar


class Interval(NamedTuple):
    low: Any
    high: Any
    open_low: bool
    open_high: bool


class Line:
    """Reads shapes as intervals of numbers."""

    def __init__(self, work: Work) -> None:
        self.numeric = Numeric(work)

    def intervals(self, shape: Any) -> list[Interval]:
        """The sorted, disjoint intervals of a shape. Raises Unreadable if it is not a part of the real line with known
        bounds."""
        return self._merged(self._read(shape))

    def same(self, left: list[Interval], right: list[Interval]) -> bool:
        return len(left) == len(right) and all(
            a[2:] == b[2:] and self._close(a.low, b.low) and self._close(a.high, b.high)
            for a, b in zip(left, right, strict=True)
        )

    def _close(self, a: Any, b: Any) -> bool:
        return close(self.numeric.m, a, b, EXACTNESS)

    def number(self, node: Any) -> Any:
        if variables(node):
            raise Unreadable("a bound that is no number")
        try:
            value = self.numeric.settled(node, {})
        except Undefined:
            raise Unreadable("a bound that is no number") from None
        if self.numeric.m.im(value) != 0:
            raise Unreadable("a bound that is not real")
        return self.numeric.m.re(value)

    def _read(self, shape: Any) -> list[Interval]:
        m = self.numeric.m
        everything = [Interval(-m.inf, m.inf, True, True)]
        if shape == ("reals",) or (isinstance(shape, Scalar) and shape.node == ("sym", "Reals")):
            return everything
        if isinstance(shape, Bag):
            if not shape.braces and len(shape.items) > 1:
                raise Unreadable("a list is no part of the real line")
            points = [self._point(item) for item in shape.items]
            return [Interval(p, p, False, False) for p in points]
        if isinstance(shape, Row):
            if len(shape.items) != 2 or not all(isinstance(i, Scalar) for i in shape.items):
                raise Unreadable("no interval")
            low, high = (self.number(i.node) for i in shape.items)
            return self._interval(low, high, shape.opening == "(", shape.closing == ")")
        if isinstance(shape, Region):
            return self._region(shape)
        raise Unreadable("no part of the real line")

    def _point(self, item: Any) -> Any:
        """A member of a set, which may have its name before it: 2, or x = 2."""
        value = item.value if isinstance(item, Named) else item
        if not isinstance(value, Scalar):
            raise Unreadable("a member of a set that is no number")
        return self.number(value.node)

    def _interval(self, low: Any, high: Any, open_low: bool, open_high: bool) -> list[Interval]:
        m = self.numeric.m
        if low > high or (low == high and (open_low or open_high)):
            raise Unreadable("an empty interval")
        return [Interval(low, high, bool(open_low or low == -m.inf), bool(open_high or high == m.inf))]

    def _region(self, shape: Region) -> list[Interval]:
        m = self.numeric.m
        if shape.operator == "interval":
            low, high, open_low, open_high = shape.parts
            return self._interval(
                -m.inf if low is None else self.number(low),
                m.inf if high is None else self.number(high),
                open_low,
                open_high,
            )
        parts = [self._merged(self._read(part)) for part in shape.parts]
        if shape.operator == "cup":
            return [interval for part in parts for interval in part]
        found = parts[0]
        for part in parts[1:]:
            found = self._meet(found, part if shape.operator == "cap" else self._outside(part))
        return found

    def _outside(self, intervals: list[Interval]) -> list[Interval]:
        m = self.numeric.m
        found, low, open_low = [], -m.inf, True
        for interval in intervals:
            if low < interval.low or (low == interval.low and not open_low and interval.open_low):
                found.append(Interval(low, interval.low, open_low, not interval.open_low))
            low, open_low = interval.high, not interval.open_high
        if low < m.inf:
            found.append(Interval(low, m.inf, open_low, True))
        return found

    def _meet(self, left: list[Interval], right: list[Interval]) -> list[Interval]:
        found = []
        for a in left:
            for b in right:
                low, open_low = max((a.low, a.open_low), (b.low, b.open_low))
                high, closed = min((a.high, not a.open_high), (b.high, not b.open_high))
                if low < high or (low == high and not open_low and closed):
                    found.append(Interval(low, high, open_low, not closed))
        return found

    def _merged(self, intervals: list[Interval]) -> list[Interval]:
        found: list[Interval] = []
        for interval in sorted(intervals, key=lambda i: (i.low, i.open_low)):
            last = found[-1] if found else None
            if last is not None and (
                interval.low < last.high or (interval.low == last.high and not (interval.open_low and last.open_high))
            ):
                high, closed = max((last.high, not last.open_high), (interval.high, not interval.open_high))
                found[-1] = Interval(last.low, high, last.open_low, not closed)
            else:
                found.append(interval)
        return found
