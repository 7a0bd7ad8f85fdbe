"""Reward functions as TRL's and open-r1's recipes have them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any


def accuracy_reward(completions: list[list[dict[str, str]]], solution: list[str], **kwargs: Any) -> list[float | None]:
    """As open-r1's: the content of the first message against the column of solutions; None where there is no gold."""
    contents = [completion[0]["content"] for completion in completions]
    return [
        None if gold == "" else float(content.endswith(gold)) for content, gold in zip(contents, solution, strict=True)
    ]


def format_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
    pattern = re.compile(r"<think>\n?.*?\n?</think>\n?<answer>.*?</answer>", re.DOTALL)
    return [1.0 if pattern.fullmatch(completion[0]["content"]) else 0.0 for completion in completions]


def get_len_reward(weight: float = 1.0) -> Callable[..., list[float]]:
    def len_reward(completions: list[list[dict[str, str]]], **kwargs: Any) -> list[float]:
        longest = max(len(c[0]["content"]) for c in completions)
        return [-weight * len(c[0]["content"]) / longest for c in completions]

    return len_reward


def plain(prompts: list[str], completions: list[str], completion_ids: list[list[int]], level: list[Any]) -> list[float]:
    """Plain texts, and no further keywords."""
    return [
        len(p) + len(c) / 10 + len(ids) + (n or 0) * 100
        for p, c, ids, n in zip(prompts, completions, completion_ids, level, strict=True)
    ]


async def waiting(completions: list[Any], **kwargs: Any) -> list[float]:
    return [float("nan"), *[0.25] * (len(completions) - 1)]


def wrong(completions: list[Any], **kwargs: Any) -> list[float]:
    return [1.0]


def raising(completions: list[Any], **kwargs: Any) -> list[float]:
    raise ValueError("no such column")
