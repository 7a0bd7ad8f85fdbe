"""How a daemon spends its time, counted so that every second is counted once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.registry import Collector

from monitoring.rows import Metrics, Row, counters, gauge


class _BeforeScrape(Collector):
    """Counts the time up to a scrape in that scrape, even in the middle of a long piece of work."""

    def __init__(self, count: Callable[[], None]) -> None:
        self._count = count

    def collect(self) -> Iterable[Metric]:
        self._count()
        return ()


class SystemMetrics(Metrics):
    """How a daemon spends its time: what is not idle is busy, and the rate of idleness is the bubble.

    Every second since birth is counted once: to the innermost wait that is open, or as busy. Safe from any thread.
    """

    clock = gauge("clock_timestamp_seconds", "The daemon's own clock, seconds since the epoch")
    idle_seconds = counters("idle_seconds", "Time spent waiting", "role", "reason")
    busy_seconds: Row[Counter] = Row(Counter, "busy_seconds", "Time spent working", ("role",))

    def __init__(self, registry: CollectorRegistry, role: str) -> None:
        registry.register(_BeforeScrape(self.busy))  # before the counters: collectors are asked in this order
        self._lock = threading.Lock()
        self._waits: list[Counter] = []
        self._mark = time.monotonic()
        super().__init__(registry, role=role)
        self.clock.set_function(time.time)

    @contextlib.contextmanager
    def idle(self, reason: str) -> Iterator[None]:
        """The block waits for ``reason``; the time since the last such block was work."""
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
        """Count the time up to now; call it in long stretches of work, so that a scrape in between sees them."""
        with self._lock:
            self._count()

    def waited(self, reason: str, seconds: float) -> None:
        """The last ``seconds`` were spent waiting for ``reason`` (no more than have not been counted yet)."""
        with self._lock:
            seconds = min(max(0.0, seconds), time.monotonic() - self._mark)
            self.idle_seconds(reason).inc(seconds)
            self._mark += seconds
            self._count()

    def _count(self) -> None:
        now = time.monotonic()
        (self._waits[-1] if self._waits else self.busy_seconds).inc(now - self._mark)
        self._mark = now
