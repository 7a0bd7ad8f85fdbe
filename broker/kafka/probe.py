"""Asks one broker directly why a login fails. The Kafka client may lose a refusal, as the broker closes the connection right after it.

The request is Kafka's SaslHandshake, version 1 (https://kafka.apache.org/protocol#The_Messages_SaslHandshake).
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Mapping
from typing import Any

from broker.kafka.causes import Cause

SECONDS = 5.0
HANDSHAKE, VERSION = 17, 1


def refusal(server: str, security: Mapping[str, Any]) -> Cause | None:
    """Why ``server`` (``host:port``) closes connections that try to log in; None if that cannot be found out."""
    mechanism = str(security.get("sasl_mechanism", ""))
    if not mechanism:
        return None
    try:
        with _connected(server, security) as connection:
            error, offered = _handshake(connection, mechanism)
    except (OSError, struct.error):
        return None
    if error:
        return Cause(
            f"it does not offer this way to log in, {mechanism}, but {', '.join(offered)} (HEADRACE_KAFKA_SASL_MECHANISM)",
            True,
        )
    return Cause("it refuses the user or the password (HEADRACE_KAFKA_SASL_PLAIN_USERNAME, _PASSWORD)", True)


def _connected(server: str, security: Mapping[str, Any]) -> socket.socket:
    host, _, port = server.rpartition(":")
    plain = socket.create_connection((host.strip("[]"), int(port)), SECONDS)
    if "SSL" not in str(security.get("security_protocol", "")):
        return plain
    context = ssl.create_default_context(cafile=security.get("ssl_cafile"))
    context.check_hostname = bool(security.get("ssl_check_hostname", True))
    if certificate := security.get("ssl_certfile"):
        context.load_cert_chain(certificate, security.get("ssl_keyfile"), security.get("ssl_password"))
    return context.wrap_socket(plain, server_hostname=host.strip("[]"))


def _handshake(connection: socket.socket, mechanism: str) -> tuple[int, list[str]]:
    """The error code of the broker's answer (0: none), and the SASL mechanisms that it offers."""
    name = mechanism.encode()
    request = struct.pack(">hhih", HANDSHAKE, VERSION, 1, -1) + struct.pack(">h", len(name)) + name
    connection.sendall(struct.pack(">i", len(request)) + request)
    stream = connection.makefile("rb")
    (size,) = struct.unpack(">i", stream.read(4))
    answer = stream.read(size)
    _, error, count = struct.unpack_from(">ihi", answer)
    offered, at = [], 10
    for _ in range(count):
        (length,) = struct.unpack_from(">h", answer, at)
        offered.append(answer[at + 2 : at + 2 + length].decode())
        at += 2 + length
    return error, offered
