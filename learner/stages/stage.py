"""What a stage is: its table of the run file and its runner in one class. A kind of your own is a file beside the run file. Imports no torch.

A stage is resumable: ``run`` is called again after a restart, with ``learner.progress`` where training stood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from broker.runfile import Table
from learner.model.loraconfig import LoraTable
from learner.tables import Training

if TYPE_CHECKING:
    from learner.learner import Learner

KINDS = {
    "sft": "learner.stages.sft:SftStage",
    "rl": "learner.stages.rl:RlStage",
    "evaluate": "learner.stages.evaluate:EvaluateStage",
    "reject": "learner.stages.reject:RejectStage",
}
"""The kinds of stages, by name. ``kind = "mine.py:Mine"`` takes one beside the run file."""


class Stage(Table):
    """Base of every stage. ``model``: begin from this directory or id, or from what an earlier stage of this name left."""

    kind: str = ""
    name: str = ""
    model: str = ""

    def sources(self) -> Mapping[str, str]:
        """The data that it reads: a source of ``[data]`` or an earlier stage's artefact, by the key that names it."""
        return {}

    def judges(self) -> Mapping[str, str]:
        """The rewarders that it needs, by the key that names each."""
        return {}

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
        """How the model of the run file is loaded where this is the first stage: ``pretrained``, or ``random`` weights of its shape."""
        return "pretrained"

    def total_steps(self) -> int:
        """Steps that it takes at most, for who watches; 0 if it counts none."""
        return 0

    def run(self, learner: Learner, index: int) -> bool:
        """Do the stage's work; False if the learner is to stop before its end."""
        raise NotImplementedError


def begin_with_model(learner: Learner, index: int, stage: Stage) -> None:
    """At the start of a stage that names a model of its own: its weights are the next policy version."""
    progress = learner.progress
    if stage.model and progress.stage != index:
        learner.replace_weights(index, learner.model_named(stage.model))
