"""Stale data and long answers: ``python -m benchmarks.staleness.long`` trains a policy without a network on answers of up to thousands of tokens.

A token is right or wrong, by the class of its position; the policy is one logit a class; the reward of an answer is the share of its right
tokens. So the step's signal does not depend on the length, and what does is the objective's doing. Half a minute of one core in all.
"""

from __future__ import annotations

from collections import deque

import torch
from torch.nn.functional import logsigmoid

from learner.losses.objectives import OBJECTIVES
from learner.losses.padded import batch_loss

CLASSES, SIZE, STEPS, RATE = 16, 32, 40, 0.05


def learned(objective: str, length: int, lag: int, seed: int = 0) -> float:
    """The share of right tokens (at first .5) after 40 + ``lag`` steps of one group, sampled by the policy of ``lag`` updates ago."""
    g = torch.Generator().manual_seed(seed)
    right = (torch.rand(CLASSES, generator=g) < 0.5).float()
    logits, at = torch.zeros(CLASSES, requires_grad=True), torch.arange(length) % CLASSES
    optimizer = torch.optim.Adam([logits], lr=RATE, betas=(0.0, 0.95))
    past: deque[torch.Tensor] = deque(maxlen=lag + 1)
    used = torch.ones(SIZE, length, dtype=torch.bool)
    for _ in range(STEPS + lag):
        past.append(logits.detach().clone())
        said = torch.bernoulli(past[0].sigmoid()[at].expand(SIZE, length), generator=g)
        rewards = (said == right[at]).float().mean(1)
        advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-6)
        sign = 2 * said - 1
        logprobs, behavior = logsigmoid(logits[at] * sign), logsigmoid(past[0][at] * sign)
        loss, _ = batch_loss(OBJECTIVES[objective], logprobs, behavior, advantages, used)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    chance = logits.detach().sigmoid()
    return float((right * chance + (1 - right) * (1 - chance)).mean())


def main() -> None:
    print("| objective | lag | 64 tokens | 1,024 | 4,096 |\n|---|---|---|---|---|")
    for objective, lag in (("async", 0), ("async", 8), ("async", 16), ("tis_sequence", 8)):
        found = [learned(objective, length, lag) for length in (64, 1024, 4096)]
        print(f"| `{objective}` | {lag} |" + "".join(f" {share:.3f} |" for share in found))


if __name__ == "__main__":
    main()
