"""Why a cluster does not answer: the client tells its own log alone, and raises "unable to bootstrap" for every reason.

A handler listens to that log. What it has heard lately goes into our errors: refused credentials or certificates as errors that end a
daemon, because waiting cures nothing; the rest as a hint beside "cannot be reached".
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

RECENT_SECONDS = 15.0


class Cause(NamedTuple):
    """``final`` ones do not pass by waiting."""

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
    """When each known cause was last reported."""

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
    """Listen to the client's log; unless somebody has configured its logger, nobody else sees it (it logs every attempt to reconnect)."""
    client = logging.getLogger("kafka")
    if _ears not in client.handlers:
        client.addHandler(_ears)
        if client.level == logging.NOTSET:
            client.setLevel(logging.WARNING)
            client.propagate = False


def cause(since: float = 0.0) -> Cause | None:
    """The likeliest reason among what was heard after ``since`` (monotonic), and lately."""
    first = max(since, time.monotonic() - RECENT_SECONDS)
    return next((known for _, known in KNOWN if _ears.heard.get(known, 0.0) >= first), None)


def brokers_of(client: Any) -> list[str]:
    """``host:port`` of the brokers that a client has been told of by the cluster; none before its first answer."""
    manager = getattr(client, "_manager", None)
    cluster = getattr(client, "_metadata", None) if manager is None else manager.cluster  # a producer calls it so
    return [f"{b.host}:{b.port}" for b in cluster.brokers()] if cluster is not None else []


def unreachable(servers: tuple[str, ...], told: list[str], reachable: Callable[[list[str]], bool]) -> str:
    """What to say where no broker takes connections: of the cluster's own addresses, where they are known; empty if one does."""
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
