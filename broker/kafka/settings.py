"""What ``kafka://HOST:PORT,HOST:PORT?option=value`` and the environment say about a cluster.

Options: ``replication`` (copies of a record; by default 3 where there are three brokers), ``compression`` (``lz4``, ``zstd``,
``gzip``, ``none``), ``max_record_mb``. TLS and SASL come from the environment, ``HEADRACE_KAFKA_`` and the name of the client's
setting: ``HEADRACE_KAFKA_SECURITY_PROTOCOL=SASL_SSL``, ``HEADRACE_KAFKA_SASL_PLAIN_PASSWORD=...``. They are written to no file and no log.
For OAUTHBEARER, ``HEADRACE_KAFKA_SASL_OAUTH_TOKEN_FILE`` names the file that holds the current token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from broker.errors import RunFileError
from broker.spelling import nearest

PREFIX = "HEADRACE_KAFKA_"
SECURITY = (
    "security_protocol", "ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_check_hostname", "ssl_crlfile",
    "ssl_ciphers", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password", "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name", "sasl_oauth_token_file",
)  # fmt: skip
FILES = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile", "sasl_oauth_token_file")
COMPRESSIONS = ("none", "lz4", "zstd", "gzip")
BOOTSTRAP_SECONDS = 10.0  # how long a new client looks for a broker
OPTIONS = ("replication", "compression", "max_record_mb")


@dataclass(frozen=True)
class KafkaSettings:
    """``servers`` are ``host:port``; ``replication`` 0 means the default. ``security`` holds secrets and is left out of ``repr``."""

    servers: tuple[str, ...]
    replication: int = 0
    compression: str = "none"
    max_record_bytes: int = 16 << 20
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> KafkaSettings:
        """Raises RunFileError if ``url`` or a ``HEADRACE_KAFKA_`` variable is not understood."""
        where, _, query = url.removeprefix("kafka://").partition("?")
        servers = tuple(s for s in where.rstrip("/").split(",") if s)
        for server in servers or ("",):
            host, _, port = server.rpartition(":")
            if not host or not port.isdigit():
                raise RunFileError(f"[broker] url = {url!r}: use kafka://HOST:PORT,HOST:PORT")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name in options:
            if name not in OPTIONS:
                raise RunFileError(f"[broker] url = {url!r}: unknown option {name!r}{nearest(name, OPTIONS)}")
        compression = options.get("compression", "none")
        if compression not in COMPRESSIONS:
            raise RunFileError(f"[broker] url: compression = {compression!r}{nearest(compression, COMPRESSIONS)}")
        numbers = {
            name: options.get(name, default) for name, default in (("replication", "0"), ("max_record_mb", "16"))
        }
        for name, text in numbers.items():
            if not text.isdigit():
                raise RunFileError(f"[broker] url: {name} = {text!r} must be a whole number")
        return cls(
            servers,
            int(numbers["replication"]),
            compression,
            int(numbers["max_record_mb"]) << 20,
            security_from(os.environ if environment is None else environment),
        )

    @property
    def common(self) -> dict[str, Any]:
        """Client settings that producers, consumers and the admin client share."""
        return {
            "bootstrap_servers": list(self.servers),
            "reconnect_backoff_max_ms": 2000,
            "bootstrap_timeout_ms": int(BOOTSTRAP_SECONDS * 1000),
            **self.security,
        }


def security_from(environment: Mapping[str, str]) -> dict[str, Any]:
    """The client settings in the environment variables. Raises RunFileError for an unknown one, or one that names a missing file."""
    found: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in SECURITY:
            alike = [known for known in SECURITY if known.partition("_")[0] == name.partition("_")[0]]
            raise RunFileError(f"environment variable {variable} is not known{nearest(name, alike or SECURITY)}")
        if name in FILES and not Path(value).is_file():
            raise RunFileError(f"environment variable {variable} = {value!r}: there is no such file")
        found[name] = value.lower() in ("1", "true", "yes") if name == "ssl_check_hostname" else value
    if token := found.pop("sasl_oauth_token_file", ""):
        from broker.kafka.token import TokenFile

        found["sasl_oauth_token_provider"] = TokenFile(Path(token))
    return found
