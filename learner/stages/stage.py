"""The base class of stages: a stage's table in the run file and its runner. Your own kind goes beside the run file.

A stage is resumable: ``run`` is called again after a restart, with ``learner.progress`` at the point that training had
reached. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from broker.runfile import Table
from learner.model.loraconfig import LoraTable
from learner.tables import RANDOM, Training

if TYPE_CHECKING:
    from learner.learner import Learner

KINDS = {
    "sft": "learner.stages.sft:SftStage",
    "distill": "learner.stages.distill:DistillStage",
    "rl": "learner.stages.rl:RlStage",
    "evaluate": "learner.stages.evaluate:EvaluateStage",
    "reject": "learner.stages.reject:RejectStage",
    "rewrite": "learner.stages.rewrite:RewriteStage",
    "train_reward": "learner.stages.train_reward:TrainRewardStage",
}
"""The kinds of stages, by name. ``kind = "mine.py:Mine"`` takes a class from a file beside the run file."""


class Stage(Table):
    """Base of every stage. ``model``: begin from this directory or id, or from the model that the earlier stage of this
    name left.

    ``keep_model``: keep the model in ``RUN/checkpoints/stage-INDEX-NAME`` for good (as a teacher, say). Supervised
    stages and stages from which a later one begins always do.
    """

    reads_rows: ClassVar[bool] = False
    """Whether it reads its data as plain rows, with columns of its own, instead of prompts or documents."""
    kind: str = ""
    name: str = ""
    model: str = ""
    keep_model: bool = False

    def sources(self) -> Mapping[str, str]:
        """The data that it reads, by the key that names it: a source of ``[data]``, or an earlier stage's artefact."""
        return {}

    def mixes(self) -> tuple[Mapping[str, float], ...]:
        """Its own reward mixes, in addition to those of ``[run]`` and ``[data]``."""
        return ()

    def judges(self) -> Mapping[str, str]:
        """The rewarders that it needs, by the keys that name them."""
        return {}

    def check(self, base: Path) -> None:
        """Check its plug-ins without running them; ``base`` is the run file's directory. Raises RunFileError."""

    def training(self, resolve: Callable[[Mapping[str, Any]], Training]) -> Training | None:
        """The settings of its reinforcement learning; None if it has none. ``resolve(keys)`` is ``[learner]``
        overridden by ``keys``.
        """
        return None

    def adapters(self, training: Training | None) -> LoraTable | None:
        """The adapters that the model has in this stage; None if it has none."""
        return training.lora if training is not None else None

    def pool_limits(self) -> Mapping[str, Any]:
        """Its own options that a learner pool may not support, by key (``lora``, ``offload``)."""
        return {}

    def initial(self) -> str:
        """``random``: the stage begins from random weights in the shape of its ``model`` (or of the run file's),
        different in each stage.

        Otherwise (``pretrained``) it begins from its ``model``, or without one from the run file's model in the first
        stage and from the previous stage's model in a later one.
        """
        return "pretrained"

    def total_steps(self) -> int:
        """The largest number of steps that it takes, for displays, checks and schedules of the learning rate; 0 if it
        does not count steps.
        """
        return 0

    def is_reached(self, learner: Learner) -> bool:
        """Whether it has reached an aim that ends it before its last step."""
        return False

    def run(self, learner: Learner, index: int) -> bool:
        """Do the stage's work, with its number ``index``; returns False if the learner is to stop before its end."""
        raise NotImplementedError


def begin_with_model(learner: Learner, index: int, stage: Stage) -> None:
    """At the start of a stage with a ``model`` of its own or random weights, make them the next policy version. Does
    nothing on a resume.
    """
    at = learner.progress
    if at.stage == index and (
        index or at.version or at.stage_step
    ):  # the stage has begun already; a new run is at stage 0 too, but at version 0 and step 0
        return
    if stage.initial() == "random" and (index or stage.model):
        shape = learner.model_named(stage.model) if stage.model else ""
        learner.replace_weights(index, random_weights(learner.run.table.seed + index, shape))
    elif stage.model:
        learner.replace_weights(index, learner.model_named(stage.model))


def random_weights(seed: int, shape: str = "") -> str:
    """The name of random weights in a manifest: in the shape of the model at ``shape``, or of the run file's (see
    ``LearnerState.replace``).
    """
    return f"{RANDOM}{seed}" + (f":{shape}" if shape else "")
