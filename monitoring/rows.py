"""Declares metrics: one row each, in the class of a role. The class attribute is the row; the instance attribute is the
metric itself.

Dashboards and documentation use the row, ``ActorMetrics.inflight``; daemons use the metric,
``metrics.inflight.set(3)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

PREFIX = "headrace_"
CHILDREN = 1024  # label combinations of one metric that are cached
M = TypeVar("M")


@dataclass(frozen=True)
class Row(Generic[M]):
    """Declaration of a metric: its Prometheus name (without the prefix, and for a counter without ``_total``), help
    text and labels.

    ``key`` names the value among a step's metrics that sets it. A key ending in ``*`` matches many values, and the
    matched part becomes the value of the label; label values in ``always`` are set to 0 by a step that lacks them.
    ``may_be_zero`` says why it may be absent or zero in a sound run. ``str(row)`` is the name of its series; for a
    histogram it raises TypeError, because a histogram has three: ``bucket``, ``sum`` and ``count``.
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
        return self  # only for the class: an instance has an attribute of its own, the metric that ``Metrics`` made

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
        """Register the metric. If labels remain that are not ``fixed``, returns a function from their values to the metric."""
        more: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        made = self.kind(self.family, self.help, self.labels, registry=registry, **more)
        known = {name: fixed[name] for name in self.labels if name in fixed}
        free = [name for name in self.labels if name not in fixed]
        if not free:
            return made.labels(**known) if known else made
        return Labelled(made, self.labels, known)


class Labelled(Generic[M]):
    """A metric for each combination of label values; call it with those that are not ``fixed``, in order."""

    def __init__(self, family: Any, labels: Sequence[str], fixed: Mapping[str, str]) -> None:
        self._family, self._labels, self._fixed = family, labels, fixed
        self._free = [name for name in labels if name not in fixed]
        self._child = lru_cache(maxsize=CHILDREN)(lambda *values: family.labels(**self._all(values)))

    def __call__(self, *values: str) -> M:
        found: M = self._child(*values)
        return found

    def remove(self, *values: str) -> None:
        """Serve it no more; a later call begins it anew."""
        self._child.cache_clear()
        every = self._all(values)
        self._family.remove(*(every[name] for name in self._labels))

    def _all(self, values: Sequence[str]) -> dict[str, str]:
        return {**self._fixed, **dict(zip(self._free, values, strict=True))}


def counter(name: str, text: str, **more: Any) -> Row[Counter]:
    return Row(Counter, name, text, **more)


def counters(name: str, text: str, *labels: str, **more: Any) -> Row[Labelled[Counter]]:
    return Row(Counter, name, text, labels, **more)


def gauge(name: str, text: str, **more: Any) -> Row[Gauge]:
    return Row(Gauge, name, text, **more)


def gauges(name: str, text: str, *labels: str, **more: Any) -> Row[Labelled[Gauge]]:
    return Row(Gauge, name, text, labels, **more)


def histogram(name: str, text: str, buckets: tuple[float, ...], **more: Any) -> Row[Histogram]:
    return Row(Histogram, name, text, buckets=buckets, **more)


def histograms(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Row[Labelled[Histogram]]:
    return Row(Histogram, name, text, labels, buckets)


class Metrics:
    """The metrics of a role, registered from the rows of its class. ``fixed`` are label values common to all."""

    def __init__(self, registry: CollectorRegistry, **fixed: str) -> None:
        for name, row in self.rows():
            self.__dict__[name] = row.make(registry, fixed)

    @classmethod
    def rows(cls) -> Iterator[tuple[str, Row[Any]]]:
        """Pairs of attribute name and row, in order of declaration."""
        for owner in reversed(cls.__mro__):
            for name, row in vars(owner).items():
                if isinstance(row, Row):
                    yield name, row

    def report(self, values: Mapping[str, float]) -> None:
        """Set, count or observe the metrics of a step: each row takes the value that has its key."""
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
