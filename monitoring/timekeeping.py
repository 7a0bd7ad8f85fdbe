"""Counts how a daemon spends its time; every second is counted exactly once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.registry import Collector

from monitoring.rows import Metrics, Row, counters, gauge


class _BeforeScrape(Collector):
    """Brings the time counters up to date at each scrape, even in the middle of a long piece of work."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        self._count()
        return ()


class SystemMetrics(Metrics):
    """How a daemon spends its time: all time that is not idle is busy, and the rate of idle time is the bubble.

    Every second since this object was made is counted once: for the innermost open wait, or else as busy. Thread-safe.
    """

    clock = gauge("clock_timestamp_seconds", "The daemon's own clock, seconds since the epoch")
    idle_seconds = counters("idle_seconds", "Time spent waiting", "role", "reason")
    busy_seconds: Row[Counter] = Row(Counter, "busy_seconds", "Time spent working", ("role",))

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        registry.register(_BeforeScrape(self.busy))  # before the counters: a scrape collects in this order
        self._lock = threading.Lock()
        self._waits: list[Counter] = []
        self._mark = time.monotonic()
        super().__init__(registry, role=role)
        self.clock.set_function(time.time)

    @contextlib.contextmanager
    def idle(self, reason: str) -> Iterator[None]:
        """Count the block's time as waiting for ``reason``, and the time before it as work (or as an outer wait)."""
        counter = self.idle_seconds(reason)
        with self._lock:
            self._count()
            self._waits.append(counter)
        try:
            yield
        finally:
            with self._lock:
                self._count()
                self._waits.remove(counter)

    def busy(self) -> None:
        """Count the time up to now. Long work need not call it: every scrape does."""
        with self._lock:
            self._count()

    def waited(self, reason: str, seconds: float) -> None:
        """Count ``seconds`` of the time that is not counted yet (at most all of it) as waiting for ``reason``, and the
        rest as ``busy`` does.
        """
        with self._lock:
            seconds = min(max(0.0, seconds), time.monotonic() - self._mark)
            self.idle_seconds(reason).inc(seconds)
            self._mark += seconds
            self._count()

    def _count(self) -> None:
        now = time.monotonic()
        (self._waits[-1] if self._waits else self.busy_seconds).inc(now - self._mark)
        self._mark = now
