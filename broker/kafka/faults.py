"""Kafka's errors as the log's."""

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
"""The errors of a member that has lost its place in the group: its commits are void, as they must be."""
FENCED = (
    errors.ProducerFencedError, errors.InvalidProducerEpochError, errors.TransactionCoordinatorFencedError,
    errors.InvalidProducerIdMappingError,
)  # fmt: skip
CONNECT_SECONDS = 1.0
ELECTION_SECONDS = 10.0
T = TypeVar("T")


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raises LogUnavailable for what passes, LogFull for a full disk, LogError for the rest; ``what`` is being done.

    The reason that the client has told its own log alone is said too (``causes``); one that does not pass is a LogError.
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
        why = cause(started - 1.0)
        if why is not None and why.final:
            raise LogError(f"{what}: the broker was reached, but {why.text}") from error
        raise LogUnavailable(f"{what}: {error}{f'; {why.text}' if why is not None else ''}") from error
    except errors.KafkaError as error:
        raise LogError(f"{what}: {error}") from error


def patiently(action: Callable[[], T]) -> T:
    """Call ``action`` again while the cluster elects or makes what it needs (a fresh one makes its own topics first)."""
    deadline = time.monotonic() + ELECTION_SECONDS
    while True:
        try:
            return action()
        except errors.RetriableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def away(servers: tuple[str, ...], *clients: Any) -> str:
    """Why no broker can be reached, empty if one can. Those that the ``clients`` have been told of by the cluster are asked; those of
    the run file, which may be a name that always answers or a broker that has died, only before that."""
    told = sorted({broker for client in clients for broker in brokers_of(client)})
    return unreachable(servers, told, reachable)


def reachable(servers: Sequence[str]) -> bool:
    """Whether any of the brokers takes connections: the clients themselves wait in silence."""
    for server in servers:
        host, _, port = server.rpartition(":")
        with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    return False
