"""Prepares the groups of a step: everything that depends on the whole batch, so that micro-batches, packing and order cannot change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean, pstdev

import numpy as np
import torch
from torch import Tensor

from broker.messages import FloatArray
from learner.losses.advantages import batch_advantages, step_advantages
from learner.losses.aggregate import AGGREGATIONS
from learner.losses.objectives import Objective
from learner.planning.rewards import Judged, trained_rewards
from learner.tables import Training
from learner.training.batch import PackedChunk
from learner.training.packing import Sequenced, pack
from learner.training.share import Share

Groups = Sequence[Sequence[Judged]]


@dataclass(frozen=True, slots=True)
class Batch:
    """For each of the ``N`` samples: its advantage, the weight of each of its tokens in the loss, its length in tokens, its sampling temperature."""

    advantages_N: Tensor
    weights_N: Tensor
    lengths_N: Tensor
    temperatures_N: Tensor


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch and its packed chunks; ``parts`` tells the minibatch of each chunk."""

    samples: tuple[Judged, ...]
    batch: Batch
    chunks: tuple[PackedChunk, ...]
    parts: tuple[int, ...]

    def share(self) -> Share:
        """All of the step, to be dealt out."""
        tensors = {f.name: getattr(self.batch, f.name) for f in fields(Batch)}
        return Share.whole(self.chunks, tensors, parts=self.parts)

    def metrics(self, version: int) -> dict[str, float]:
        """Metrics of whole samples. Staleness is split into the versions that passed during sampling and those since."""
        rewards, trajectories = [s.reward for s in self.samples], [s.trajectory for s in self.samples]
        advantages_N = self.batch.advantages_N
        return {
            "trained_reward_mean": fmean(rewards),
            "trained_reward_std": pstdev(rewards),
            "trained_length_mean": float(self.batch.lengths_N.mean()),
            "advantage_abs_mean": float(advantages_N.abs().mean()),
            "advantage_abs_max": float(advantages_N.abs().max()),
            "staleness_sampling_mean": fmean(t.newest_version - t.oldest_version for t in trajectories),
            "staleness_queue_mean": fmean(version - t.newest_version for t in trajectories),
            "versions_per_sample": fmean(len(t.versions) for t in trajectories),
            "samples": float(len(self.samples)),
        }


def prepare(groups: Groups, objective: Objective, table: Training) -> Prepared:
    """Rewards, advantages, the tokens' weights, and packing. The groups are split into minibatches in turn: each gets old and new ones."""
    samples = tuple(judged for group in groups for judged in group)
    group_N = torch.tensor([g for g, group in enumerate(groups) for _ in group], dtype=torch.long)
    part_N = group_N % table.minibatches
    rewards_N = torch.tensor(trained_rewards(samples, table), dtype=torch.float64)
    advantages_N = batch_advantages(
        rewards_N, group_N, objective.advantage_std, baseline=objective.advantage_baseline
    ).float()
    lengths_N = torch.tensor([float(s.trajectory.response_tokens) for s in samples])
    weights_N = torch.zeros_like(lengths_N)
    for part in range(table.minibatches):
        inside = part_N == part
        weights_N[inside] = AGGREGATIONS[objective.aggregation](lengths_N[inside], objective.constant_length)
    # greedy samples carry log-probabilities of temperature 1
    temperatures_N = torch.tensor([s.trajectory.sampling.temperature or 1.0 for s in samples])
    heard = _heard(samples, groups, advantages_N, objective, table)
    chunks: list[PackedChunk] = []
    parts: list[int] = []
    for part in range(table.minibatches):
        made = pack([s for s in heard if part_N[s.row] == part], table.pack_tokens)
        chunks += made
        parts += [part] * len(made)
    return Prepared(samples, Batch(advantages_N, weights_N, lengths_N, temperatures_N), tuple(chunks), tuple(parts))


def _heard(
    samples: Sequence[Judged], groups: Groups, advantages_N: Tensor, objective: Objective, table: Training
) -> list[Sequenced]:
    """The samples that can contribute a gradient. An advantage of 0 contributes none, unless the objective pulls on every token.

    Nor does a truncated answer under ``mask_truncated``. Samples left out here still count in the means.
    """
    values = [gained for group in groups for gained in _step_values(group, objective)]
    silent = (advantages_N == 0).tolist()
    return [
        Sequenced.of(s.trajectory, row, values[row], s.teacher if objective.distill else None)
        for row, s in enumerate(samples)
        if (objective.regularises or not silent[row] or values[row] is not None)
        and not (table.mask_truncated and s.trajectory.finish_reason == "length")
    ]


def _step_values(group: Sequence[Judged], objective: Objective) -> list[FloatArray | None]:
    """What each token of the group's samples gains from the values of steps, by the weights of the mix; None where nobody valued steps."""
    names = {name: None for sample in group for name in sample.steps}
    if not names:
        return [None] * len(group)
    lengths = [len(sample.trajectory.tokens) for sample in group]
    total = [torch.zeros(length, dtype=torch.float64) for length in lengths]
    for name in names:
        steps = [sample.steps.get(name, ()) for sample in group]
        for sum_, sample, gained in zip(
            total, group, step_advantages(steps, lengths, objective.advantage_std), strict=True
        ):
            sum_ += sample.trajectory.rewards[name] * gained
    return [gained.numpy().astype(np.float32) for gained in total]
