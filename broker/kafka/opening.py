"""Opens Kafka clients so that one that cannot be opened leaves neither its thread nor its descriptors behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kafka import KafkaConsumer
from kafka.net.compat import KafkaNetClient

T = TypeVar("T")


def opened(kind: Callable[..., T], **settings: Any) -> T:
    """A client of this kind. Its constructor starts a thread before it looks for the cluster, and leaves it running if it finds none."""
    made: list[KafkaNetClient] = []

    def network(**config: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**config))
        return made[-1]

    try:
        return kind(**settings, kafka_client=network)
    except BaseException:
        for client in made:
            client.close()
        raise


@contextlib.contextmanager
def closed_on_failure(consumer: KafkaConsumer) -> Iterator[None]:
    """Close ``consumer`` if the block raises."""
    try:
        yield
    except BaseException:
        consumer.close(autocommit=False, timeout_ms=1000)
        raise
