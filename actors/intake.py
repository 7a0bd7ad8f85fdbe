"""An actor's side of the log: prompts come in, samples and dead letters go out, and a prompt is committed when all of its samples are
durable. Delivery is at least once: what was taken and not committed comes again, to this actor or another."""

from __future__ import annotations

import logging
import time

from broker.errors import DecodeError
from broker.log import Consumer, Log, Record
from broker.messages import DeadLetter, Prompt, decode, encode
from broker.outbox import Outbox
from broker.topics import Topics
from broker.watermark import Watermark

log_ = logging.getLogger("actor")
GROUP = "actors"
FLUSH_SECONDS = 0.05


class Intake:
    """Takes part in the consumer group of the actors from the start, until it has left."""

    def __init__(self, name: str, log: Log, topics: Topics) -> None:
        self._name, self._log, self._topics = name, log, topics
        self._consumer: Consumer | None = self._open()
        self._outbox = Outbox(log.producer())
        self._mark = Watermark()
        self._finished: list[Record] = []  # handled, but perhaps not durable yet
        self._flushed = time.monotonic()

    def _open(self) -> Consumer:
        return self._log.consumer([self._topics.prompts], self._topics.group(GROUP), self._name)

    @property
    def joined(self) -> bool:
        return self._consumer is not None

    def join(self) -> None:
        if self._consumer is None:
            self._consumer = self._open()

    def leave(self) -> None:
        """Publish and commit what is finished, and leave the group; the others take over what is unfinished."""
        self.flush(at_once=True)
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
        self._mark = Watermark()

    def take(self, count: int) -> list[Record]:
        """Up to ``count`` records; with 0 the membership alone is kept alive."""
        assert self._consumer is not None
        records = self._consumer.poll(count, 0.0)
        for record in records:
            self._mark.start(record)
        return records

    def read(self, record: Record) -> Prompt | None:
        """The prompt of a record; None for one that is none, which goes to the dead letters."""
        try:
            prompt = decode(record.value)
            if not isinstance(prompt, Prompt):
                raise DecodeError(f"a {prompt.TYPE} in the prompts topic", record.value)
        except DecodeError as error:
            self.bury(record, record.key.decode("utf-8", "replace"), error.reason)
            return None
        return prompt

    def publish(self, group_id: str, trajectory: bytes) -> None:
        """Raises RecordTooLarge."""
        self._outbox.send(self._topics.trajectories, group_id.encode(), trajectory)

    def done(self, record: Record) -> None:
        """All that a record asked for is published."""
        self._finished.append(record)

    def bury(self, record: Record, group_id: str, error: str) -> None:
        """A record goes to the dead letters with the reason."""
        letter = DeadLetter(
            record.topic,
            record.partition,
            record.offset,
            record.key,
            record.value,
            error,
            self._name,
            group_id,
            created=time.time(),
        )
        self._outbox.send(self._topics.deadletters, record.topic.encode(), encode(letter))
        self._finished.append(record)
        log_.warning("prompt %s: %s", group_id, error, extra={"group": group_id})

    def flush(self, at_once: bool = False) -> None:
        """Make durable what is published, then commit what is finished; rarely enough to be cheap."""
        now = time.monotonic()
        if now - self._flushed < FLUSH_SECONDS and not at_once:
            return
        self._flushed = now
        self._outbox.flush()
        for record in self._finished:
            self._mark.done(record)
        self._finished = []
        if self._mark.dirty and self._consumer is not None:
            self._mark.keep(self._consumer.assignment())
            self._mark.commit(self._consumer)

    @property
    def pending(self) -> bool:
        """Whether anything is to be made durable or committed."""
        return bool(self._finished) or self._outbox.pending or self._mark.dirty

    def close(self) -> None:
        self.leave()
        self._outbox.close()
