"""The test vectors that other languages are checked against say what this code says; the documentation names every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from broker.log import partition_of
from broker.messages import (
    ChatMessage,
    DeadLetter,
    Message,
    Outage,
    PolicyVersion,
    Prompt,
    Reply,
    Sampling,
    Segment,
    Settled,
    Trajectory,
    Trimmed,
    VersionSpan,
    Vote,
    decode,
    encode,
)
from broker.verdicts import ValueSpan

HERE = Path(__file__).resolve().parent
PAGE = (HERE.parents[1] / "docs" / "protocol.md").read_text()
SAMPLING = Sampling(1.0, 0.95, 64, ("\n\n",))
TURNS = (ChatMessage("system", "Be brief."), ChatMessage("user", "What is 2+3? ∑"))
VECTORS: dict[str, Message] = {
    "prompt": Prompt("sums-7@0", TURNS, 4, "5", "math", {"level": 2}, {"accuracy": 1.0, "length": 0.5}, SAMPLING, number=7, created=1.5),
    "trajectory": Trajectory(
        "sums-7@0", 2, 4, TURNS, "5", "math", {"level": 2}, {"accuracy": 1.0, "length": 0.5}, "train", "It is 5. ∎",
        np.array([3, 1, 4, 1, 5], np.int32), np.array([0, 0, -0.5, -0.25, -2], np.float32),
        (Segment("prompt", 0, 2, False), Segment("assistant", 2, 5, True)), (VersionSpan(3, 2), VersionSpan(4, 4)), "stop",
        SAMPLING, "local", "actor-0", 2.5, 2.0,
    ),
    "vote-value": Vote("sums-7@0", 2, "length", "value", 0.25, "10 characters", 0.125, 1, 3.5),
    "vote-abstain": Vote("sums-7@0", 2, "length", "abstain"),
    "vote-error": Vote("sums-7@0", 2, "length", "error", None, "the sandbox is away", 1.0, 3, 3.5),
    "outage": Outage("judge", "judge-0", True, "nobody answers", 17, 3.75),
    "vote-rich": Vote(
        "sums-7@0", 2, "length", "value", 0.25, "10 characters", 0.125, 1, 3.5, answer="5", cause="timeout", version="ab12",
        spans=(ValueSpan(2, 4, 0.5), ValueSpan(4, 5, 0.0)), logprobs=np.array([-0.5, -0.25, -2], np.float32).tobytes(),
    ),
    "vote-shadow": Vote("sums-7@0", 2, "style", "value", 1.0, shadow=True),
    "prompt-rich": Prompt(
        "sums-7@0", TURNS, 4, "5", "math", {}, {"accuracy": 1.0}, SAMPLING, number=7, created=1.5, environment="calculator",
        collection="round-1", template={"enable_thinking": True},
    ),
    "trajectory-rich": Trajectory(
        "sums-7@0", 2, 4, TURNS, "5", "math", {}, {"accuracy": 1.0}, "train", "It is 5. ∎",
        np.array([3, 1, 4, 1, 5], np.int32), np.array([0, 0, -0.5, -0.25, -2], np.float32),
        (Segment("prompt", 0, 2, False), Segment("assistant", 2, 5, True)), (VersionSpan(3, 2), VersionSpan(4, 4)), "stop",
        SAMPLING, "local", "actor-0", 2.5, 2.0, "calculator", (ChatMessage("assistant", "It is 5. ∎"),), 1.0, "round-1",
    ),
    "trajectory-episode": Trajectory(
        "sums-7@0", 2, 4, TURNS, "5", "math", {}, {"outcome": 1.0}, "train", "5",
        np.array([3, 1, 4, 1, 5, 9], np.int32), np.array([0, 0, -0.5, 0, -0.25, -2], np.float32),
        (Segment("prompt", 0, 2, False), Segment("assistant", 2, 3, True), Segment("user", 3, 4, False), Segment("assistant", 4, 6, True)),
        (VersionSpan(3, 2), VersionSpan(4, 4)), "stop", SAMPLING, "local", "actor-0", 2.5, 2.0, "guess",
        (ChatMessage("assistant", "4"), ChatMessage("user", "5 to 9"), ChatMessage("assistant", "5")), 1.0,
        replies=(Reply(0, 2.0, 2.125, 0.25, -0.5), Reply(2, 2.375, 2.5)), opening=0.125, why="right",
    ),
    "policy": PolicyVersion(4, "/runs/x/weights/v-00000004", "ab12", "tcp://127.0.0.1:5555", "learner-0", 4.5),
    "deadletter": DeadLetter("x.prompts", 1, 42, b"k", b"\xc1", "no message", "actor-0", "sums-7@0", 1, 5.5),
    "settled": Settled(3, "replayed", 6.5),
    "trimmed": Trimmed("x.rewards", {0: 10, 3: 4}, 7.5),
}  # fmt: skip


def plain(value: Any) -> Any:
    """As JSON says it: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_what_this_code_writes_and_reads(name: str) -> None:
    data = (HERE / f"{name}.msgpack").read_bytes()
    assert data == encode(VECTORS[name]) and decode(data) == VECTORS[name]
    assert json.loads((HERE / f"{name}.json").read_text()) == plain(msgpack.unpackb(data))


def test_partitions_are_those_that_the_page_defines() -> None:
    assert "2166136261" in PAGE and "16777619" in PAGE
    vectors = json.loads((HERE / "partitions.json").read_text())
    assert len(vectors) == 6
    for key, found in vectors.items():
        assert [partition_of(key.encode(), n) for n in (1, 3, 8, 100)] == found


def test_a_vote_needs_its_first_fields_only() -> None:
    short = {"t": "vote", "v": 1, "group_id": "g@0", "index": 0, "rewarder": "r", "outcome": "value", "value": 1}
    assert decode(msgpack.packb(short)) == Vote("g@0", 0, "r", "value", 1.0)


def test_the_page_names_every_field() -> None:
    for message in VECTORS.values():
        for field in message.pack():
            assert f"`{field}`" in PAGE, f"{message.TYPE}.{field}"


def write() -> None:
    """Make the vectors anew: ``python tests/protocol/test_protocol.py``."""
    for name, message in VECTORS.items():
        data = encode(message)
        (HERE / f"{name}.msgpack").write_bytes(data)
        (HERE / f"{name}.json").write_text(
            json.dumps(plain(msgpack.unpackb(data)), indent=1, ensure_ascii=False) + "\n"
        )
    keys = ["", "a", "sums-7@0", "sums-8@0", "math-1@12", "∑"]
    found = {key: [partition_of(key.encode(), n) for n in (1, 3, 8, 100)] for key in keys}
    (HERE / "partitions.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()
