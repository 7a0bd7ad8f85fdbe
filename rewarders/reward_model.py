"""Rewards of a trained model: a Hugging Face sequence classifier in the rewarder's own process, or one that a server holds.

Both judge a whole group in few batches. What they see is a part of the response: for helpfulness the final summary, for harmlessness all of
it (R1, arXiv 2501.12948, section 2.3.4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from broker.calls import CallRefused, Server, sayable
from broker.conversations import conversation, conversation_tokens
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from broker.spelling import nearest
from rewarders.beside import is_made_later, located
from rewarders.parts import part
from rewarders.rewarder import GroupRewarder, Reward


def value_of(logits: Sequence[float], label: int, squash: bool) -> float:
    """The reward in a model's output: the probability of ``label`` among several, or the one score, with ``squash`` through a sigmoid.

    Raises MessageError if there is no such label, or a logit is not finite.
    """
    if not all(map(math.isfinite, logits)):
        raise MessageError(f"the model's logits are {logits}; they must be finite: load it with another dtype")
    if len(logits) == 1:
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, logits[0])))) if squash else logits[0]
    if not 0 <= label < len(logits):
        raise MessageError(f"label = {label}; the model has labels 0 to {len(logits) - 1}")
    highest = max(logits)
    shares = [math.exp(logit - highest) for logit in logits]
    return shares[label] / sum(shares)


def judge_parts(
    samples: Sequence[Trajectory],
    sees: str,
    unfinished: float,
    score: Callable[[list[tuple[Trajectory, str]]], list[float]],
) -> list[Reward]:
    """Rewards of a group: those without the part that is judged get ``unfinished``, the others are scored together."""
    texts = [part(sees)(sample.text, "").strip() for sample in samples]
    judged = [(sample, text) for sample, text in zip(samples, texts, strict=True) if text]
    scores = iter(score(judged) if judged else [])
    return [
        Reward(next(scores), f"score of the {sees}") if text else Reward(unfinished, f"no {sees} to judge")
        for text in texts
    ]


@dataclass(frozen=True, kw_only=True)
class RewardModel(GroupRewarder):
    """A sequence classifier of transformers at ``model`` (a directory or id): the reward is its score of the conversation with the reply.

    A model of one label gives a score, in (0, 1) by ``squash``; of several, the probability of ``label``. ``sees`` is ``summary``, ``thought``
    or ``response``; a response without it (an unfinished thought has no summary) gets ``unfinished``. ``device`` is ``auto``, ``cpu`` or a
    device of torch; ``dtype`` a type of torch. Conversations are cut to ``max_tokens`` at their beginning, ``batch`` of them are computed at
    a time. The model is loaded where the rewarder is made, or for the first sample where a stage makes it later
    (``{run}/models/NAME``); the worker's ``memory_mb`` must leave room for it.

    Raises RunFileError if there is no such model.
    """

    model: str
    sees: str = "summary"
    label: int = 1
    squash: bool = True
    unfinished: float = 0.0
    device: str = "auto"
    dtype: str = "auto"
    max_tokens: int = 4096
    batch: int = 16

    def __post_init__(self) -> None:
        part(self.sees)
        if self.max_tokens < 1 or self.batch < 1:
            raise MessageError(f"max_tokens = {self.max_tokens}, batch = {self.batch}; both must be at least 1")
        _ = self._place
        if not is_made_later(self.model):
            _ = self._loaded

    @cached_property
    def _place(self) -> str:
        """Where the model lies; only while the rewarder is made is it known for which run file."""
        return located(self.model)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model in evaluation mode, and its tokenizer."""
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._place)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                self._place, dtype=self.dtype, output_loading_info=True
            )
            model = model.to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFileError(f"model = {self.model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        if found["missing_keys"]:
            some = ", ".join(sorted(found["missing_keys"])[:3])
            raise RunFileError(
                f"model = {self.model!r} is no reward model: it lacks {some}; train one, or name another"
            )
        if model.config.pad_token_id is None:  # it tells where each conversation of a batch ends
            model.config.pad_token_id = (
                tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
            )
        return model, tokenizer

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward]:
        return judge_parts(samples, self.sees, self.unfinished, self.scores)

    def scores(self, judged: Sequence[tuple[Trajectory, str]]) -> list[float]:
        """The reward of each reply to the question of its sample."""
        _, tokenizer = self._loaded
        rows = [conversation_tokens(s.messages, text, tokenizer, self.max_tokens) for s, text in judged]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # little padding
        values = [0.0] * len(rows)
        for first in range(0, len(order), self.batch):
            places = order[first : first + self.batch]
            for place, logits in zip(places, self._logits([rows[i] for i in places]), strict=True):
                values[place] = value_of(logits, self.label, self.squash)
        return values

    def _logits(self, rows: list[list[int]]) -> list[list[float]]:
        import torch

        model, _ = self._loaded
        longest, pad = max(map(len, rows)), model.config.pad_token_id
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=model.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
        with torch.inference_mode():
            logits: list[list[float]] = model(input_ids=ids, attention_mask=mask).logits.float().tolist()
        return logits


@dataclass(frozen=True)
class Api:
    """How a server is asked for scores: the path, the key of the texts, and how its answer is read (a vector for each text, in order)."""

    path: str
    texts: str
    read: Callable[[Any], list[list[float]]]
    probabilities: bool
    softmax: bool = False
    """Whether it gives the softmax of a single score too, which is 1 whatever the score."""


def _embeddings(answer: Any) -> list[list[float]]:
    rows = answer if isinstance(answer, list) else [answer]
    return [_vector(row["embedding"]) for row in rows]


def _data(key: str) -> Callable[[Any], list[list[float]]]:
    return lambda answer: [_vector(row[key]) for row in sorted(answer["data"], key=lambda row: row["index"])]


def _vector(value: Any) -> list[float]:
    """A vector of numbers; of a matrix (a vector a token), the last row."""
    row = value[-1] if isinstance(value[-1], list) else value
    return [float(number) for number in row]


APIS = {
    "sglang": Api("/classify", "text", _embeddings, probabilities=False),
    "vllm": Api("/classify", "input", _data("probs"), probabilities=True),
    "openai": Api("/v1/classify", "input", _data("probs"), probabilities=True, softmax=True),
    "pooling": Api("/pooling", "input", _data("data"), probabilities=False),
}
"""SGLang's ``/classify`` (raw scores); vLLM's ``/classify``, which SGLang serves as ``/v1/classify``; vLLM's ``/pooling`` for reward models."""


@dataclass(frozen=True, kw_only=True)
class RewardServer(Server, GroupRewarder):
    """A reward model that a server holds: ``api`` is one of ``sglang``, ``vllm``, ``openai``, ``pooling``; a group is one request of ``batch`` texts each.

    ``tokenizer`` (a directory or id) gives the chat template that the conversation is written in; without one it is plain text. The other
    options are those of ``RewardModel`` and of ``Server``. Raises Outage where the server is away, CallRefused where its answer is of no use.
    """

    model: str = ""
    api: str = "sglang"
    sees: str = "summary"
    label: int = 1
    squash: bool = True
    unfinished: float = 0.0
    tokenizer: str = ""
    batch: int = 64

    def __post_init__(self) -> None:
        Server.__post_init__(self)
        part(self.sees)
        if self.api not in APIS:
            raise MessageError(
                f"api = {self.api!r}; it must be one of {', '.join(APIS)}{nearest(self.api, list(APIS))}"
            )
        _ = self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        if not self.tokenizer:
            return None
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.tokenizer)
        except (OSError, ValueError) as error:
            raise RunFileError(
                f"tokenizer = {self.tokenizer!r} cannot be loaded: {str(error).splitlines()[0]}"
            ) from error

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward]:
        return judge_parts(samples, self.sees, self.unfinished, self.scores)

    def scores(self, judged: Sequence[tuple[Trajectory, str]]) -> list[float]:
        """The reward of each reply to the question of its sample."""
        texts = [sayable(conversation(sample.messages, text, self._tokenizer)) for sample, text in judged]
        return [
            value
            for first in range(0, len(texts), self.batch)
            for value in self._ask(texts[first : first + self.batch])
        ]

    def _ask(self, texts: list[str]) -> list[float]:
        api = APIS[self.api]
        named: Mapping[str, Any] = {"model": self.model} if self.model else {}
        answer = self.caller.post(api.path, {**named, api.texts: texts})
        try:
            rows = api.read(answer)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CallRefused(f"{self.url}{api.path} gives no scores: {str(answer)[:200]}") from error
        if len(rows) != len(texts):
            raise CallRefused(f"{self.url}{api.path} gives {len(rows)} scores for {len(texts)} texts")
        for row in rows:
            if not all(map(math.isfinite, row)):
                raise CallRefused(
                    f"{self.url}{api.path} gives {row[:8]}; scores must be finite: serve it with another dtype"
                )
        return [self._value(row, api) for row in rows]

    def _value(self, row: list[float], api: Api) -> float:
        if not api.probabilities:
            return value_of(row, self.label, self.squash)
        if len(row) == 1 and api.softmax:
            raise CallRefused(
                f'{self.url}{api.path} gives the probability of one label, which is 1 for every reply: set api = "sglang" (or "pooling") '
                "for the model's raw score"
            )
        place = 0 if len(row) == 1 else self.label
        if not 0 <= place < len(row):
            raise MessageError(f"label = {self.label}; the model has labels 0 to {len(row) - 1}")
        return row[place]
