"""Producers: they keep records until ``flush``, send them together, and check every acknowledgement."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from kafka import KafkaProducer, errors

from broker.errors import HeldByAnother, LogError, LogUnavailable, LogUnsettled, RecordTooLarge
from broker.kafka.faults import AWAY, FENCED, away, translated
from broker.kafka.opening import opened
from broker.kafka.settings import KafkaSettings
from broker.log import limit_of, partition_of
from broker.messages import Position

IN_FLIGHT_BYTES = 64 << 20  # a producer that holds this much flushes before it takes more
FLUSH_SECONDS = 20.0  # how long one flush waits for a cluster that does not answer
LOOK_SECONDS = 1.0  # interval at which to check, while a commit takes long, whether the cluster is there
FORCED_SECONDS = 2.0  # how long the thread of a client that is to give up may take for it
TRANSACTION_SECONDS = 900  # how long a broker may be away in the middle of a transaction
Row = tuple[int, str, bytes, bytes, int]  # place in the order of sending, topic, key, value, partition


class LogProducer:
    """Implements ``broker.log.Producer``. Idempotent: the client's own retries never write a record twice.

    Records that a failed flush did not get acknowledged are kept and sent again by the next one: delivery is at least once.
    """

    def __init__(self, settings: KafkaSettings, partitions: Callable[[str], int], **more: Any) -> None:
        self._settings, self._partitions, self._more = settings, partitions, more
        self._rows: list[Row] = []
        self._bytes = 0
        self._positions: list[Position | None] = []  # since the last flush, in the order of sending
        self._client: KafkaProducer | None = None

    def _connected(self) -> KafkaProducer:
        if self._client is None:
            limit = self._settings.max_record_bytes
            compression = self._settings.compression
            with translated("connecting to Kafka"):
                self._client = opened(
                    KafkaProducer, **self._settings.common, acks="all", enable_idempotence=True, metrics_enabled=False,
                    max_request_size=limit + (1 << 16), batch_size=1 << 20, linger_ms=0,
                    compression_type=None if compression == "none" else compression,
                    delivery_timeout_ms=int(FLUSH_SECONDS * 1000), request_timeout_ms=int(FLUSH_SECONDS * 500),
                    max_block_ms=int(FLUSH_SECONDS * 1000), allow_auto_create_topics=False, **self._more,
                )  # fmt: skip
        return self._client

    def send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        count = self._partitions(topic)
        chosen = partition_of(key, count) if partition is None else partition
        if not 0 <= chosen < count:
            raise LogError(f"topic {topic} has no partition {chosen}: it has {count}")
        if len(value) > (limit := limit_of(topic, self._settings.max_record_bytes)):
            raise RecordTooLarge(f"a record of {len(value)} bytes for {topic} is above the limit of {limit}")
        if self._bytes >= IN_FLIGHT_BYTES:
            self._flush()
        self._rows.append((len(self._positions), topic, key, value, chosen))
        self._positions.append(None)
        self._bytes += len(value)

    def flush(self) -> list[Position]:
        self._flush()
        done, self._positions = self._positions, []
        return [p for p in done if p is not None]

    def _flush(self) -> None:
        if not self._rows:
            return
        client = self._connected()
        with translated("appending to the log"):
            futures = self._sent(client)
        left: list[Row] = []
        failure: BaseException | None = None
        for row, future in zip(self._rows, futures, strict=True):
            if (error := _failure(future)) is None:
                self._positions[row[0]] = Position(row[4], future.value.offset)
            else:
                left.append(row)
                failure = error
        self._keep(left)
        if failure is not None:
            self._restart()
            with translated("appending to the log"):
                raise failure

    def _sent(self, client: KafkaProducer) -> list[Any]:
        """Send all rows, and wait for their acknowledgements; each row's future says whether it arrived."""
        futures = [client.send(topic, value, key, partition=part) for _, topic, key, value, part in self._rows]
        with contextlib.suppress(errors.KafkaTimeoutError):
            client.flush(FLUSH_SECONDS + 5)
        return futures

    def _keep(self, rows: list[Row]) -> None:
        self._rows, self._bytes = rows, sum(len(row[3]) for row in rows)

    def _restart(self) -> None:
        """Use a new client for the next flush: one that has given up on a batch has a gap in its sequence numbers."""
        self._end(0.0)

    def _end(self, seconds: float) -> None:
        """Close the client, which gets ``seconds`` for what it still has to send."""
        client, self._client = self._client, None
        if client is None:
            return
        try:
            client.close(timeout=seconds)
        except errors.KafkaTimeoutError:  # it has closed nothing: records are left, and its thread would go on for ever
            client._sender.force_close()
            client._sender.join(FORCED_SECONDS)
            with contextlib.suppress(errors.KafkaTimeoutError):
                client.close(timeout=0)

    def close(self) -> None:
        self._end(2.0)


def _failure(future: Any) -> BaseException | None:
    """What a record failed with; None if it was acknowledged."""
    if not future.is_done:
        return errors.KafkaTimeoutError("no acknowledgement")
    error: BaseException | None = future.exception
    return error


class ExclusiveProducer(LogProducer):
    """One transaction per flush, with ``name`` as the transactional id: the newest producer of a name fences all earlier ones.

    Raises LogUnavailable if the cluster is away or loses a record before the commit: nothing took place, and the next flush sends all again.
    Before it does so with a new client, ``check`` must find that this process still owns the name. Once a commit has begun, a cluster that
    is away is waited for, however long; LogUnsettled if the commit fails, since only the broker knows whether it took place. HeldByAnother
    once fenced.
    """

    def __init__(
        self, settings: KafkaSettings, partitions: Callable[[str], int], name: str, check: Callable[[], None], release: Callable[[], None]
    ) -> None:  # fmt: skip
        super().__init__(settings, partitions, transactional_id=name, transaction_timeout_ms=TRANSACTION_SECONDS * 1000)
        self._name, self._check, self._release = name, check, release
        self._connected()

    def _connected(self) -> KafkaProducer:
        """The client. A new one ends what an earlier one has left open."""
        if self._client is not None:
            return self._client
        self._check()
        client = super()._connected()
        try:
            with translated(f"opening the transactions of {self._name}"):
                try:
                    client.init_transactions()
                except errors.InvalidTransactionTimeoutError as error:
                    raise LogError(
                        f"the brokers allow no transaction of {TRANSACTION_SECONDS} s, in which a learner waits for a broker that is away: "
                        f"set transaction.max.timeout.ms to at least {TRANSACTION_SECONDS * 1000} (Kafka's default) on them"
                    ) from error
        except LogError:
            self._restart()
            raise
        return client

    def _flush(self) -> None:
        if not self._rows:
            return
        client = self._connected()
        if why := away(self._settings.servers, client):
            raise LogUnavailable(f"appending to the log: {why}")
        try:
            positions = self._appended(client)
        except FENCED as error:
            raise HeldByAnother(self._name, "a process that came later") from error
        except errors.KafkaError as error:
            self._restart()
            # a plain KafkaError is the client's word for a request that got no answer
            if isinstance(error, AWAY) or type(error) is errors.KafkaError:
                raise LogUnavailable(f"appending to the log: {error}") from error
            with translated("appending to the log"):
                raise
        self._commit(client)
        for row, position in zip(self._rows, positions, strict=True):
            self._positions[row[0]] = position
        self._keep([])

    def _appended(self, client: KafkaProducer) -> list[Position]:
        """Send all rows in a transaction, to be committed. Raises what a record failed with: the client would commit the others without it."""
        client.begin_transaction()
        futures = self._sent(client)
        for future in futures:
            if (error := _failure(future)) is not None:
                raise error
        return [Position(row[4], future.value.offset) for row, future in zip(self._rows, futures, strict=True)]

    def _commit(self, client: KafkaProducer) -> None:
        """End the transaction, however long the cluster is away. If it is there and yet nothing comes of it, the client has lost its request,
        as it may when a broker is lost: this process must end then."""
        ended: Future[None] = Future()

        def commit() -> None:
            try:
                client.commit_transaction()
            except BaseException as error:
                ended.set_exception(error)
            else:
                ended.set_result(None)

        threading.Thread(target=commit, name=f"commit of {self._name}", daemon=True).start()
        lacking, there = f"a transaction of {self._name} failed", 0.0
        while not wait([ended], LOOK_SECONDS).done:
            there = 0.0 if away(self._settings.servers, client) else there + LOOK_SECONDS
            if there > FLUSH_SECONDS:
                raise LogUnsettled(
                    f"{lacking}: the cluster is there, and has not ended it; start again, the log tells what took place"
                )
        try:
            ended.result()
        except FENCED as error:
            raise HeldByAnother(self._name, "a process that came later") from error
        except errors.KafkaError as error:
            raise LogUnsettled(f"{lacking}: {error}; start again, the log tells what took place") from error

    def close(self) -> None:
        super().close()
        self._release()
