"""Records on their way to the log: what it refuses to take while it is away is kept, so that a round of a daemon is never cut short."""

from __future__ import annotations

from collections import deque

from broker.errors import LogUnavailable
from broker.log import Producer


class Outbox:
    """Sends by ``producer``. Only ``flush`` ever raises LogUnavailable: nothing is lost, and the next one sends the rest in order."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._kept: deque[tuple[str, bytes, bytes]] = deque()
        self.pending = False
        """Whether anything was sent that is not known to be durable."""

    def send(self, topic: str, key: bytes, value: bytes) -> None:
        """Queue one record. Raises RecordTooLarge."""
        if not self._kept:
            try:
                self._producer.send(topic, key, value)
            except LogUnavailable:
                self._kept.append((topic, key, value))
        else:
            self._kept.append((topic, key, value))
        self.pending = True

    def flush(self) -> None:
        """Make all that was sent durable. Raises LogUnavailable, LogFull."""
        while self._kept:
            self._producer.send(*self._kept[0])
            self._kept.popleft()
        if self.pending:
            self._producer.flush()
            self.pending = False

    def close(self) -> None:
        self._producer.close()
