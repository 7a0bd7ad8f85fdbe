"""Supervised training as a loop that can stop after any step and continue bit for bit: cold start, distillation, base models.

The difficulty level of a source with a curriculum rises with the accuracy on the tagged tokens; with ``until_accuracy`` the
stage ends some steps after that accuracy is reached at the highest level, with a falling rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from broker.messages import IntArray
from learner.data.documents import DocumentTokenizer, Tokenized
from learner.data.mixture import InOrder, Reading
from learner.data.reading import DocumentReader, Found, Graveyard, Memory
from learner.data.source import DocumentSource
from learner.model import lora
from learner.model.load import set_gradient_checkpointing
from learner.model.positions import longest_trained
from learner.tables import SupervisedTable
from learner.training.batch import PackedChunk
from learner.training.logprobs import score
from learner.training.memory import Activations
from learner.training.optimizer import Optimizers, build_optimizer, learning_rate
from learner.training.packing import Sequenced, pack
from learner.training.placement import ALONE, Placement
from learner.training.residence import Residence
from learner.training.share import Share

SMOOTHING = 0.9  # factor of the accuracy's moving average
COOLED = 0.05  # share of the learning rate at the end of the cool-down


@dataclass(frozen=True, slots=True)
class SftReport:
    """One step: metrics by name, seconds by phase; ``last`` where the stage ends with it. ``tokens`` are those of its documents in order
    (none for one that was left out), of which ``first`` is the number of the first; ``places`` are the source and the row of each that was
    trained on."""

    stage_step: int
    metrics: dict[str, float]
    phases: dict[str, float]
    last: bool
    first: int = 0
    tokens: tuple[IntArray, ...] = ()
    places: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Curriculum:
    """How far the stage has come. ``reached`` is the step at which the wanted accuracy was reached (-1: not yet)."""

    step: int = 0
    level: float = 0.0
    accuracy: float = 0.0
    reached: int = -1

    def see(self, accuracy: float, stage: SupervisedTable) -> None:
        """Take in the accuracy of one step."""
        self.accuracy = SMOOTHING * self.accuracy + (1 - SMOOTHING) * accuracy
        if not stage.until_accuracy:
            self.level = 1.0
        elif self.accuracy > stage.level_up and self.level < 1.0:
            self.level = min(1.0, self.level + stage.level_step)
        elif self.reached < 0 and self.level >= 1.0 and self.accuracy >= stage.until_accuracy:
            self.reached = self.step

    def ended(self, stage: SupervisedTable) -> bool:
        return self.step >= stage.steps or (self.reached >= 0 and self.step - self.reached >= stage.cooldown_steps)

    def rate(self, stage: SupervisedTable) -> float:
        """Learning rate of the next step."""
        rate = learning_rate(stage.optimizer, self.step, stage.steps)
        if self.reached < 0 or not stage.cooldown_steps:
            return rate
        return rate * max(COOLED, 1 - (self.step - self.reached) / stage.cooldown_steps)


class SftTrainer:
    """Trains ``model`` in place on the documents of ``source``, ``documents_per_step`` at a time, in order of number.

    ``template`` holds options of the chat template. Documents that cannot be trained on go to ``graves``, and their step takes the others;
    DataError is raised once they are more than ``stage.max_odd``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        source: DocumentSource,
        stage: SupervisedTable,
        seed: int,
        placement: Placement = ALONE,
        template: Mapping[str, Any] | None = None,
        graves: Graveyard | None = None,
    ) -> None:
        self._model, self._stage, self._seed, self._placement = model, stage, seed, placement
        words = DocumentTokenizer(tokenizer, stage.until_tag, template)
        longest = longest_trained(model.config.get_text_config())
        if stage.max_tokens and (longest is None or stage.max_tokens <= longest[0]):
            longest = stage.max_tokens, "max_tokens"
        reading: Reading = source if isinstance(source, Reading) else InOrder("", source)
        self._reader = DocumentReader(reading, words, graves or Memory(), longest, stage.max_odd)
        table = stage.model_dump(include=set(SupervisedTable.model_fields))
        with placement.ordering("begin_sft", stage=table):
            if stage.lora is not None and not lora.is_adapted(model):
                lora.adapt(model, stage.lora, seed)
            set_gradient_checkpointing(model, stage.gradient_checkpointing)
            self._optimizers = build_optimizer(model, stage.optimizer, stage.offload != "none")
        self._residence = Residence(model, self._optimizers)
        self._at = Curriculum(level=0.0 if stage.until_accuracy else 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "curriculum": asdict(self._at), "reading": self._reader.state_dict(),
            "optimizers": self._optimizers.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._at = Curriculum(**state["curriculum"])
        self._reader.load_state_dict(state.get("reading", {}))
        with self._placement.ordering("resume_sft"):
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

    def read_again(self) -> bool:
        """Have documents that were left out, and whose dead letters somebody has replayed, join the next step. Where there are some (True),
        ``state_dict`` must be kept before that step."""
        return self._reader.plan_again(self._at.step)

    def _numbers(self) -> range:
        """Those of the documents of the next step."""
        first = self._at.step * self._stage.documents_per_step
        return range(first, first + self._stage.documents_per_step)

    def _step(self) -> SftReport:
        started = time.monotonic()
        numbers = self._numbers()
        found = self._reader.read(self._at.step, numbers, self._at.level)
        documents = found.documents
        if not documents:
            return self._empty_step(numbers.start, found)
        chunks = pack(
            [Sequenced.supervised(d.tokens, d.trained, row) for row, d in enumerate(documents)],
            self._stage.pack_tokens,
        )
        trained = sum(int(d.trained[1:].sum()) for d in documents)
        whole = Share.whole(chunks, marks=[_tagged(chunk, documents) for chunk in chunks])
        rate = self._at.rate(self._stage)
        share = self._placement.deal(whole, self._residence.device, "step_sft", trained=trained, rate=rate)
        packed = time.monotonic()
        self._residence.model_to_device()
        if self._stage.lora is not None and self._stage.lora.dropout:
            torch.manual_seed(self._seed + self._at.step)  # what is dropped follows from the step alone
        activations = Activations(self._model, self._residence.device)
        done = take_documents(self._model, self._optimizers, self._placement, share, trained, rate, activations)
        loss, hits, norm, seconds = done
        if self._stage.offload == "all":
            self._residence.model_to_host()
        wanted = sum(int(d.tagged[1:].sum()) for d in documents)
        self._at.step += 1
        self._at.see(hits / max(1, wanted), self._stage)
        metrics = {
            "loss": loss, "accuracy": self._at.accuracy, "level": self._at.level, "grad_norm": norm, "lr": rate,
            "tokens_trained": float(trained), "odd_documents": float(self._reader.odd),
            **activations.metrics(self._optimizers),
        }  # fmt: skip
        phases = {
            "pack": packed - started,
            "forward_backward": seconds,
            "optimizer": time.monotonic() - packed - seconds,
        }
        return SftReport(
            self._at.step, metrics, phases, self._at.ended(self._stage), numbers.start, found.tokens, found.places
        )

    def _empty_step(self, first: int, found: Found) -> SftReport:
        """A step all of whose documents are left out changes nothing but the count."""
        self._at.step += 1
        metrics = {"tokens_trained": 0.0, "odd_documents": float(self._reader.odd), "level": self._at.level}
        return SftReport(self._at.step, metrics, {}, self._at.ended(self._stage), first, found.tokens)


def take_documents(
    model: Any,
    optimizers: Optimizers,
    placement: Placement,
    share: Share,
    trained: int,
    rate: float,
    activations: Activations,
) -> tuple[float, float, float, float]:
    """The part of a step that every rank does: loss and backward of its chunks, then clip and step together with the others.

    Returns loss, hits on tagged tokens and gradient norm over all ranks, and the seconds until the gradient was there.
    """
    started = time.monotonic()
    sums = {"loss": 0.0, "hits": 0.0}
    for chunk, tagged_M in zip(placement.rounds(model, share.chunks), share.marks, strict=True):
        with activations.measured():
            scores = score(model, chunk)
            part = -scores.logprobs_M.sum() / max(1, trained)
        part.backward()
        sums["loss"] += float(part.detach())
        sums["hits"] += int(scores.correct_M[tagged_M].sum())
    sums, _ = placement.totals(sums, {})
    computed = time.monotonic()
    optimizers.set_lr(rate)
    return sums["loss"], sums["hits"], optimizers.step(), computed - started


def _tagged(chunk: PackedChunk, documents: Sequence[Tokenized]) -> torch.Tensor:
    """Which of the chunk's trained tokens carry the wanted tag, bool [M]."""
    own = zip(chunk.rows_N, chunk.prefixes_N, strict=True)
    of_tag = np.concatenate([np.append(documents[row].tagged[1:], False)[cut:] for row, (_, cut) in own])
    return torch.from_numpy(of_tag)[chunk.mask_T]
