"""``kind = "train_reward"``: trains a judge of replies, on pairs or on labelled replies. The policy does not change.

The result is an artefact of the stage's name: ``RUN/models/NAME``, which ``rewarders.reward_model:RewardModel`` loads
(``model = "{run}/models/NAME"``), and a record in the log with its accuracies. Source: DeepSeek-R1 (arXiv 2501.12948),
section 2.3.4.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from broker.messages import Artefact
from learner.buried import Buried, readable
from learner.data.files import Rows
from learner.data.preferences import read_row
from learner.stages.stage import Stage
from learner.tables import MAX_ODD, OptimizerTable

if TYPE_CHECKING:
    from learner.learner import Learner
    from learner.training.reward_model import RewardModelReport


class TrainRewardStage(Stage):
    """Trains on the rows of ``data`` (see ``learner.training.reward_model``), beginning with ``model``: a directory or
    id, or the model of an earlier stage of this name; without it, the run file's model. A step has ``batch`` rows; a
    share ``held_out`` of the prompts is not trained on.

    An interrupted stage starts again; once its record is in the log, it is not trained again. In a pool, only the first
    rank trains. Unreadable rows become dead letters, up to the share ``max_odd``.
    """

    reads_rows: ClassVar[bool] = True
    data: str = "preferences"
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=1024, ge=1)
    held_out: float = Field(default=0.1, ge=0, lt=1)
    centering: float = Field(default=0.01, ge=0)
    max_odd: float = Field(default=MAX_ODD, ge=0, le=1)
    optimizer: OptimizerTable = OptimizerTable(lr=1e-5, schedule="linear", warmup_steps=10)
    threads: int = Field(default=1, ge=1)

    def sources(self) -> Mapping[str, str]:
        return {"data": self.data}

    def run(self, learner: Learner, index: int) -> bool:
        if learner.artefact(self.name) is not None:
            return True
        out = learner.run.directory / "models" / self.name
        out.parent.mkdir(exist_ok=True)
        try:
            with learner.shifts.shift():
                report = self._train(learner, index, out)
        except _Stopped:
            return False
        learner.made(self.record(learner, index, out, report))
        return True

    def _train(self, learner: Learner, index: int, out: Path) -> RewardModelReport:
        import torch

        from learner.model.load import load_tokenizer
        from learner.training.reward_model import Settings, refuse_unwritable, train_reward_model
        from learner.training.sft import SftReport

        rows = learner.sources.rows(self.data)
        settings = Settings(
            self.epochs, self.batch, self.max_tokens, self.held_out, self.centering, learner.run.table.seed,
            str(learner.state.device), self.optimizer,
        )  # fmt: skip

        def on_step(step: int, steps: int, loss: float) -> None:
            learner.progress_in_stage(index, SftReport(step, {"loss": loss}, {}, step == steps))
            if learner.stop:
                raise _Stopped

        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            begin = self.begins_with(learner)
            tokenizer = load_tokenizer(begin)

            def written(number: int) -> Mapping[str, Any]:
                row = rows[number]
                refuse_unwritable(read_row(row, number), number, tokenizer)
                return row

            graves = Buried(learner.run, index, learner.stop, learner.telemetry.log_away)
            with graves, learner.telemetry.phase("read"):
                kept = readable(rows, written, self.data, self.max_odd, graves)
            return train_reward_model(begin, [row for _, row in kept], out, settings, on_step=on_step)
        finally:
            torch.set_num_threads(threads)

    @staticmethod
    def row(rows: Rows, number: int) -> Mapping[str, Any]:
        """Row ``number``. Raises DataError if the training cannot read it."""
        row = rows[number]
        read_row(row, number)
        return row

    def begins_with(self, learner: Learner) -> str:
        """The directory or id that the training begins with."""
        if not self.model:
            return learner.state.model_path
        named = learner.model_named(self.model)
        inside = learner.run.directory / named
        return str(inside) if inside.is_dir() else named

    def record(self, learner: Learner, index: int, out: Path, report: RewardModelReport) -> Artefact:
        """The record of the model for the log."""
        figures = {
            "accuracy": report.accuracy, "held_out_accuracy": report.held_out_accuracy, "majority": report.majority,
            "loss": report.losses[-1], "trained": report.trained, "held_out": report.held_out, "steps": report.steps,
        }  # fmt: skip
        return Artefact(
            name=self.name,
            stage=index,
            step=learner.progress.version,
            kind="model",
            path=str(out.relative_to(learner.run.directory)),
            sha256=weights_sha256(out),
            metrics={name: float(value) for name, value in figures.items() if value is not None},
            about={"rows": report.kind, "labels": report.labels, "data": self.data},
            created=time.time(),
        )


class _Stopped(Exception):
    """The learner is to stop while the model is being trained."""


def weights_sha256(directory: Path) -> str:
    """SHA-256 (hexadecimal) of the weight files (``*.safetensors``) of a model directory, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
