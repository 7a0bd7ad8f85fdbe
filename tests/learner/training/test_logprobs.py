"""Log-probabilities without the logits: against log_softmax and gather, in values and gradients, at the extremes too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from broker.errors import EngineError
from learner.losses.objectives import OBJECTIVES
from learner.losses.tokens import TokenBatch, token_losses
from learner.model.load import load_model
from learner.training.logprobs import score, token_logprobs
from learner.training.packing import Sequenced, pack


@pytest.fixture(autouse=True)
def no_smallest_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.training.logprobs.SMALL", 0)


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("spread", [1.0, 30.0, 3000.0])
@pytest.mark.parametrize("temperature", [1.3, torch.linspace(0.5, 2.0, 17)], ids=["one", "one_a_row"])
def test_against_log_softmax(rows: int, spread: float, temperature: float | torch.Tensor) -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(17, 8, requires_grad=True), (torch.randn(23, 8) * spread).requires_grad_()
    target, upstream = torch.randint(0, 23, (17,)), torch.randn(17)
    scores = token_logprobs(hidden, weight, target, temperature, rows)
    (scores.logprobs_M * upstream).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    divisor = temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature
    everything = torch.log_softmax(hidden @ weight.T / divisor, -1)
    wanted = everything.gather(1, target[:, None])[:, 0]
    (wanted * upstream).sum().backward()
    assert torch.allclose(scores.logprobs_M, wanted, atol=1e-4, rtol=1e-5)
    assert torch.allclose(got[0], hidden.grad, atol=1e-5 * spread, rtol=1e-3)
    assert torch.allclose(got[1], weight.grad, atol=1e-4, rtol=1e-3)
    entropy = torch.distributions.Categorical(logits=everything).entropy()
    assert torch.allclose(scores.entropy_M, entropy, atol=1e-4)
    assert (scores.correct_M == (everything.argmax(-1) == target)).all()
    assert not scores.correct_M.requires_grad
    for leaf in (hidden, weight):
        leaf.grad = None
    (scores_again := token_logprobs(hidden, weight, target, temperature, rows)).entropy_M.backward(upstream)
    got = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    everything = torch.log_softmax(hidden @ weight.T / divisor, -1)
    (-(everything.exp() * everything).sum(-1) * upstream).sum().backward()
    assert torch.allclose(scores_again.entropy_M, entropy, atol=1e-4)
    assert torch.allclose(got[0], hidden.grad, atol=1e-5 * spread, rtol=1e-3)
    assert torch.allclose(got[1], weight.grad, atol=1e-4, rtol=1e-3)


def test_gradients_by_finite_differences_in_float64() -> None:
    torch.manual_seed(2)
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 6, 3, 3, 1])

    def both(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = token_logprobs(h, w, target, 0.7, 2)
        return scores.logprobs_M, scores.entropy_M

    assert torch.autograd.gradcheck(both, (hidden, weight))


def test_a_tied_head_gets_both_gradients() -> None:
    torch.manual_seed(3)
    table, target = torch.randn(9, 4, dtype=torch.float64), torch.tensor([1, 2, 0])
    ours, plain = (table.clone().requires_grad_() for _ in range(2))
    token_logprobs(ours[torch.tensor([3, 1, 4])], ours, target).logprobs_M.sum().backward()
    torch.log_softmax(plain[torch.tensor([3, 1, 4])] @ plain.T, -1).gather(1, target[:, None]).sum().backward()
    assert ours.grad is not None and torch.allclose(ours.grad, plain.grad)


def test_no_rows_at_all() -> None:
    weight = torch.randn(9, 4, requires_grad=True)
    scores = token_logprobs(torch.zeros(0, 4, requires_grad=True), weight, torch.zeros(0, dtype=torch.long))
    scores.logprobs_M.sum().backward()
    assert scores.logprobs_M.shape == (0,) and weight.grad is not None and not weight.grad.any()


def test_the_logits_are_never_kept() -> None:
    hidden, weight = torch.randn(512, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        token_logprobs(hidden, weight, torch.zeros(512, dtype=torch.long), rows=16).logprobs_M.sum().backward()
    assert kept and max(t.numel() for t in kept) <= max(hidden.numel(), weight.numel())


class Largest(TorchDispatchMode):
    """The most elements that any result of an operation has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("bonus", [0.0, 0.1])
def test_nothing_is_larger_than_a_chunk_of_logits_or_the_head(bonus: float) -> None:
    """Forward and backward, the entropy's gradient too."""
    hidden, weight = torch.randn(512, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    with Largest() as largest:
        scores = token_logprobs(hidden, weight, torch.zeros(512, dtype=torch.long), rows=16)
        (scores.logprobs_M - bonus * scores.entropy_M).sum().backward()
    assert largest.elements == 16 * 1000


@pytest.mark.parametrize("small", [0, 1 << 22], ids=["again", "kept"])
@pytest.mark.parametrize("cached", [1, 60, 1 << 19])
def test_neither_what_is_kept_nor_how_it_is_divided_changes_the_result(
    small: int, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second backward pass over the same graph gives the same again."""
    torch.manual_seed(6)
    hidden, weight = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (11, 20))
    target, up, tilt = torch.randint(0, 20, (11,)), torch.randn(11, dtype=torch.float64), 0.3
    up[4] = 0.0
    log_p = torch.log_softmax(hidden @ weight.T / 0.8, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    wanted = torch.autograd.grad(
        (up * (log_p.gather(1, target[:, None])[:, 0] + tilt * entropy)).sum(), (hidden, weight)
    )
    monkeypatch.setattr("learner.training.logprobs.SMALL", small)
    monkeypatch.setattr("learner.training.logprobs.CACHED", cached)
    scores = token_logprobs(hidden, weight, target, 0.8, rows=11)
    loss = (up * (scores.logprobs_M + tilt * scores.entropy_M)).sum()
    for _ in range(2):
        found = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted, strict=True))


def test_a_frozen_head_and_frozen_states_get_no_gradient() -> None:
    torch.manual_seed(7)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    target = torch.arange(5)
    both = torch.autograd.grad(token_logprobs(hidden, weight, target).logprobs_M.sum(), (hidden, weight))
    token_logprobs(hidden, weight.detach(), target).logprobs_M.sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad, both[0]) and weight.grad is None
    hidden.grad = None
    token_logprobs(hidden.detach(), weight, target).logprobs_M.sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, both[1]) and hidden.grad is None


def test_a_logit_of_minus_infinity_has_no_part_in_the_entropy_nor_its_gradient() -> None:
    hidden = torch.tensor([[1.0, 1e30]], requires_grad=True)
    weight = torch.tensor([[0.5, 0.0], [-0.5, 0.0], [0.0, -1e30]])  # the last logit overflows
    scores = token_logprobs(hidden, weight, torch.tensor([0]))
    two = torch.distributions.Categorical(logits=torch.tensor([0.5, -0.5]))
    assert scores.entropy_M.item() == pytest.approx(two.entropy().item(), abs=1e-6)
    assert scores.logprobs_M.item() == pytest.approx(two.logits[0].item(), abs=1e-6)
    assert token_logprobs(hidden, weight, torch.tensor([2])).logprobs_M.item() == -torch.inf
    scores.entropy_M.sum().backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


def test_a_row_that_overflows_is_dropped_and_the_others_keep_their_gradients() -> None:
    """Not even as 0 * inf may it reach the head, which all rows share."""
    torch.manual_seed(4)
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    target, behavior, advantages = torch.arange(6), torch.full((6,), -2.0), torch.linspace(-1, 1, 6)

    def gradients(rows: torch.Tensor, used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        h, w = rows.clone().requires_grad_(), weight.clone().requires_grad_()
        known = TokenBatch(token_logprobs(h, w, target).logprobs_M, behavior, advantages, used)
        tokens = token_losses(OBJECTIVES["grpo"], known)
        tokens.loss.sum().backward()
        assert h.grad is not None and w.grad is not None
        return h.grad, w.grad, int(tokens.invalid)

    broken = hidden.clone()
    broken[2] = 1e38  # finite, but its logits are not
    found = gradients(broken, torch.ones(6, dtype=torch.bool))
    wanted = gradients(hidden, torch.arange(6) != 2)
    assert found[2] == 1 and wanted[2] == 0
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_autocast_holds_forward_and_backward_and_sums_stay_exact() -> None:
    torch.manual_seed(5)
    hidden, weight = torch.randn(400, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    target = torch.randint(0, 50, (400,))
    with torch.autocast("cpu", torch.bfloat16):
        scores = token_logprobs(hidden, weight, target, rows=7)
    scores.logprobs_M.sum().backward()
    assert scores.logprobs_M.dtype == torch.float32 and hidden.grad is not None and weight.grad is not None
    low, exact = (x.detach().bfloat16().float() for x in (hidden, weight)), torch.enable_grad()
    with exact:
        h, w = (x.requires_grad_() for x in low)
        wanted = torch.log_softmax(h @ w.T, -1).gather(1, target[:, None])[:, 0]
        wanted.sum().backward()
    assert torch.allclose(scores.logprobs_M, wanted, atol=0.05)
    assert torch.allclose(weight.grad, w.grad, atol=0.1) and torch.allclose(hidden.grad, h.grad, atol=0.05)


def test_a_head_with_a_bias_is_refused(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    tokens = torch.arange(5, dtype=torch.int32).numpy()
    (chunk,) = pack([Sequenced.supervised(tokens, tokens > 0, 0)], 16)
    with pytest.raises(EngineError, match="bias"):
        score(model, chunk)


def test_under_bfloat16_the_logits_are_float32() -> None:
    """The products are those of the rounded factors, and nothing is rounded behind them: a sequence's mean is exact to 1e-5."""
    torch.manual_seed(3)
    hidden, weight = torch.randn(64, 128) * 4, torch.randn(500, 128)
    target = torch.randint(0, 500, (64,))
    leaf_h, leaf_w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        scores = token_logprobs(leaf_h, leaf_w, target, rows=16)
    scores.logprobs_M.sum().backward()
    wide_h, wide_w = (x.bfloat16().double().requires_grad_() for x in (hidden, weight))
    everything = torch.log_softmax(wide_h @ wide_w.T, -1)
    wanted = everything.gather(1, target[:, None])[:, 0]
    wanted.sum().backward()
    rounded = torch.log_softmax((hidden.bfloat16() @ weight.bfloat16().T).float(), -1).gather(1, target[:, None])[:, 0]
    assert scores.logprobs_M.dtype == torch.float32
    assert (scores.logprobs_M - wanted).abs().max() < 1e-4 < (rounded - wanted).abs().mean(), "what a bf16 output gives"
    for found, right in ((leaf_h.grad, wide_h.grad), (leaf_w.grad, wide_w.grad)):
        assert found is not None and right is not None
        assert (found - right).norm() / right.norm() < 0.01
