"""Finds out why a cluster does not answer.

The Kafka client raises "unable to bootstrap" whatever the reason, and writes the reason only to its own log. A handler reads that log and
adds recent reasons to our errors. Refused credentials and certificates become errors that end a daemon, because waiting does not cure
them; other reasons are only a hint after "cannot be reached".
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

RECENT_SECONDS = 15.0


class Cause(NamedTuple):
    """A known reason, in words for the user; a ``final`` one does not go away by waiting."""

    text: str
    final: bool


KNOWN: tuple[tuple[re.Pattern[str], Cause], ...] = (
    (
        re.compile("SaslAuthenticationFailed"),
        Cause("it refuses the user or the password (HEADRACE_KAFKA_SASL_PLAIN_USERNAME, _PASSWORD)", True),
    ),
    (
        re.compile("UnsupportedSaslMechanism"),
        Cause("it does not offer this way to log in (HEADRACE_KAFKA_SASL_MECHANISM)", True),
    ),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED.*(?:IP address|[Hh]ostname) mismatch"),
        Cause("its certificate is for another name than the one in [broker] url", True),
    ),
    (
        re.compile("CERTIFICATE_VERIFY_FAILED"),
        Cause("its certificate is not trusted here (HEADRACE_KAFKA_SSL_CAFILE names the authority)", True),
    ),
    (
        re.compile(r"Handshake failed.*(EOF|WRONG_VERSION|disconnected)"),
        Cause("it does not speak TLS on this port (HEADRACE_KAFKA_SECURITY_PROTOCOL)", False),
    ),
    (
        re.compile("socket disconnected"),
        Cause(
            "it takes the connection and closes it at once: it may want TLS or a login here (HEADRACE_KAFKA_SECURITY_PROTOCOL), or refuse the "
            "user or the password (HEADRACE_KAFKA_SASL_PLAIN_USERNAME, _PASSWORD)",
            False,
        ),
    ),
)


class _Ears(logging.Handler):
    """Records when the client last logged each known cause."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: dict[Cause, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        for pattern, known in KNOWN:
            if pattern.search(text):
                self.heard[known] = time.monotonic()
                return


_ears = _Ears()


def listen() -> None:
    """Attach the handler to the client's logger. Unless that logger is configured already, keep its messages out of our log: it reports every
    attempt to reconnect."""
    client = logging.getLogger("kafka")
    if _ears not in client.handlers:
        client.addHandler(_ears)
        if client.level == logging.NOTSET:
            client.setLevel(logging.WARNING)
            client.propagate = False


def cause(since: float = 0.0) -> Cause | None:
    """The likeliest reason logged after ``since`` (monotonic seconds) and within the last ``RECENT_SECONDS``; None if there is none."""
    first = max(since, time.monotonic() - RECENT_SECONDS)
    return next((known for _, known in KNOWN if _ears.heard.get(known, 0.0) >= first), None)


def brokers_of(client: Any) -> list[str]:
    """``host:port`` of each broker that the cluster has reported to ``client``; empty before the first answer."""
    manager = getattr(client, "_manager", None)
    cluster = getattr(client, "_metadata", None) if manager is None else manager.cluster  # the attribute of a producer
    return [f"{b.host}:{b.port}" for b in cluster.brokers()] if cluster is not None else []


def unreachable(servers: tuple[str, ...], told: list[str], reachable: Callable[[list[str]], bool]) -> str:
    """An error text if no broker accepts connections, else empty.

    Tests the addresses that the cluster reported (``told``), or ``servers`` if it has reported none yet.
    """
    if not told:
        return "" if reachable(list(servers)) else f"no broker of {', '.join(servers)} can be reached"
    if reachable(told):
        return ""
    if set(told) != set(servers) and reachable(list(servers)):
        return (
            f"{', '.join(servers)} answers, but the brokers call themselves {', '.join(told)} (advertised.listeners), which cannot be "
            "reached from here"
        )
    return f"no broker of the cluster ({', '.join(told)}) can be reached"
