"""The records on the wire: frozen, versioned, and validated when they are created.

Every record is one msgpack map ``{"t": type, "v": schema version, ...}``; arrays are raw little-endian bytes (tokens
``<i4``, log-probabilities ``<f4``). ``v`` is the oldest version whose readers understand the record: a field that older readers may
ignore is optional and absent at its default; what they would misunderstand has the version that brought it. A record of a newer
version than this code knows is refused, unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgpack

from broker.endings import Artefact, Ending, Evaluation
from broker.errors import DecodeError, MessageError
from broker.manifests import (
    Dropped,
    Era,
    GroupRef,
    Manifest,
    Origin,
    PlannerState,
    SampleRef,
    StepResult,
    VoteRef,
)
from broker.prompts import PURPOSES, ChatMessage, Prompt, Sampling
from broker.seals import Seal
from broker.sessions import SessionEvent
from broker.trajectories import (
    FINISH_REASONS,
    FloatArray,
    IntArray,
    Reply,
    Segment,
    Trajectory,
    VersionSpan,
    trajectory_id,
)
from broker.verdicts import OUTCOMES, DeadLetter, Outage, PolicyVersion, Settled, Trimmed, Vote
from broker.wire import Json, Position

__all__ = [
    "FINISH_REASONS",
    "OUTCOMES",
    "PURPOSES",
    "SCHEMA",
    "Artefact",
    "ChatMessage",
    "DeadLetter",
    "Dropped",
    "Ending", "Era",
    "Evaluation",
    "FloatArray",
    "GroupRef",
    "IntArray",
    "Manifest",
    "Message",
    "Origin",
    "Outage",
    "PlannerState",
    "PolicyVersion",
    "Position",
    "Prompt",
    "Reply",
    "SampleRef",
    "Sampling",
    "Seal",
    "Segment",
    "SessionEvent",
    "Settled",
    "StepResult",
    "Trajectory",
    "Trimmed",
    "VersionSpan",
    "Vote",
    "VoteRef",
    "decode",
    "encode",
    "trajectory_id",
]  # fmt: skip

SCHEMA = 2

Message = (
    Prompt
    | Trajectory
    | Vote
    | Outage
    | Manifest
    | StepResult
    | Evaluation
    | Artefact
    | Seal
    | PolicyVersion
    | DeadLetter
    | Settled
    | Trimmed
    | SessionEvent
)
_RECORDS = (
    Prompt,
    Trajectory,
    Vote,
    Outage,
    Manifest,
    StepResult,
    Evaluation,
    Artefact,
    Seal,
    PolicyVersion,
    DeadLetter,
    Settled,
    Trimmed,
    SessionEvent,
)
_UNPACK: dict[str, Callable[[Mapping[str, Json]], Message]] = {cls.TYPE: cls.unpack for cls in _RECORDS}


def encode(message: Message) -> bytes:
    """The bytes of ``message``. Raises MessageError if its metadata holds values that msgpack cannot encode."""
    wire = message.pack()
    wire["t"], wire["v"] = message.TYPE, getattr(message, "schema", 1)
    try:
        return msgpack.packb(wire)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MessageError(f"{message.TYPE} cannot be encoded: {error}") from error


def decode(data: bytes) -> Message:
    """The message in ``data``, whatever its type. Any other bytes raise DecodeError, which carries them."""
    try:
        wire = msgpack.unpackb(data, strict_map_key=False)
        if not isinstance(wire, dict):
            raise TypeError(f"a {type(wire).__name__} where a map is expected")
        kind, schema = wire.get("t"), wire.get("v")
        if not isinstance(kind, str) or kind not in _UNPACK:
            raise ValueError(f"unknown message type {kind!r}")
        if type(schema) is not int or not 1 <= schema <= SCHEMA:
            raise ValueError(f"schema version {schema!r} where 1 to {SCHEMA} are known")
        return _UNPACK[kind](wire)
    except Exception as error:  # any bytes may come in here: they are bad data, and must not crash a daemon
        what = f"missing field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DecodeError(what[:500], data) from error
