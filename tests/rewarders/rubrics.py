"""Rubrics of verifiers as its environments define them."""

from __future__ import annotations

from typing import Any

import verifiers as vf

PARSER = vf.XMLParser(["think", "answer"])


def exact(completion: Any, answer: str, parser: Any) -> float:
    return float(parser.parse_answer(completion) == answer)


def exact_text(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"] == answer)


async def short(completion: Any) -> float:
    return 1 / max(1, len(completion[-1]["content"]))


def hard(info: dict[str, Any], task: str) -> float:
    return info["level"] + 10.0 * (task == "sum")


def first_of_all(completions: list[Any], answers: list[str]) -> list[float]:
    return [1.0, *[0.0] * (len(completions) - 1)]


def broken(completion: Any) -> float:
    raise ValueError("no such thing")


SUMS = vf.Rubric(funcs=[exact, short], weights=[1.0, 0.5], parser=PARSER)
SHORT = vf.Rubric(funcs=[short, exact_text])
BROKEN = vf.RubricGroup([vf.Rubric(funcs=[exact], parser=PARSER), vf.Rubric(funcs=[broken])])


def of_levels(weight: float = 1.0) -> vf.Rubric:
    return vf.Rubric(funcs=[hard], weights=[weight])


def grouped() -> vf.RubricGroup:
    return vf.RubricGroup([vf.Rubric(funcs=[exact], parser=PARSER), vf.Rubric(funcs=[first_of_all], weights=[2.0])])


class Own(vf.Rubric):
    def __init__(self) -> None:
        super().__init__(funcs=[PARSER.get_format_reward_func()])


NOT_A_RUBRIC = dict
