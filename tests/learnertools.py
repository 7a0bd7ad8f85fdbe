"""What tests of training share: judged groups without a run, and an executor that takes them as manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from samples import groups_of

from broker.messages import (
    GroupRef,
    Manifest,
    Position,
    StepResult,
)
from broker.runfile import RunFile
from learner.config import LearnerConfig
from learner.planning.groups import Judged
from learner.training.executor import execute
from learner.training.logprobs import score
from learner.training.packing import Sequenced, pack
from learner.training.state import LearnerState


def judged_groups(count: int, seed: int = 0, longest: int = 40) -> tuple[tuple[Judged, ...], ...]:
    """Groups of four samples of one prompt each, with rewards of 1 and 0 in turn."""
    groups = groups_of(count, seed, longest)
    return tuple(tuple(Judged(sample, float(i % 2)) for i, (sample, *_) in enumerate(group)) for group in groups)


def executor_of(model: Path, directory: Path, learner: Mapping[str, Any], stages: int = 1) -> LearnerState:
    """An executor of ``stages`` RL stages with these options of ``[learner]``, begun on the weights in ``model``."""
    executor = unstarted(model, directory, learner, stages)
    executor.start("pretrained")
    return executor


def unstarted(model: Path, directory: Path, learner: Mapping[str, Any], stages: int = 1) -> LearnerState:
    """The same before it holds a model."""
    torch.set_num_threads(1)
    options = {"objective": "topr", "pack_tokens": 128, "optimizer": {"lr": 1e-3}, "device": "cpu", **learner}
    stage = [{"kind": "rl", "name": f"rl{i}", "steps": 20} for i in range(stages)]
    file = RunFile({"learner": options, "stage": stage}, directory, directory / "run.toml")
    return LearnerState(LearnerConfig(file), str(model), 5, directory)


def take(executor: LearnerState, steps: int, stage: int = 0) -> list[StepResult]:
    """Execute the next ``steps`` manifests of ``stage``; each step has groups of its own."""
    out = []
    for _ in range(steps):
        version = executor.progress.version + 1
        manifest = Manifest(version, stage, "step", (GroupRef("d-0@0", Position(0, 0), ()),))
        result = execute(executor, manifest, judged_groups(2, version), version)
        assert result is not None
        out.append(result)
    return out


def close(executor: LearnerState, stage: int = 0) -> None:
    version = executor.progress.version
    assert execute(executor, Manifest(version, stage, "close"), (), version) is None


@torch.no_grad()
def mean_logprob(model: Any, groups: tuple[tuple[Judged, ...], ...], rewarded: bool) -> float:
    """Mean log-probability of the tokens of the samples with (or without) a reward."""
    samples = [j.trajectory for group in groups for j in group if bool(j.reward) == rewarded]
    chunks = pack([Sequenced.of(t, i) for i, t in enumerate(samples)], 4096)
    return float(torch.cat([score(model, chunk).logprobs_M for chunk in chunks]).mean())
