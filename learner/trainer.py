"""One optimizer step, a pure function of the state, the groups and the configuration. Bitwise repeatable on one CPU thread."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from learner.advantages import group_advantages
from learner.batch import PackedChunk
from learner.config import LearnerTable
from learner.groups import Judged
from learner.logprobs import score
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.guard import clean
from learner.losses.objectives import Objective, objective_of
from learner.losses.report import Tally
from learner.losses.terms import k3
from learner.optimizer import Optimizers, learning_rate
from learner.packing import Sequenced, pack, packing_efficiency

Groups = Sequence[Sequence[Judged]]


@dataclass(slots=True)
class TrainState:
    """What a step changes. ``step`` is the policy version that the model holds, ``stage_step`` counts within the stage."""

    model: Any
    optimizers: Optimizers
    stage: int
    step: int = 0
    stage_step: int = 0
    reference: Any = None

    @classmethod
    def begin(cls, model: Any, optimizers: Optimizers, stage: int, table: LearnerTable) -> TrainState:
        """The state at the start of an RL stage; a reference policy is kept only where the objective asks for one."""
        reference = copy.deepcopy(model).eval().requires_grad_(False) if table.objective.kl else None
        return cls(model, optimizers, stage, reference=reference)


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step gave: metrics by name, and seconds by phase."""

    metrics: dict[str, float]
    phases: dict[str, float] = field(default_factory=dict)


def train_step(state: TrainState, groups: Groups, table: LearnerTable, total_steps: int) -> StepReport:
    """Advantages, packing, log-probabilities, loss, backward, clip, step. Version ``state.step`` becomes ``state.step + 1``."""
    started = time.monotonic()
    objective = objective_of(table.objective)
    samples = [judged for group in groups for judged in group]
    advantages_N = torch.cat([_advantages(group, objective) for group in groups]).to(state.model.device)
    chunks = pack(_sequences(samples, advantages_N, objective), table.pack_tokens, str(state.model.device))
    lengths_N = torch.tensor([float(s.trajectory.response_tokens) for s in samples], device=state.model.device)
    weights_N = AGGREGATIONS[objective.aggregation](lengths_N, objective.constant_length)
    packed = time.monotonic()

    tally, loss = Tally(), 0.0
    for chunk in chunks:
        loss += _backward(state, chunk, advantages_N, weights_N, objective, table, tally)
    computed = time.monotonic()

    rate = learning_rate(table.optimizer, state.stage_step, total_steps)
    state.optimizers.set_lr(rate)
    grad_norm = state.optimizers.step()
    _refresh_reference(state, table)
    state.step, state.stage_step = state.step + 1, state.stage_step + 1
    stepped = time.monotonic()

    rewards = [s.reward for s in samples]
    metrics = {
        **tally.result(),
        "loss": loss,
        "grad_norm": grad_norm,
        "lr": rate,
        "trained_reward_mean": fmean(rewards),
        "trained_length_mean": float(lengths_N.mean()),
        "advantage_abs_mean": float(advantages_N.abs().mean()),
        "packing_efficiency": packing_efficiency(chunks, table.pack_tokens),
        "samples": float(len(samples)),
        "groups": float(len(groups)),
    }
    phases = {"pack": packed - started, "forward_backward": computed - packed, "optimizer": stepped - computed}
    return StepReport(metrics, phases)


def _advantages(group: Sequence[Judged], objective: Objective) -> Tensor:
    return group_advantages(
        torch.tensor([s.reward for s in group], dtype=torch.float64), objective.advantage_std
    ).float()


def _sequences(samples: Sequence[Judged], advantages_N: Tensor, objective: Objective) -> list[Sequenced]:
    """The samples that a gradient can come from: an advantage of 0 gives none, unless the objective pulls on every token."""
    silent = (advantages_N == 0).tolist()
    return [
        Sequenced.of(s.trajectory, row) for row, s in enumerate(samples) if objective.regularises or not silent[row]
    ]


def _backward(
    state: TrainState,
    chunk: PackedChunk,
    advantages_N: Tensor,
    weights_N: Tensor,
    objective: Objective,
    table: LearnerTable,
    tally: Tally,
) -> float:
    """Add one chunk's gradient; returns its part of the loss."""
    rows_T = torch.tensor(chunk.rows_N, device=chunk.tokens_T.device)[chunk.sequence_T]
    rows_M, temperature = rows_T[chunk.mask_T], table.sampling.temperature or 1.0
    with torch.autocast(chunk.tokens_T.device.type, torch.bfloat16, enabled=table.dtype == "bfloat16"):
        scores = score(state.model, chunk, temperature=temperature, rows=table.logprob_rows)
    mask_M = torch.ones_like(rows_M, dtype=torch.bool)
    (logprobs, behavior, advantages), used, invalid = clean(
        mask_M, scores.logprobs_M, chunk.behavior_T[chunk.mask_T], advantages_N[rows_M]
    )
    term = objective.term(logprobs, behavior, advantages, objective)
    loss_M = term.loss
    if state.reference is not None:
        with torch.no_grad():
            reference = score(state.reference, chunk, temperature=temperature, rows=table.logprob_rows).logprobs_M
        divergence = k3(logprobs, reference)
        loss_M = loss_M + objective.kl * divergence
        tally.count("kl_reference", float(divergence.detach()[used].sum()))
    loss = (torch.where(used, loss_M, 0.0) * weights_N[rows_M]).sum()
    loss.backward()
    staleness = state.step - chunk.version_T[chunk.mask_T]
    tally.add(term, logprobs.detach(), behavior, staleness, scores.entropy_M, used)
    tally.count("tokens_invalid", float(invalid))
    return float(loss.detach())


def _refresh_reference(state: TrainState, table: LearnerTable) -> None:
    if state.reference is not None and (state.stage_step + 1) % table.objective.ref_refresh == 0:
        state.reference.load_state_dict(state.model.state_dict())


def state_sha256(model: torch.nn.Module) -> str:
    """The weights' fingerprint: names, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
