"""Control messages: small msgpack maps with a kind. Malformed ones are ignored and counted, and never crash a daemon."""

from __future__ import annotations

from typing import Any

import msgpack

Message = dict[str, Any]


def pack(kind: str, **fields: Any) -> bytes:
    return bytes(msgpack.packb({"k": kind, **fields}))


def unpack(data: bytes) -> Message | None:
    """The message, or None if ``data`` is not a valid one."""
    try:
        message = msgpack.unpackb(data)
    except Exception:  # any bytes may come in; msgpack raises errors of many kinds
        return None
    return message if isinstance(message, dict) and isinstance(message.get("k"), str) else None


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach ``endpoint``."""
    return endpoint.startswith(("ipc://", "inproc://", "tcp://127.", "tcp://localhost", "tcp://[::1]"))
