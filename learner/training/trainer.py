"""One optimizer step, a pure function of the state, the groups and the configuration. Bitwise repeatable on one CPU thread."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from learner.losses.table import objective_of
from learner.model.policy import PolicyWeights
from learner.tables import Training
from learner.training.optimizer import Optimizers, learning_rate
from learner.training.packing import packing_efficiency
from learner.training.placement import ALONE, Placement
from learner.training.prepared import Groups, prepare
from learner.training.residence import Residence
from learner.training.share import Share
from learner.training.step import Done, Step


@dataclass(slots=True)
class TrainState:
    """What a step changes. ``step`` is the policy version that the model holds, ``stage_step`` counts within the stage.

    ``placement``: over which ranks the model and the work are spread.
    """

    model: Any
    optimizers: Optimizers
    stage: int
    residence: Residence
    step: int = 0
    stage_step: int = 0
    reference: Any = None
    placement: Placement = ALONE

    @classmethod
    def begin(
        cls,
        model: Any,
        optimizers: Optimizers,
        stage: int,
        table: Training,
        device: Any = None,
        placement: Placement = ALONE,
    ) -> TrainState:
        """The state at the start of an RL stage; a reference policy is kept only where the objective asks for one.

        ``device`` is where the model computes (default: where it lies).
        """
        state = cls(model, optimizers, stage, Residence(model, optimizers, device=device), placement=placement)
        if objective_of(table.objective).kl:
            state.keep_reference()
        return state

    def keep_reference(self) -> None:
        """The policy as it is becomes the reference."""
        self.reference = self.placement.frozen(self.model)
        self.residence = Residence(self.model, self.optimizers, self.reference, self.residence.device)


@dataclass(frozen=True, slots=True)
class StepReport:
    """The result of a step: metrics by name, and seconds by phase."""

    metrics: dict[str, float]
    phases: dict[str, float] = field(default_factory=dict)


def train_step(state: TrainState, groups: Groups, table: Training, total_steps: int) -> StepReport:
    """Advantages, packing, log-probabilities, loss, backward, clip, step. Version ``state.step`` becomes ``state.step + 1``."""
    started = time.monotonic()
    prepared = prepare(groups, objective_of(table.objective), table)
    known = prepared.metrics(state.step)
    rate = learning_rate(table.optimizer, state.stage_step, total_steps)
    order = {"stage": state.stage, "step": state.step, "stage_step": state.stage_step, "rate": rate}
    share = state.placement.deal(prepared.share(), state.residence.device, "step", **order)
    packed = time.monotonic()

    done = take_share(state, share, table, rate)
    metrics = {
        **done.tally.result(),
        **known,
        **done.memory,
        "loss": done.loss,
        "grad_norm": done.grad_norm,
        "step_skipped": done.updates_skipped,
        "lr": rate,
        "packing_efficiency": packing_efficiency(prepared.chunks, table.pack_tokens),
        "groups": float(len(groups)),
    }
    phases = {
        "pack": packed - started,
        "forward_backward": done.forward_backward,
        "optimizer": time.monotonic() - packed - done.forward_backward,
    }
    return StepReport(metrics, phases)


def take_share(state: TrainState, share: Share, table: Training, rate: float) -> Done:
    """The part of a step that every rank does: loss and backward of its chunks, then clip and step together with the others."""
    step = Step(state, share, table)
    for minibatch in step.minibatches(step.pieces()):
        for piece, kept_M in step.rounds(minibatch):
            with step.activations.measured():
                scores = step.score(piece)
                tokens = step.token_losses(piece, kept_M, scores)
                loss = step.total(piece, tokens)
            loss.backward()
            step.count(piece, scores, tokens, loss)
        step.update(rate)
    return step.finish()


def state_sha256(model: torch.nn.Module) -> str:
    """The policy's fingerprint: names, shapes and bytes of its weights, in order (of an adapted model the merged ones)."""
    digest = hashlib.sha256()
    for name, tensor in PolicyWeights(model).items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
