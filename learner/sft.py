"""Supervised training as a loop that can stop after any step and go on bit for bit: cold start, distillation, base models.

The difficulty level of a source with a curriculum rises with the accuracy on the tagged tokens; with ``until_accuracy`` the
stage ends some steps after that accuracy is reached at the highest level, with a falling rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from learner import lora
from learner.config import SftStage
from learner.data.source import DocumentSource
from learner.documents import DocumentTokenizer, Tokenized
from learner.logprobs import score
from learner.memory import Activations
from learner.model import set_gradient_checkpointing
from learner.optimizer import build_optimizer, learning_rate
from learner.packing import Sequenced, pack
from learner.residence import Residence

SMOOTHING = 0.9  # of the accuracy's moving average
COOLED = 0.05  # share of the rate that the cool-down ends at


@dataclass(frozen=True, slots=True)
class SftReport:
    """One step: metrics by name, seconds by phase; ``last`` where the stage ends with it."""

    stage_step: int
    metrics: dict[str, float]
    phases: dict[str, float]
    last: bool


@dataclass(slots=True)
class Curriculum:
    """Where the stage stands. ``reached`` is the step at which the wanted accuracy was there (-1: not yet)."""

    step: int = 0
    level: float = 0.0
    accuracy: float = 0.0
    reached: int = -1

    def see(self, accuracy: float, stage: SftStage) -> None:
        """Take in the accuracy of one step."""
        self.accuracy = SMOOTHING * self.accuracy + (1 - SMOOTHING) * accuracy
        if not stage.until_accuracy:
            self.level = 1.0
        elif self.accuracy > stage.level_up and self.level < 1.0:
            self.level = min(1.0, self.level + stage.level_step)
        elif self.reached < 0 and self.level >= 1.0 and self.accuracy >= stage.until_accuracy:
            self.reached = self.step

    def ended(self, stage: SftStage) -> bool:
        return self.step >= stage.steps or (self.reached >= 0 and self.step - self.reached >= stage.cooldown_steps)

    def rate(self, stage: SftStage) -> float:
        """Learning rate of the next step."""
        rate = learning_rate(stage.optimizer, self.step, stage.steps)
        if self.reached < 0 or not stage.cooldown_steps:
            return rate
        return rate * max(COOLED, 1 - (self.step - self.reached) / stage.cooldown_steps)


class SftTrainer:
    """Trains ``model`` in place on the documents of ``source``, ``documents_per_step`` at a time, in order of number."""

    def __init__(self, model: Any, tokenizer: Any, source: DocumentSource, stage: SftStage, seed: int) -> None:
        self._model, self._source, self._stage, self._seed = model, source, stage, seed
        self._tokenizer = DocumentTokenizer(tokenizer, stage.until_tag)
        if stage.lora is not None and not lora.is_adapted(model):
            lora.adapt(model, stage.lora, seed)
        set_gradient_checkpointing(model, stage.gradient_checkpointing)
        self._optimizers = build_optimizer(model, stage.optimizer, stage.offload != "none")
        self._residence = Residence(model, self._optimizers)
        self._at = Curriculum(level=0.0 if stage.until_accuracy else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {"curriculum": asdict(self._at), "optimizers": self._optimizers.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._at = Curriculum(**state["curriculum"])
        self._optimizers.load_state_dict(state["optimizers"])

    def steps(self) -> Iterator[SftReport]:
        """Train until the stage ends, a report a step."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self._stage.threads)
        try:
            while not self._at.ended(self._stage):
                yield self._step()
        finally:
            torch.set_num_threads(threads)

    def _documents(self) -> list[Tokenized]:
        per_step, size = self._stage.documents_per_step, self._source.size
        first = self._at.step * per_step
        numbers = range(first, first + per_step)
        return [
            self._tokenizer.tokenize(self._source.document(n if size is None else n % size, self._at.level))
            for n in numbers
        ]

    def _step(self) -> SftReport:
        started = time.monotonic()
        documents = self._documents()
        chunks = pack(
            [Sequenced.supervised(d.tokens, d.trained, row) for row, d in enumerate(documents)],
            self._stage.pack_tokens,
            str(self._residence.device),
        )
        trained = sum(int(d.trained[1:].sum()) for d in documents)
        packed = time.monotonic()
        self._residence.model_to_device()
        if self._stage.lora is not None and self._stage.lora.dropout:
            torch.manual_seed(self._seed + self._at.step)  # what is dropped follows from the step alone
        activations = Activations(self._model, self._residence.device)
        loss, hits = 0.0, 0
        tagged = [d.tagged for d in documents]
        for chunk in chunks:
            with activations.measured():
                scores = score(self._model, chunk)
                part = -scores.logprobs_M.sum() / max(1, trained)
            part.backward()
            loss += float(part.detach())
            own = zip(chunk.rows_N, chunk.prefixes_N, strict=True)
            of_tag = np.concatenate([np.append(tagged[row][1:], False)[cut:] for row, (_, cut) in own])
            hits += int(
                scores.correct_M[torch.from_numpy(of_tag)[chunk.mask_T.cpu()].to(scores.correct_M.device)].sum()
            )
        computed = time.monotonic()
        rate = self._at.rate(self._stage)
        self._optimizers.set_lr(rate)
        norm = self._optimizers.step()
        if self._stage.offload == "all":
            self._residence.model_to_host()
        wanted = sum(int(t[1:].sum()) for t in tagged)
        self._at.step += 1
        self._at.see(hits / max(1, wanted), self._stage)
        metrics = {
            "loss": loss, "accuracy": self._at.accuracy, "level": self._at.level, "grad_norm": norm, "lr": rate,
            "tokens_trained": float(trained), **activations.metrics(self._optimizers),
        }  # fmt: skip
        phases = {
            "pack": packed - started,
            "forward_backward": computed - packed,
            "optimizer": time.monotonic() - computed,
        }
        return SftReport(self._at.step, metrics, phases, self._at.ended(self._stage))
