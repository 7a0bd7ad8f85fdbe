"""A log that is away now and then."""

from __future__ import annotations

from broker.errors import LogUnavailable
from broker.log import Producer
from broker.messages import Position


class Away:
    """A producer whose log is away for so many calls of ``send`` and of ``flush``."""

    def __init__(self, producer: Producer, sends: int = 0, flushes: int = 0) -> None:
        self._producer, self._sends, self._flushes = producer, sends, flushes

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        self._sends -= 1
        if self._sends >= 0:
            raise LogUnavailable("nobody answers")
        self._producer.send(topic, key, value, partition)

    def flush(self) -> list[Position]:
        self._flushes -= 1
        if self._flushes >= 0:
            raise LogUnavailable("nobody answers")
        return self._producer.flush()

    def close(self) -> None:
        self._producer.close()
