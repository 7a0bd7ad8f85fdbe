"""Log-probabilities, entropy, loss and gradients from hidden states: in row chunks, against log_softmax and gather."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from learner.losses.objectives import OBJECTIVES
from learner.losses.tokens import TokenBatch, token_losses
from learner.training.logprobs import token_logprobs

from .measuring import added_mib, cpu_medians, in_fresh_process

TOKENS, WIDTH = 2048, 256
VOCABULARIES = (32_768, 151_936)
BONUSES = {"reported": 0.0, "in the loss": 0.01}
VARIANTS = ("log_softmax", "chunks")


class Problem:
    """A head's inputs, and one pass over them by either way: forward, GRPO loss, backward."""

    def __init__(self, vocabulary: int, bonus: float, tokens: int = TOKENS) -> None:
        torch.manual_seed(0)
        self.hidden_MD = torch.randn(tokens, WIDTH).requires_grad_()
        self.weight_VD = (torch.randn(vocabulary, WIDTH) * 0.02).requires_grad_()
        self.target_M = torch.randint(0, vocabulary, (tokens,))
        self.advantages_M, self.mask_M = torch.randn(tokens), torch.ones(tokens, dtype=torch.bool)
        with torch.no_grad():
            now_M = token_logprobs(self.hidden_MD, self.weight_VD, self.target_M).logprobs_M
        self.behavior_M = now_M + 0.1 * torch.randn(tokens)
        self.objective = replace(OBJECTIVES["grpo"], entropy_bonus=bonus)

    def log_softmax(self) -> torch.Tensor:
        everything_MV = torch.log_softmax(self.hidden_MD @ self.weight_VD.T, -1)
        chosen_M = everything_MV.gather(1, self.target_M[:, None])[:, 0]
        with torch.set_grad_enabled(self.objective.entropy_bonus > 0):
            entropy_M = -(everything_MV.exp() * everything_MV).sum(-1)
        return self._step(chosen_M, entropy_M)

    def chunks(self) -> torch.Tensor:
        scores = token_logprobs(self.hidden_MD, self.weight_VD, self.target_M)
        return self._step(scores.logprobs_M, scores.entropy_M)

    def _step(self, logprobs_M: torch.Tensor, entropy_M: torch.Tensor) -> torch.Tensor:
        self.hidden_MD.grad = self.weight_VD.grad = None
        known = TokenBatch(logprobs_M, self.behavior_M, self.advantages_M, self.mask_M, entropy=entropy_M)
        tokens = token_losses(self.objective, known)
        loss = tokens.loss.sum() / len(logprobs_M)
        loss.backward()
        return loss.detach()


def peak(vocabulary: int, bonus: float, variant: str) -> float:
    """MiB that one pass adds; what the libraries set up at their first use is not counted."""
    work: Callable[[], object] = getattr(Problem(64, bonus, 256), variant)
    work()
    return added_mib(getattr(Problem(vocabulary, bonus), variant))


def report(times: int, rounds: int) -> None:
    print(
        f"## Log-probabilities, entropy and loss\n\n{TOKENS:,} tokens, hidden {WIDTH}, GRPO, float32, one thread; forward and backward.\n"
    )
    print("| vocabulary | entropy | log_softmax: s | chunks: s | ratio | log_softmax: MiB | chunks: MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for vocabulary in VOCABULARIES:
        for kind, bonus in BONUSES.items():
            problem = Problem(vocabulary, bonus)
            if not torch.allclose(problem.log_softmax(), problem.chunks(), atol=1e-5):
                raise AssertionError("the two ways give different losses")
            for _ in range(1 if bonus else times):
                seconds = cpu_medians({name: getattr(problem, name) for name in VARIANTS}, rounds)
                held = [in_fresh_process("peak", str(vocabulary), str(bonus), name) for name in VARIANTS]
                a, b = (seconds[name] for name in VARIANTS)
                print(
                    f"| {vocabulary:,} | {kind} | {a:.2f} | {b:.2f} | {b / a:.2f} | {held[0]:,.0f} | {held[1]:,.0f} | {held[1] / held[0]:.3f} |",
                    flush=True,
                )
