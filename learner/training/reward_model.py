"""Trains a model that judges replies: on pairs of which one is preferred (Bradley-Terry), or on replies with a label.

The preference loss is -log sigmoid(r(chosen) - r(rejected)) (Ouyang et al., arXiv 2203.02155, equation 1; helpfulness in R1), the other one
the cross entropy of the label (safety in R1). What comes out is a directory of transformers' sequence classifiers, whole with its tokenizer, that
``rewarders.reward_model:RewardModel``, SGLang and vLLM load as it is. One device; a reward model that needs several is trained elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from broker.conversations import conversation_tokens
from broker.errors import DataError, RunFileError
from learner.data.preferences import Labelled, Pair, read_row
from learner.finite import Finite
from learner.model.load import load_tokenizer, save_tokenizer
from learner.tables import OptimizerTable
from learner.training.optimizer import build_optimizer, learning_rate

REPORT = "reward_model.json"
OPTIMIZER = OptimizerTable(lr=1e-5, schedule="linear", warmup_steps=10)


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is trained: ``batch`` rows a step, conversations of at most ``max_tokens`` (their end), the share ``held_out`` of the prompts not
    trained on. ``centering`` keeps the scores of pairs near 0 (the weight of the square of their sum; Eisenstein et al., arXiv 2312.09244)."""

    epochs: int = 1
    batch: int = 16
    max_tokens: int = 1024
    held_out: float = 0.1
    centering: float = 0.01
    seed: int = 0
    device: str = "auto"
    optimizer: OptimizerTable = OPTIMIZER


@dataclass(frozen=True, slots=True)
class RewardModelReport:
    """The result. An accuracy is the share of pairs in the right order, or of labels that are the most probable; None without rows.

    ``majority`` is the accuracy of always giving the same answer on the held-out rows: one half, or the share of the most frequent label.
    """

    kind: str
    labels: int
    trained: int
    held_out: int
    steps: int
    losses: tuple[float, ...]
    accuracy: float | None
    held_out_accuracy: float | None
    majority: float | None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Tokenised rows of one kind; a row has the token ids of one reply, or of the preferred and the other one."""

    ids: list[tuple[list[int], ...]]
    targets: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def train_reward_model(
    model_dir: str,
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    settings: Settings = Settings(),
    *,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> RewardModelReport:
    """Train the model at ``model_dir`` (a causal language model or a classifier) on ``rows``, and write it with its report to ``out``.

    A row has ``prompt`` (text) or ``messages`` (with role and content), and ``chosen`` and ``rejected``, or ``reply`` and ``label``; all rows are of
    one kind. ``on_step(step, steps, loss)`` is called after each step. ``out`` is written whole or not at all. The same rows, settings and seed give the same
    weights on one CPU thread. Raises DataError naming the row, RunFileError if there is no such model, RunFault where it does not stay finite.
    """
    read = [read_row(row, number) for number, row in enumerate(rows)]
    kinds = {type(row) for row in read}
    if len(kinds) != 1:
        raise DataError(
            f"{len(read)} rows of {len(kinds)} kinds; give pairs alone or labelled replies alone, and at least one"
        )
    labels = max(2, 1 + max(row.label for row in read if isinstance(row, Labelled))) if Labelled in kinds else 1
    kept, held = split(read, settings.held_out, settings.seed)
    tokenizer = load_tokenizer(model_dir)
    trainer = _Trainer(_load(model_dir, tokenizer, labels, settings), settings, pairs=Pair in kinds)
    train_rows, held_rows = (_tokenised(part, tokenizer, settings.max_tokens) for part in (kept, held))
    losses = trainer.train(train_rows, on_step)
    accuracy, held_accuracy = trainer.accuracy(train_rows), trainer.accuracy(held_rows)
    kind = "labels" if Labelled in kinds else "pairs"
    report = RewardModelReport(
        kind,
        labels,
        len(kept),
        len(held),
        len(losses),
        tuple(losses),
        accuracy,
        held_accuracy,
        _majority(held_rows, labels),
    )
    _write(trainer.model, model_dir, report, out)
    return report


def split(rows: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Rows to train on and rows held out: ``share`` of the *prompts*, chosen by their hash, so that no question is on both sides."""
    prompts = sorted(
        {row.messages for row in rows}, key=lambda messages: hashlib.sha256(repr((seed, messages)).encode()).digest()
    )
    many = min(len(prompts) - 1, max(1, round(share * len(prompts)))) if share else 0
    held = set(prompts[:many])
    return [row for row in rows if row.messages not in held], [row for row in rows if row.messages in held]


class _Trainer:
    """The model, and how it is stepped and asked."""

    def __init__(self, model: Any, settings: Settings, pairs: bool) -> None:
        self.model, self._settings, self._pairs = model, settings, pairs
        self._optimizers = build_optimizer(model, settings.optimizer)

    def train(self, rows: _Rows, on_step: Callable[[int, int, float], None]) -> list[float]:
        """The loss of each step."""
        settings = self._settings
        steps = settings.epochs * -(-len(rows) // settings.batch)
        losses: list[float] = []
        finite = Finite()
        self.model.train()
        for places in self._batches(len(rows)):
            loss = self._loss(rows, places)
            torch.autograd.backward(loss)
            self._optimizers.set_lr(learning_rate(settings.optimizer, len(losses), steps))
            finite.take(len(losses) + 1, self._optimizers.step())
            losses.append(float(loss.detach()))
            on_step(len(losses), steps, losses[-1])
        return losses

    def _batches(self, size: int) -> Iterator[list[int]]:
        order = random.Random(self._settings.seed)
        for _ in range(self._settings.epochs):
            places = list(range(size))
            order.shuffle(places)
            yield from (places[i : i + self._settings.batch] for i in range(0, size, self._settings.batch))

    def _loss(self, rows: _Rows, places: list[int]) -> Tensor:
        logits = self._logits([ids for place in places for ids in rows.ids[place]])
        if self._pairs:
            return preference_loss(logits.view(-1, 2), self._settings.centering)
        return F.cross_entropy(logits, torch.tensor([rows.targets[p] for p in places], device=logits.device))

    @torch.no_grad()
    def accuracy(self, rows: _Rows) -> float | None:
        """The share of rows that the model decides as they say. A tie of a pair is wrong."""
        if not rows:
            return None
        self.model.eval()
        right = 0
        for first in range(0, len(rows), self._settings.batch):
            places = range(first, min(len(rows), first + self._settings.batch))
            logits = self._logits([ids for place in places for ids in rows.ids[place]])
            if self._pairs:
                scores_B2 = logits.view(-1, 2)
                right += int((scores_B2[:, 0] > scores_B2[:, 1]).sum())
            else:
                right += sum(int(a) == rows.targets[p] for a, p in zip(logits.argmax(-1), places, strict=True))
        return right / len(rows)

    def _logits(self, conversations: list[list[int]]) -> Tensor:
        """float32 ``[conversations, labels]``; the model reads each at its last token."""
        longest, pad = max(map(len, conversations)), self.model.config.pad_token_id
        device = self.model.device
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in conversations], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in conversations], device=device)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits.float()


def preference_loss(scores_B2: Tensor, centering: float) -> Tensor:
    """Mean of -log sigmoid(chosen - rejected) over the pairs, ``[B, 2] -> []``, and ``centering`` times the mean square of their sums."""
    chosen_B, rejected_B = scores_B2.unbind(-1)
    return -F.logsigmoid(chosen_B - rejected_B).mean() + centering * (chosen_B + rejected_B).square().mean()


def _load(model_dir: str, tokenizer: Any, labels: int, settings: Settings) -> Any:
    """The model with a head of ``labels`` outputs, drawn by the seed where it has none yet."""
    torch.manual_seed(settings.seed)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    try:
        model = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=labels, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunFileError(f"model = {model_dir!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if model.config.pad_token_id is None:
        model.config.pad_token_id = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
    return model.to(device)


def refuse_unwritable(row: Pair | Labelled, number: int, tokenizer: Any) -> None:
    """Raises DataError for a conversation that the model's chat template or its tokenizer does not take."""
    for reply in (row.chosen, row.rejected) if isinstance(row, Pair) else (row.reply,):
        try:
            conversation_tokens(row.messages, reply, tokenizer, 1)
        except Exception as error:  # half of a surrogate pair, say; a tokenizer raises what it likes
            raise DataError(f"row {number} cannot be written in tokens: {str(error)[:300]}") from error


def _tokenised(rows: Sequence[Pair | Labelled], tokenizer: Any, longest: int) -> _Rows:
    def ids(row: Pair | Labelled, reply: str) -> list[int]:
        return conversation_tokens(row.messages, reply, tokenizer, longest)

    replies = [(r.chosen, r.rejected) if isinstance(r, Pair) else (r.reply,) for r in rows]
    return _Rows(
        [tuple(ids(row, reply) for reply in given) for row, given in zip(rows, replies, strict=True)],
        [row.label if isinstance(row, Labelled) else 0 for row in rows],
    )


def _majority(rows: _Rows, labels: int) -> float | None:
    if not rows:
        return None
    return 0.5 if labels == 1 else max(rows.targets.count(label) for label in range(labels)) / len(rows)


def save_classifier(model: Any, tokenizer_source: str, directory: Path) -> None:
    """Write a classifier as a directory of transformers, with a bias of 0 where its head has none.

    Servers give the head a bias that transformers' classes have not, and leave it as it was drawn where the file says nothing
    (SGLang's Qwen2 and Qwen3 do): scores would be off by another number after each start.
    """
    weights, head = dict(model.state_dict()), getattr(model, "score", None)
    if isinstance(head, torch.nn.Linear) and head.bias is None:
        weights["score.bias"] = torch.zeros(head.out_features, dtype=head.weight.dtype)
    model.save_pretrained(directory, state_dict=weights)
    save_tokenizer(tokenizer_source, directory)


def _write(model: Any, model_dir: str, report: RewardModelReport, out: Path) -> None:
    """The directory, written beside and renamed."""
    beside = out.with_name(out.name + ".partial")
    shutil.rmtree(beside, ignore_errors=True)
    save_classifier(model, model_dir, beside)
    (beside / REPORT).write_text(json.dumps(asdict(report), indent=1))
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)
