"""Groups of samples for tests, made of random tokens."""

from __future__ import annotations

import numpy as np

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from learner.planning.groups import Judged


def groups_of(count: int, seed: int = 0, longest: int = 40) -> list[list[Judged]]:
    """Groups of four samples of one prompt each, with random rewards."""
    rng = np.random.default_rng(seed)
    out = []
    for g in range(count):
        group = []
        for i in range(4):
            n = int(rng.integers(8, longest))
            tokens = rng.integers(0, 300, n).astype(np.int32)
            logprobs = np.concatenate((np.zeros(4), -rng.random(n - 4) * 6)).astype(np.float32)
            spans = (Segment("prompt", 0, 4, False), Segment("assistant", 4, n, True))
            sample = Trajectory(
                f"d-{g}@0", i, 4, (ChatMessage("user", "?"),), None, "", {}, {"r": 1.0}, "train", "", tokens, logprobs, spans,
                (VersionSpan(0, 4),), "stop", Sampling(),
            )  # fmt: skip
            group.append(Judged(sample, float(rng.random())))
        out.append(group)
    return out
