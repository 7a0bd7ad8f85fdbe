"""How a metric is declared: one row in the class of its role. The class has the row, an instance of it the metric itself.

``ActorMetrics.inflight`` is the row, which a panel or a page of documentation names; ``metrics.inflight.set(3)`` is the call site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "headrace_"
CHILDREN = 1024  # label combinations of one metric that are cached
M = TypeVar("M")


@dataclass(frozen=True)
class Row(Generic[M]):
    """A metric: its Prometheus name (without prefix, and of a counter without ``_total``), what it says, and its labels.

    ``key`` is the name in a step's metrics that sets it; one that ends in ``*`` stands for many, and what it stands for is the label's
    value; ``always`` are label values that are set to 0 by a step that does not have them. ``may_be_zero`` says why a sound run may never
    count it. In an expression a row is the name of its series; a histogram has three, and no name of its own.
    """

    kind: type[Counter] | type[Gauge] | type[Histogram]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    key: str = ""
    always: tuple[str, ...] = ()
    may_be_zero: str = ""

    @overload
    def __get__(self, holder: None, owner: type) -> Row[M]: ...
    @overload
    def __get__(self, holder: Metrics, owner: type) -> M: ...
    def __get__(self, holder: Metrics | None, owner: type) -> Row[M] | M:
        return self  # of an instance its own attribute comes first: the metric that ``Metrics`` has made

    @property
    def family(self) -> str:
        return PREFIX + self.name

    @property
    def type(self) -> str:
        return self.kind.__name__.lower()

    def __str__(self) -> str:
        if self.kind is Histogram:
            raise TypeError(f"{self.family} is a histogram: name its bucket, sum or count")
        return f"{self.family}_total" if self.kind is Counter else self.family

    __format__ = object.__format__

    @property
    def bucket(self) -> str:
        return self._of_histogram("bucket")

    @property
    def sum(self) -> str:
        return self._of_histogram("sum")

    @property
    def count(self) -> str:
        return self._of_histogram("count")

    def _of_histogram(self, part: str) -> str:
        if self.kind is not Histogram:
            raise TypeError(f"{self.family} is a {self.type}: it has no {part}")
        return f"{self.family}_{part}"

    def make(self, registry: CollectorRegistry, fixed: Mapping[str, str]) -> Any:
        """The metric; where labels are not ``fixed``, a function from their values to the metric of that label."""
        more: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        made = self.kind(self.family, self.help, self.labels, registry=registry, **more)
        known = {name: fixed[name] for name in self.labels if name in fixed}
        free = [name for name in self.labels if name not in fixed]
        if not free:
            return made.labels(**known) if known else made
        return lru_cache(maxsize=CHILDREN)(lambda *values: made.labels(**known, **dict(zip(free, values, strict=True))))


def counter(name: str, text: str, **more: Any) -> Row[Counter]:
    return Row(Counter, name, text, **more)


def counters(name: str, text: str, *labels: str, **more: Any) -> Row[Callable[..., Counter]]:
    return Row(Counter, name, text, labels, **more)


def gauge(name: str, text: str, **more: Any) -> Row[Gauge]:
    return Row(Gauge, name, text, **more)


def gauges(name: str, text: str, *labels: str, **more: Any) -> Row[Callable[..., Gauge]]:
    return Row(Gauge, name, text, labels, **more)


def histogram(name: str, text: str, buckets: tuple[float, ...], **more: Any) -> Row[Histogram]:
    return Row(Histogram, name, text, buckets=buckets, **more)


def histograms(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Row[Callable[..., Histogram]]:
    return Row(Histogram, name, text, labels, buckets)


class Metrics:
    """The metrics of a role, made from the rows of its class. ``fixed`` are the labels that are the same for all of them."""

    def __init__(self, registry: CollectorRegistry, **fixed: str) -> None:
        for name, row in self.rows():
            self.__dict__[name] = row.make(registry, fixed)

    @classmethod
    def rows(cls) -> Iterator[tuple[str, Row[Any]]]:
        """The rows by the name of their attribute, in the order in which they are declared."""
        for owner in reversed(cls.__mro__):
            for name, row in vars(owner).items():
                if isinstance(row, Row):
                    yield name, row

    def report(self, values: Mapping[str, float]) -> None:
        """Set, count or observe what a step tells, each value by the row that has its key."""
        for name, row in self.rows():
            if row.key.endswith("*"):
                start = row.key.removesuffix("*")
                told = {key.removeprefix(start): value for key, value in values.items() if key.startswith(start)}
                for label, value in {**dict.fromkeys(row.always, 0.0), **told}.items():
                    _put(self.__dict__[name](label), value)
            elif row.key and row.key in values:
                _put(self.__dict__[name], values[row.key])


def _put(metric: Counter | Gauge | Histogram, value: float) -> None:
    if isinstance(metric, Counter):
        metric.inc(value)
    elif isinstance(metric, Gauge):
        metric.set(value)
    else:
        metric.observe(value)
