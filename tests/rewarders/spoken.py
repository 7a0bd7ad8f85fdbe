"""Samples by their text: what the tests of rewarders are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan


def spoken(
    text: str, question: str = "What is 2+3?", answer: str | None = "5", *, tokens: int = 1, **fields: Any
) -> Trajectory:
    """A sample of one prompt token and ``tokens`` response tokens that says ``text``."""
    limit = fields.pop("limit", 256)
    version = fields.pop("version", 0)
    whole = {
        "group_id": "g-0@0", "index": 0, "group_size": 1, "messages": (ChatMessage("user", question),), "answer": answer, "kind": "",
        "metadata": {}, "rewards": {"r": 1.0}, "purpose": "train", "text": text, "tokens": np.ones(1 + tokens, np.int32),
        "logprobs": np.zeros(1 + tokens, np.float32), "segments": (Segment("prompt", 0, 1, False), Segment("assistant", 1, 1 + tokens, True)),
        "versions": (VersionSpan(version, 1),), "finish_reason": "stop", "sampling": Sampling(max_new_tokens=limit),
    }  # fmt: skip
    return Trajectory(**{**whole, **fields})


def group(texts: Sequence[str], lengths: Sequence[int] = (), **fields: Any) -> list[Trajectory]:
    """The samples of one group, one a text."""
    lengths = lengths or [1] * len(texts)
    return [
        spoken(text, index=i, group_size=len(texts), tokens=n, **fields)
        for i, (text, n) in enumerate(zip(texts, lengths, strict=True))
    ]
