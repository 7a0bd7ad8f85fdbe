"""Rubrics of the package ``verifiers`` (PyPI, 0.1.10 to 0.3), unchanged: any ``Rubric``, ``RubricGroup`` or class made of them.

A rubric of its own accord turns whatever its functions raise into a reward of 0. Here a failure is an error, never a reward: the functions
are watched, and what one raised is raised again when the rubric is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from broker.verifiers import watch
from rewarders.adapters.columns import completion, prompt, row
from rewarders.beside import place
from rewarders.rewarder import GroupRewarder, Reward


@dataclass(frozen=True, kw_only=True)
class VerifiersRubric(GroupRewarder):
    """``rubric`` is ``module:name`` (or ``file.py:name`` of a file beside the run file): a rubric, or what makes one when it is called with ``arguments``.

    The state of each sample has its messages as ``prompt``, what was said as ``completion``, its reference as ``answer``, its kind as
    ``task`` and its metadata as ``info``. Raises RunFileError if there is no such rubric or ``verifiers`` is not installed.
    """

    rubric: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    _raised: list[BaseException] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _ = self._rubric

    @cached_property
    def _rubric(self) -> Any:
        try:
            from verifiers import Rubric
        except ImportError as error:  # also a release from 0.4 on, which has no rubrics any more
            raise RunFileError(
                f"rewarders.adapters.verifiers needs verifiers below 0.4: pip install 'headrace[verifiers]' ({error})"
            ) from error
        found = plugins.load(self.rubric, place(), "rubric")
        if not isinstance(found, Rubric):
            found = plugins.make(found, self.arguments, f"rubric = {self.rubric!r}")
        if not isinstance(found, Rubric):
            raise RunFileError(
                f"rubric = {self.rubric!r} is a {type(found).__name__}; it must be a Rubric of verifiers, or make one"
            )
        watch(found, self._raised)
        return found

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward]:
        self._raised.clear()
        states = [_state(sample) for sample in samples]
        asyncio.run(self._score(states))
        if self._raised:
            raise self._raised[0]
        return [Reward(_number(state), _metrics(state)) for state in states]

    async def _score(self, states: list[dict[str, Any]]) -> None:
        await self._rubric.score_group(states)


def _state(sample: Trajectory) -> dict[str, Any]:
    """What a rubric looks at, as its own environments leave it behind."""
    info = row(sample, "answer")
    return {
        "prompt": prompt(sample), "completion": completion(sample), "answer": sample.answer or "", "task": sample.kind or "default",
        "info": info, "example_id": sample.group_id, "is_completed": True, "is_truncated": sample.finish_reason == "length",
        "stop_condition": sample.finish_reason, "trajectory": [], "reward": None, "advantage": None, "metrics": None, "error": None,
        "timing": {"generation_ms": 0.0, "scoring_ms": 0.0, "total_ms": 0.0, "start_time": time.time()},
    }  # fmt: skip


def _number(state: Mapping[str, Any]) -> float:
    value = state["reward"]
    if not isinstance(value, int | float):
        raise MessageError(f"the rubric left the reward {value!r}; it must be a number")
    return float(value)


def _metrics(state: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in (state["metrics"] or {}).items())
