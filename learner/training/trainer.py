"""One optimizer step, a pure function of the state, the groups and the configuration. Bitwise repeatable on one CPU thread."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from learner.losses.advantages import batch_advantages, overlong_penalty
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import Objective, objective_of
from learner.losses.tally import Tally
from learner.losses.tokens import kept_tokens, token_losses
from learner.model.policy import PolicyWeights
from learner.planning.groups import Judged
from learner.tables import Training as LearnerTable  # FIXME
from learner.training.batch import PackedChunk, TokenScores
from learner.training.logprobs import score
from learner.training.memory import Activations
from learner.training.optimizer import Optimizers, learning_rate
from learner.training.packing import Sequenced, pack, packing_efficiency
from learner.training.placement import ALONE, ParallelPlan
from learner.training.reference import refresh, scored_by
from learner.training.residence import Residence
from learner.training.share import Share

Groups = Sequence[Sequence[Judged]]


@dataclass(slots=True)
class TrainState:
    """What a step changes. ``step`` is the policy version that the model holds, ``stage_step`` counts within the stage.

    ``plan``: over which ranks the model and the work are spread.
    """

    model: Any
    optimizers: Optimizers
    stage: int
    residence: Residence
    step: int = 0
    stage_step: int = 0
    reference: Any = None
    plan: ParallelPlan = ALONE

    @classmethod
    def begin(
        cls,
        model: Any,
        optimizers: Optimizers,
        stage: int,
        table: LearnerTable,
        device: Any = None,
        plan: ParallelPlan = ALONE,
    ) -> TrainState:
        """The state at the start of an RL stage; a reference policy is kept only where the objective asks for one.

        ``device`` is where the model computes (default: where it lies).
        """
        state = cls(model, optimizers, stage, Residence(model, optimizers, device=device), plan=plan)
        if objective_of(table.objective).kl:
            state.keep_reference()
        return state

    def keep_reference(self) -> None:
        """The policy as it is becomes the reference."""
        self.reference = self.plan.frozen(self.model)
        self.residence = Residence(self.model, self.optimizers, self.reference, self.residence.device)


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
    batch = _batch(groups, samples, objective, table)
    chunks = pack(_sequences(samples, batch.advantages_N, objective), table.pack_tokens)
    known = _batch_metrics(state, samples, batch)
    at = {"stage": state.stage, "step": state.step, "stage_step": state.stage_step}
    rate = learning_rate(table.optimizer, state.stage_step, total_steps)
    share = state.plan.deal(Share.whole(chunks, _fields(batch)), state.residence.device, "step", rate=rate, **at)
    packed = time.monotonic()

    done = take_share(state, share, table, rate)
    metrics = {
        **done.tally.result(),
        **known,
        **done.memory,
        "loss": done.loss,
        "grad_norm": done.grad_norm,
        "step_skipped": float(not math.isfinite(done.grad_norm)),
        "lr": rate,
        "packing_efficiency": packing_efficiency(chunks, table.pack_tokens),
        "samples": float(len(samples)),
        "groups": float(len(groups)),
    }
    computed = packed + done.forward_backward
    phases = {
        "pack": packed - started,
        "forward_backward": done.forward_backward,
        "optimizer": time.monotonic() - computed,
    }
    return StepReport(metrics, phases)


@dataclass(frozen=True, slots=True)
class Done:
    """What a step gave over all ranks; ``forward_backward`` in seconds, ``memory`` in bytes, of this rank."""

    tally: Tally
    loss: float
    grad_norm: float
    forward_backward: float
    memory: dict[str, float]


def take_share(state: TrainState, share: Share, table: LearnerTable, rate: float) -> Done:
    """What every rank does of a step: loss and backward of its chunks, then clip and step together with the others."""
    started = time.monotonic()
    objective, batch = objective_of(table.objective), _Batch(**share.batch)
    if objective.kl and state.reference is None:  # a replay may ask for a divergence that the recorded run did without
        state.keep_reference()
    tally, loss, activations = Tally(), 0.0, Activations(state.model, state.residence.device)
    references = _references(state, share.chunks, batch, objective, table)
    state.residence.model_to_device()
    kept = _kept(state, share, batch, objective, table)
    for chunk, kept_M, reference_M in zip(state.plan.rounds(state.model, share.chunks), kept, references, strict=True):
        loss += _backward(state, chunk, batch, objective, table, tally, activations, kept_M, reference_M)
    sums, tally.maxima = state.plan.totals({"loss": loss, **tally.sums}, tally.maxima)
    loss, tally.sums = sums.pop("loss"), sums
    computed = time.monotonic()

    state.optimizers.set_lr(rate)
    grad_norm = state.optimizers.step()
    if state.reference is not None and (state.stage_step + 1) % table.objective.ref_refresh == 0:
        refresh(state.reference, state.model)
    if table.offload == "all":
        state.residence.model_to_host()
    state.step, state.stage_step = state.step + 1, state.stage_step + 1
    return Done(tally, loss, grad_norm, computed - started, activations.metrics(state.optimizers))


@dataclass(frozen=True, slots=True)
class _Batch:
    """Of each of the ``N`` samples: advantage, the weight of each of its tokens in the loss, the temperature it was sampled at."""

    advantages_N: Tensor
    weights_N: Tensor
    lengths_N: Tensor
    temperatures_N: Tensor


def _batch(groups: Groups, samples: Sequence[Judged], objective: Objective, table: LearnerTable) -> _Batch:
    """All that hangs on the whole batch, so that no micro-batch, packing or order changes it."""
    rewards_N = torch.tensor([s.reward for s in samples], dtype=torch.float64)
    lengths_N = torch.tensor([float(s.trajectory.response_tokens) for s in samples])
    if table.overlong_buffer:
        longest = table.sampling.max_new_tokens
        rewards_N += overlong_penalty(lengths_N.double(), longest, table.overlong_buffer, table.overlong_penalty)
    group_N = torch.tensor([g for g, group in enumerate(groups) for _ in group], dtype=torch.long)
    advantages_N = batch_advantages(
        rewards_N, group_N, objective.advantage_std, baseline=objective.advantage_baseline
    ).float()
    weights_N = AGGREGATIONS[objective.aggregation](lengths_N, objective.constant_length)
    # greedy samples carry log-probabilities of temperature 1
    temperatures_N = torch.tensor([s.trajectory.sampling.temperature or 1.0 for s in samples])
    return _Batch(advantages_N, weights_N, lengths_N, temperatures_N)


def _fields(batch: _Batch) -> dict[str, Tensor]:
    return {field.name: getattr(batch, field.name) for field in fields(batch)}


def _sequences(samples: Sequence[Judged], advantages_N: Tensor, objective: Objective) -> list[Sequenced]:
    """The samples that a gradient can come from: an advantage of 0 gives none, unless the objective pulls on every token."""
    silent = (advantages_N == 0).tolist()
    return [
        Sequenced.of(s.trajectory, row) for row, s in enumerate(samples) if objective.regularises or not silent[row]
    ]


def _rows(chunk: PackedChunk) -> Tensor:
    """For each trained token of the chunk the row of its sample."""
    return torch.tensor(chunk.rows_N, device=chunk.tokens_T.device)[chunk.sequence_T[chunk.mask_T]]


def _scored(model: Any, chunk: PackedChunk, row_M: Tensor, batch: _Batch, table: LearnerTable) -> TokenScores:
    """What ``model`` makes of the chunk's trained tokens, each at the temperature it was sampled at."""
    with torch.autocast(chunk.tokens_T.device.type, torch.bfloat16, enabled=table.dtype == "bfloat16"):
        return score(model, chunk, temperature=batch.temperatures_N[row_M], rows=table.logprob_rows)


def _kept(
    state: TrainState, share: Share, batch: _Batch, objective: Objective, table: LearnerTable
) -> list[Tensor | None]:
    """For each chunk which of its trained tokens take part, where that hangs on the whole batch; this costs a forward pass."""
    if objective.second_moment is None or not share.chunks:
        return [None] * len(share.chunks)
    everybodys = torch.zeros(3, share.total, device=share.chunks[0].tokens_T.device)
    for chunk, place in zip(share.chunks, share.places, strict=True):
        row_M = _rows(chunk)
        with torch.no_grad():
            logprobs_M = _scored(state.model, chunk, row_M, batch, table).logprobs_M
        everybodys[:, place] = torch.stack((logprobs_M, chunk.behavior_T[chunk.mask_T], batch.advantages_N[row_M]))
    logprobs, behavior, advantages = state.plan.added(everybodys)
    kept = kept_tokens(objective, logprobs, behavior, advantages, torch.ones_like(logprobs, dtype=torch.bool))
    return [kept[place] for place in share.places]


def _references(
    state: TrainState, chunks: Sequence[PackedChunk], batch: _Batch, objective: Objective, table: LearnerTable
) -> list[Tensor | None]:
    """For each chunk what the reference policy makes of its trained tokens, before the policy itself is scored: the two then
    need not be on the device at once."""
    if not objective.kl:
        return [None] * len(chunks)
    if isinstance(state.reference, torch.nn.Module):
        state.residence.reference_to_device()
    else:  # it is made of the policy
        state.residence.model_to_device()
    with torch.no_grad(), scored_by(state.reference) as model:
        found: list[Tensor | None] = [_scored(model, c, _rows(c), batch, table).logprobs_M for c in chunks]
    if table.offload == "all":
        state.residence.reference_to_host()
    return found


def _backward(
    state: TrainState, chunk: PackedChunk, batch: _Batch, objective: Objective, table: LearnerTable, tally: Tally,
    activations: Activations, kept_M: Tensor | None, reference_M: Tensor | None,
) -> float:  # fmt: skip
    """Add one chunk's gradient; returns its part of the loss."""
    row_M = _rows(chunk)
    with activations.measured():
        scores = _scored(state.model, chunk, row_M, batch, table)
        everything = torch.ones_like(row_M, dtype=torch.bool)
        tokens = token_losses(
            objective,
            scores.logprobs_M,
            chunk.behavior_T[chunk.mask_T],
            batch.advantages_N[row_M],
            everything,
            reference_M,
            row_M,
            kept_M,
            scores.entropy_M,
        )
        loss = (tokens.loss * batch.weights_N[row_M]).sum()
    loss.backward()
    tally.add(tokens, row_M, state.step - chunk.version_T[chunk.mask_T], scores.entropy_M.detach())
    return float(loss.detach())


def _batch_metrics(state: TrainState, samples: Sequence[Judged], batch: _Batch) -> dict[str, float]:
    """What is known of whole samples. Staleness is split into what passed while sampling and what passed since."""
    rewards, trajectories = [s.reward for s in samples], [s.trajectory for s in samples]
    return {
        "trained_reward_mean": fmean(rewards),
        "trained_reward_std": pstdev(rewards),
        "trained_length_mean": float(batch.lengths_N.mean()),
        "advantage_abs_mean": float(batch.advantages_N.abs().mean()),
        "advantage_abs_max": float(batch.advantages_N.abs().max()),
        "staleness_sampling_mean": fmean(t.newest_version - t.oldest_version for t in trajectories),
        "staleness_queue_mean": fmean(state.step - t.newest_version for t in trajectories),
        "versions_per_sample": fmean(len(t.versions) for t in trajectories),
    }


def state_sha256(model: torch.nn.Module) -> str:
    """The policy's fingerprint: names, shapes and bytes of its weights, in order (of an adapted model the merged ones)."""
    digest = hashlib.sha256()
    for name, tensor in PolicyWeights(model).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
