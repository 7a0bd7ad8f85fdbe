"""Translates the Kafka client's errors into those of ``broker.errors``."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from kafka import errors

from broker.errors import LogError, LogFull, LogUnavailable
from broker.kafka.causes import brokers_of, cause, unreachable

AWAY = (
    errors.RetriableError, errors.KafkaConnectionError, errors.BrokerNotAvailableError, errors.RequestTimedOutError,
    errors.OutOfOrderSequenceNumberError, OSError,
)  # fmt: skip
TOO_OLD = (
    errors.CommitFailedError, errors.IllegalGenerationError, errors.UnknownMemberIdError, errors.RebalanceInProgressError,
    errors.FencedInstanceIdError, errors.FencedMemberEpochError, errors.StaleMemberEpochError,
)  # fmt: skip
"""Errors of a member that has lost its place in the group: its commits are rejected, as they must be."""
FENCED = (
    errors.ProducerFencedError, errors.InvalidProducerEpochError, errors.TransactionCoordinatorFencedError,
    errors.InvalidProducerIdMappingError,
)  # fmt: skip
CONNECT_SECONDS = 1.0
ELECTION_SECONDS = 10.0
T = TypeVar("T")


@contextlib.contextmanager
def translated(what: str, heard_before: float = 1.0) -> Iterator[None]:
    """Raises LogUnavailable for errors that waiting may cure, LogFull for a full disk, LogError for other Kafka errors.

    ``what`` names the operation in the message. A reason found only in the client's log is added (``causes``); a final one is a LogError.
    A client that works in the background may have logged it up to ``heard_before`` seconds ago; what a new client logs comes after its start,
    and what stands before it concerns another one.
    """
    started = time.monotonic()
    try:
        yield
    except errors.KafkaStorageError as error:
        raise LogFull(f"{what}: the broker's disk fails or is full; free some space and start it again") from error
    except errors.AuthorizationError as error:
        raise LogError(
            f"{what}: the credentials do not allow it ({error}); docs/kafka.md lists what each daemon needs"
        ) from error
    except AWAY as error:
        why = cause(started - heard_before)
        if why is not None and why.final:
            raise LogError(f"{what}: the broker was reached, but {why.text}") from error
        raise LogUnavailable(f"{what}: {error}{f'; {why.text}' if why is not None else ''}") from error
    except errors.KafkaError as error:
        raise LogError(f"{what}: {error}") from error


def patiently(action: Callable[[], T]) -> T:
    """Retry ``action`` on retriable errors for up to ``ELECTION_SECONDS``: a cluster may be electing a leader, and a fresh one first creates
    its internal topics."""
    deadline = time.monotonic() + ELECTION_SECONDS
    while True:
        try:
            return action()
        except errors.RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def away(servers: tuple[str, ...], *clients: Any) -> str:
    """Why no broker can be reached; empty if one can.

    Tries the brokers that the cluster has reported to the ``clients``. The addresses in the run file (``servers``) may be a load balancer
    that always answers, or a broker that has died, so they count only while the cluster has reported none.
    """
    told = sorted({broker for client in clients for broker in brokers_of(client)})
    return unreachable(servers, told, reachable)


def reachable(servers: Sequence[str]) -> bool:
    """Whether any of ``servers`` (``host:port``) accepts a TCP connection. The Kafka client itself would wait without an error."""
    for server in servers:
        host, _, port = server.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    return False
