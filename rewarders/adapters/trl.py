"""Reward functions in the style of TRL and open-r1, unchanged: ``f(completions, **columns) -> list[float | None]``.

The function gets ``prompts``, ``completions``, ``completion_ids`` and the columns of the data set, each a list with one entry a sample. None
means that it does not apply: an abstention. A function that is a coroutine is waited for.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from broker.spelling import nearest
from rewarders.adapters.columns import completion, prompt, row
from rewarders.beside import place
from rewarders.rewarder import GroupRewarder, Reward


@dataclass(frozen=True, kw_only=True)
class TrlFunction(GroupRewarder):
    """``function`` is ``module:name``, or ``file.py:name`` of a file beside the run file. With ``factory`` it is called with ``arguments`` and returns the
    function (``get_cosine_scaled_reward`` of open-r1); else they are passed on in every call.

    ``conversational``: completions are lists of messages, as in both projects' recipes; otherwise plain text, and so are prompts. The
    reference is the column ``answer_column``; metadata gives the other columns (None where a sample lacks one). Raises RunFileError if there
    is no such function, MessageError if it returns something else than a number or None for each sample.
    """

    function: str
    answer_column: str = "solution"
    conversational: bool = True
    factory: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _ = self._function

    @cached_property
    def _function(self) -> Any:
        found = plugins.load(self.function, place(), "function")
        if self.factory:
            found = plugins.make(found, self.arguments, f"function = {self.function!r}")
        if not callable(found):
            raise RunFileError(f"function = {self.function!r} is no function")
        return found

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward | None]:
        answer = self._function(**self._accepted(self.columns(samples)))
        values = asyncio.run(_waited(answer)) if inspect.isawaitable(answer) else answer
        if isinstance(values, str) or not hasattr(values, "__len__") or len(values) != len(samples):
            raise MessageError(
                f"{self.function} returned {str(values)[:100]}; it must be a list of {len(samples)} numbers"
            )
        return [None if value is None or _is_nan(value) else Reward(value) for value in values]

    def columns(self, samples: Sequence[Trajectory]) -> dict[str, list[Any]]:
        """What the function is called with."""
        rows = [row(sample, self.answer_column) for sample in samples]
        names = dict.fromkeys(name for one in rows for name in one)
        text = self.conversational
        return {
            **{name: [one.get(name) for one in rows] for name in names},
            "prompts": [prompt(s) if text else "\n\n".join(m.content for m in s.messages) for s in samples],
            "completions": [completion(s) if text else s.text for s in samples],
            "completion_ids": [s.tokens[s.mask()].tolist() for s in samples],
        }

    def _accepted(self, columns: dict[str, Any]) -> dict[str, Any]:
        """A function without ``**kwargs`` gets the columns that it names."""
        given = {**columns, **({} if self.factory else self.arguments)}
        parameters = inspect.signature(self._function).parameters.values()
        for p in parameters:
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given:
                raise MessageError(
                    f"{self.function} asks for the column {p.name!r}{nearest(p.name, sorted(given))} (of the samples): "
                    "name it in the data's metadata, or give it in arguments"
                )
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return given
        return {p.name: given[p.name] for p in parameters if p.name in given}


async def _waited(answer: Any) -> Any:
    return await answer


def _is_nan(value: Any) -> bool:
    """TRL writes "does not apply" as NaN, too."""
    return isinstance(value, float) and math.isnan(value)
