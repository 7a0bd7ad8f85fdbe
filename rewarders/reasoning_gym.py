"""reasoning-gym's own scorers as a rewarder: each of its tasks knows how to judge an answer.

They run in a warm process under a bound of processor time and memory: what the answer does to it makes it wrong, with the cause.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.errors import HeadraceError, RunFileError
from broker.faults import Failed
from broker.messages import Trajectory
from rewarders.answers.numbers import number
from rewarders.answers.surface import INVISIBLE, normal
from rewarders.answers.warm import Ended, Warm
from rewarders.rewarder import Reward
from rewarders.text import answer_span, boxes, spoken

LOAD_SECONDS = 60.0
SHOWN = 400


@dataclass(frozen=True)
class ReasoningGym:
    """The score in [0, 1] that the task itself gives to the answer (in answer tags, boxed, or all that follows the thinking).

    Abstains on samples that carry no reasoning-gym entry in ``metadata["reasoning_gym"]`` (``{"dataset", "entry", "tuples"}``). ``partial``:
    the scores between 0 and 1 that many tasks give count; otherwise only the full one does. Answers longer than ``max_length`` characters
    score 0 unread. ``cpu_seconds`` and ``memory_mb`` bound the scoring of one answer: what exceeds them scores 0. ``timeout`` (of the clock) is
    for a machine that is too busy, which raises Failed. Raises HeadraceError for an entry that its scorer cannot read or a scorer that cannot
    be loaded, RunFileError if reasoning-gym is not installed.
    """

    max_length: int = 4096
    partial: bool = True
    timeout: float = 8.0
    cpu_seconds: float = 1.0
    memory_mb: int = 4096
    _scorers: list[Warm] = field(default_factory=list, init=False, repr=False, compare=False)
    _loaded: set[tuple[int, str]] = field(default_factory=set, init=False, repr=False, compare=False)

    def warm_up(self) -> None:
        """Load reasoning-gym before the first sample. Raises RunFileError if it is not installed."""
        self._warm().start()

    def __call__(self, sample: Trajectory) -> Reward | None:
        carried = sample.metadata.get("reasoning_gym")
        if not isinstance(carried, dict):
            return None
        task, entry = parts(carried)
        answer = final(sample.text)
        if answer is None or len(answer) > self.max_length:
            return Reward(0.0, "no single answer of acceptable length")
        shown = f"{task}: {answer[:60]!r}"
        try:
            told = self.scored(task, entry, answer, list(carried.get("tuples", ())))
        except Ended as ended:
            if ended.by_machine:
                raise Failed("error", f"the machine is too busy to score answers: {ended}") from ended
            return Reward(0.0, f"{shown}: {ended}", canonical(answer), ended.cause)
        if "broken" in told:
            raise HeadraceError(
                f"reasoning-gym's {task} cannot score its own answer: {told['broken']}; the entry in the metadata is not what the task made"
            )
        if "refused" in told:
            return Reward(0.0, f"{shown}: {told['refused']}", canonical(answer))
        score = float(told["score"])
        own = entry.get("answer")
        return Reward(
            score if self.partial or score == 1.0 else 0.0,
            shown,
            canonical(str(own) if score == 1.0 and own is not None else answer),
        )

    def scored(self, task: str, entry: Mapping[str, Any], answer: str, tuples: list[str]) -> dict[str, Any]:
        """What the scorer says. Raises Ended if the answer was the end of its process, HeadraceError if the scorer is not available."""
        warm = self._warm()
        if (warm.restarts, task) not in self._loaded:
            self._load(warm, task)
        told = warm.ask({"task": task, "answer": answer, "entry": entry, "tuples": tuples})
        if not isinstance(told, dict):
            raise HeadraceError(f"reasoning-gym's {task} cannot read the entry in the sample's metadata")
        return told

    def _load(self, warm: Warm, task: str) -> None:
        """Make the scorer of a task ready. Raises HeadraceError if that fails, which no answer is to blame for."""
        try:
            loaded = warm.ask({"load": task}, LOAD_SECONDS)
        except Ended as ended:
            raise HeadraceError(
                f"reasoning-gym's scorer for the task {task!r} cannot be loaded: {ended}; raise memory_mb = {self.memory_mb}"
            ) from ended
        if loaded is None:
            raise HeadraceError(f"reasoning-gym has no scorer for the task {task!r} of the sample's metadata")
        self._loaded.add((warm.restarts, task))

    def _warm(self) -> Warm:
        if not self._scorers:
            if importlib.util.find_spec("reasoning_gym") is None:
                raise RunFileError("rewarders.reasoning_gym needs reasoning-gym: pip install 'headrace[gym]'")
            self._scorers.append(
                Warm(
                    "rewarders.logic:factory",
                    cpu_seconds=self.cpu_seconds,
                    timeout=self.timeout,
                    memory_mb=self.memory_mb,
                )
            )
        return self._scorers[0]


def parts(carried: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The task and its entry. Raises HeadraceError where one is missing."""
    task, entry = carried.get("dataset"), carried.get("entry")
    if not isinstance(task, str) or not isinstance(entry, Mapping) or not isinstance(entry.get("metadata"), Mapping):
        raise HeadraceError(
            f"metadata['reasoning_gym'] has the fields {sorted(carried)}; it must hold dataset and entry as the task made them"
        )
    if task == "composite":
        task = str(entry["metadata"].get("source_dataset", task))
    return task, entry


def final(text: str) -> str | None:
    """What is to be scored; None if the response gives nothing, or several things that differ."""
    said = spoken(text)
    span = answer_span(said[-1]) if said else None
    held = boxes(span) if span is not None else None
    if span is None or held is None:
        return None
    if held:
        return held[0].strip() if len({h.strip() for h in held}) == 1 else None
    return span.strip()


def canonical(answer: str) -> str:
    """Numbers as fractions, all else with single blanks."""
    if len(answer) <= SHOWN:
        value = number(normal(answer.translate(INVISIBLE)))
        if value is not None:
            return str(value)
    return " ".join(answer.split())[:SHOWN]
