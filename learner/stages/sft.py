"""``kind = "sft"``: supervised training. Its result is a kept checkpoint, which becomes the next policy version."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from broker.errors import RunFileError
from learner.buried import Buried
from learner.model.loraconfig import LoraTable
from learner.stages.stage import Stage, begin_with_model
from learner.tables import SupervisedTable, Training

if TYPE_CHECKING:
    from learner.learner import Learner


class SftStage(Stage, SupervisedTable):
    """Supervised training on ``data``; the other keys are those of ``SupervisedTable``."""

    def initial(self) -> str:
        return self.init

    def weights(self) -> dict[str, float]:
        """The sources of documents with their weights; a weight of 0 means the source's number of documents."""
        if isinstance(self.data, str):
            return {self.data: 1.0}
        return dict(self.data) if isinstance(self.data, dict) else dict.fromkeys(self.data, 0.0)

    def sources(self) -> Mapping[str, str]:
        return {"data" if isinstance(self.data, str) else f"data.{name}": name for name in self.weights()}

    def adapters(self, training: Training | None) -> LoraTable | None:
        return self.lora

    def pool_limits(self) -> Mapping[str, Any]:
        return {"lora": self.lora, "offload": self.offload}

    def total_steps(self) -> int:
        """The number of steps; 0 if it follows from ``epochs`` and the size of the data."""
        return self.steps if "steps" in self.model_fields_set or not self.epochs else 0

    def trains_by(self, learner: Learner) -> SupervisedTable:
        """The table for the trainer, with the values filled in that depend on data and model. Raises RunFileError for
        passes over endless data.
        """
        if self.total_steps():
            return self
        size = learner.sources.documents(self.data).size
        if size is None:
            raise RunFileError(f"[[stage]] {self.name} data = {self.data!r} has no end: set steps in place of epochs")
        return self.model_copy(update={"steps": max(1, math.ceil(self.epochs * size / self.documents_per_step))})

    def run(self, learner: Learner, index: int) -> bool:
        with learner.shifts.shift():
            return self._train(learner, index)

    def _train(self, learner: Learner, index: int) -> bool:
        with Buried(learner.run, index, learner.stop, learner.telemetry.log_away) as graves:
            return self._train_without(graves, learner, index)

    def _train_without(self, graves: Buried, learner: Learner, index: int) -> bool:
        """Train on all documents except those in ``graves``, where new odd documents are put too."""
        from learner.training.sft import SftTrainer

        resumed = learner.progress.stage == index and not learner.progress.closed
        if not resumed or not learner.extra:
            begin_with_model(learner, index, self)
        state, keep = learner.state, learner.config.learner.keep_checkpoints
        trainer = SftTrainer(
            state.model,
            state.tokenizer(),
            learner.sources.documents(self.data),
            self.trains_by(learner),
            learner.run.table.seed,
            state.placement,
            learner.sources.template(self.data) if isinstance(self.data, str) else None,
            graves,
        )
        if resumed and learner.extra:
            trainer.load_state_dict(learner.extra)
        for report in trainer.steps():
            learner.progress_in_stage(index, report)
            again = not report.last and trainer.read_again()
            if learner.stop or again or report.stage_step % self.checkpoint_every == 0:
                learner.save(keep, extra=trainer.state_dict())
            if learner.stop:
                return False
        path = learner.save(keep, name=learner.kept_name(index), extra=trainer.state_dict())
        learner.replace_weights(index, str(path.relative_to(learner.run.directory)))
        return True
