"""Patience with a log that is away: callers that must not lose their place wait, and log that they do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from broker.errors import LogUnavailable, WriteInterrupted
from broker.log import Producer
from broker.messages import Position
from monitoring.daemon import Stop

log_ = logging.getLogger("log")
RETRY_SECONDS = 1.0
SAY_SECONDS = 10.0
T = TypeVar("T")


def wait_for_log(action: Callable[[], T], stop: Stop, away: Callable[[bool], None] = lambda away: None) -> T:
    """Call ``action`` until the log answers. Raises LogUnavailable once ``stop`` is set; ``away`` is told whether the
    log answers."""
    seldom = Seldom(SAY_SECONDS)
    while True:
        try:
            done = action()
            away(False)
            return done
        except LogUnavailable as error:
            away(True)
            if seldom():
                log_.warning("waiting for the log: %s", error)
            if stop.wait(RETRY_SECONDS):
                raise


class Seldom:
    """Whether to speak again: true at most once in ``seconds``, the first time at once or (``at_once`` False) after so long."""

    def __init__(self, seconds: float, at_once: bool = True) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + (0.0 if at_once else seconds)

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


class PatientProducer:
    """A ``Producer`` whose ``flush`` waits for a log that is away: its caller's state and the log never differ. Raises WriteInterrupted once
    ``stop`` is set."""

    def __init__(self, producer: Producer, stop: Stop, away: Callable[[bool], None]) -> None:
        self._producer, self._stop, self._away = producer, stop, away

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        self._patiently(lambda: self._producer.send(topic, key, value, partition))

    def flush(self) -> list[Position]:
        return self._patiently(self._producer.flush)

    def _patiently(self, action: Callable[[], T]) -> T:
        try:
            return wait_for_log(action, self._stop, self._away)
        except LogUnavailable as error:
            raise WriteInterrupted(str(error)) from error

    def close(self) -> None:
        self._producer.close()
