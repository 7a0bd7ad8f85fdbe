"""What a stage is: its table of the run file and its runner in one class. A kind of your own is a file beside the run file. Imports no torch.

A stage is resumable: ``run`` is called again after a restart, with ``learner.progress`` where training stood.
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
"""The kinds of stages, by name. ``kind = "mine.py:Mine"`` takes one beside the run file."""


class Stage(Table):
    """Base of every stage. ``model``: begin from this directory or id, or from what an earlier stage of this name left.

    ``keep_model``: leave the model in ``RUN/checkpoints/stage-INDEX-NAME`` for good, as supervised stages and those that a later stage begins
    from always do (for a teacher, say).
    """

    reads_rows: ClassVar[bool] = False
    """Whether it reads its data row by row, whatever the columns, and asks nothing of them."""
    kind: str = ""
    name: str = ""
    model: str = ""
    keep_model: bool = False

    def sources(self) -> Mapping[str, str]:
        """The data that it reads: a source of ``[data]`` or an earlier stage's artefact, by the key that names it."""
        return {}

    def mixes(self) -> tuple[Mapping[str, float], ...]:
        """The reward mixes that it names itself, beside those of ``[run]`` and ``[data]``."""
        return ()

    def judges(self) -> Mapping[str, str]:
        """The rewarders that it needs, by the key that names each."""
        return {}

    def check(self, base: Path) -> None:
        """Look at what it plugs in, without running any of it; ``base`` is the run file's directory. Raises RunFileError."""

    def training(self, resolve: Callable[[Mapping[str, Any]], Training]) -> Training | None:
        """What its reinforcement trains by: ``resolve(own keys)`` is ``[learner]`` with them in place. None: it trains by none."""
        return None

    def adapters(self, training: Training | None) -> LoraTable | None:
        """The adapters that the model carries in it."""
        return training.lora if training is not None else None

    def pool_limits(self) -> Mapping[str, Any]:
        """Options of its own, by key, that a learner pool has to look at (``lora``, ``offload``)."""
        return {}

    def initial(self) -> str:
        """``random``: the stage begins from random weights of its ``model``'s shape (or of the run file's), other ones in each stage. Else the
        first stage begins from the run file's model, and a later one from what the stage before it left."""
        return "pretrained"

    def total_steps(self) -> int:
        """Steps that it takes at most, for who watches; 0 if it counts none."""
        return 0

    def run(self, learner: Learner, index: int) -> bool:
        """Do the stage's work; False if the learner is to stop before its end."""
        raise NotImplementedError


def begin_with_model(learner: Learner, index: int, stage: Stage) -> None:
    """At the start of a stage that names a model of its own, or begins anew from random weights: they are the next policy version."""
    at = learner.progress
    if at.stage == index and (
        index or at.version or at.stage_step
    ):  # a run that is new is in its first stage, and has not begun it
        return
    if stage.initial() == "random" and (index or stage.model):
        shape = learner.model_named(stage.model) if stage.model else ""
        learner.replace_weights(index, random_weights(learner.run.table.seed + index, shape))
    elif stage.model:
        learner.replace_weights(index, learner.model_named(stage.model))


def random_weights(seed: int, shape: str = "") -> str:
    """How a manifest orders random weights of the shape at ``shape``, or of the run file's model (see ``LearnerState.replace``)."""
    return f"{RANDOM}{seed}" + (f":{shape}" if shape else "")
