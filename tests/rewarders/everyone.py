"""Every rewarder that the package has, found by itself, and what each needs to be made: for the tests that none may escape, and the benchmark."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from test_instructions import CASES as INSTRUCTIONS

import rewarders

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny_model"
HERE = str(Path(__file__).parent)
"""Stands for the run file's directory: functions, rubrics and small judges lie in it."""
SAYS = {"use": "test_penalties.py:Says"}
FORMAT = "rewarders.format:Format"
COUNTDOWN = {"dataset": "countdown", "entry": {"answer": "1+2", "metadata": {"numbers": [1, 2], "target": 3}}}
ASKED = [{"id": name, "with": dict(given)} for name, given, *_ in INSTRUCTIONS]
SUMS = [{"input": f"{n} {n + 1}\n", "output": f"{2 * n + 1}\n"} for n in range(10)]


@dataclass(frozen=True)
class Needs:
    """What lies outside of a rewarder: a judging server at ``url``, and a place for models."""

    url: str
    place: Path

    @cached_property
    def classifier(self) -> str:
        return str(_model(self.place / "classifier", "AutoModelForSequenceClassification", num_labels=1))

    @cached_property
    def teacher(self) -> str:
        return str(_model(self.place / "teacher", "AutoModelForCausalLM"))


def _model(directory: Path, kind: str, **config: Any) -> Path:
    """A model of the tiny recipe's shape with random weights."""
    import torch
    import transformers

    from learner.model.load import save_tokenizer

    torch.manual_seed(0)
    made = getattr(transformers, kind).from_config(transformers.AutoConfig.from_pretrained(TINY, **config))
    made.save_pretrained(directory)
    save_tokenizer(str(TINY), directory)
    return directory


@dataclass(frozen=True)
class Case:
    """One way to make a rewarder: ``use`` and options as in the run file, the bounds of its values, and what its samples carry.

    ``examples`` are texts that a fuzz tries: fewer where one takes a process. ``taught``: it gives log-probabilities.
    """

    use: str
    options: Callable[[Needs], Mapping[str, Any]] = lambda needs: {}
    low: float = 0.0
    high: float = 1.0
    answer: str | None = "5"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    examples: int = 40
    taught: bool = False


def fixed(**options: Any) -> Callable[[Needs], Mapping[str, Any]]:
    return lambda needs: options


CASES: dict[str, Case] = {
    "math": Case("rewarders.math:MathAccuracy"),
    "math, loose": Case("rewarders.math:MathAccuracy", fixed(boxed=False, boxes="last", percent="either", tolerance=1e-3)),
    "choice": Case("rewarders.choice:Choice", answer="B", metadata={"options": {"A": "5", "B": "x^2+1", "C": "none"}}),
    "code": Case("rewarders.code:CodeTests", metadata={"tests": SUMS}, examples=8),
    "reasoning gym": Case("rewarders.reasoning_gym:ReasoningGym", fixed(timeout=60.0), metadata={"reasoning_gym": COUNTDOWN}, answer=None),
    "format": Case(FORMAT),
    "format, boxed": Case(FORMAT, fixed(boxed=True, opened=True)),
    "format, readable": Case(FORMAT, fixed(pattern="readable")),
    "language": Case("rewarders.language:LanguageConsistency", fixed(language="en", among=["en", "de"])),
    "language, by script": Case("rewarders.language:LanguageConsistency", fixed(language="Han")),
    "language, whole": Case("rewarders.language:LanguageConsistency", fixed(among=["en", "de", "ru", "uk"], sees="response")),
    "repetition": Case("rewarders.repetition:Repetition", low=-1, high=0),
    "overlong": Case("rewarders.length:Overlong", low=-1, high=0),
    "calibrated length": Case("rewarders.length:CalibratedLength", fixed(correct=SAYS), low=-1, high=0),
    "reflection": Case("rewarders.reflection:Reflection", high=float("inf")),
    "greeting": Case("rewarders.greeting:Greeting", answer="Ann"),
    "instructions": Case("rewarders.instructions:Instructions", answer=None, metadata={"instructions": ASKED}),
    "instructions, loosely": Case(
        "rewarders.instructions:Instructions", fixed(reward="fraction", loose=True), answer=None, metadata={"instructions": ASKED}, examples=15
    ),
    "outcome": Case("rewarders.outcome:Outcome"),
    "difficulty": Case("rewarders.comparison:Difficulty", fixed(correct=SAYS)),
    "diversity": Case("rewarders.comparison:Diversity"),
    "tournament": Case("rewarders.comparison:Tournament", fixed(judge_of_pairs={"use": "test_penalties.py:Longer"})),
    "ensemble": Case("rewarders.ensemble:Ensemble", fixed(members=[SAYS, FORMAT]), low=-1),
    "schedule": Case("rewarders.schedule:Schedule", fixed(judge_by=FORMAT)),
    "judge over HTTP": Case("rewarders.judge:Judge", lambda needs: {"url": f"{needs.url}/v1", "model": "m", "sees": "response"}, examples=15),
    "reward model over HTTP": Case("rewarders.reward_model:RewardServer", lambda needs: {"url": needs.url}, examples=15),
    "reward model": Case("rewarders.reward_model:RewardModel", lambda needs: {"model": needs.classifier, "device": "cpu"}, examples=15),
    "teacher": Case(
        "rewarders.teacher:Teacher", lambda needs: {"model": needs.teacher, "student": str(TINY), "device": "cpu"}, taught=True, examples=10
    ),
    "teacher over HTTP": Case("rewarders.teacher:TeacherServer", lambda needs: {"url": needs.url}, taught=True, examples=10),
    "function of TRL": Case("rewarders.adapters.trl:TrlFunction", fixed(function="trl_style.py:format_reward")),
    "rubric of verifiers": Case("rewarders.adapters.verifiers:VerifiersRubric", fixed(rubric="rubrics.py:SHORT"), high=2.0),
}  # fmt: skip


def rewarder_classes() -> set[str]:
    """``module:Class`` of every class of the package that takes a sample, or the samples of a group."""
    found = set()
    for info in pkgutil.walk_packages(rewarders.__path__, "rewarders."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name, kind in inspect.getmembers(module, inspect.isclass):
            if kind.__module__ == info.name and not getattr(kind, "_is_protocol", False) and _takes_samples(kind):
                found.add(f"{info.name}:{name}")
    return found


def _takes_samples(kind: type) -> bool:
    of_groups = getattr(kind, "per_group", False) and _first(getattr(kind, "judge", None)) == "samples"
    return of_groups or _first(vars(kind).get("__call__")) == "sample"


def _first(function: Any) -> str:
    """The name of the first argument behind ``self``."""
    names = list(inspect.signature(function).parameters) if callable(function) else []
    return names[1] if len(names) > 1 else ""
