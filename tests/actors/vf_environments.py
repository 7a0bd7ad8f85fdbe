"""Environments of verifiers, written as its own examples are."""

from __future__ import annotations

from typing import Any

import verifiers as vf
from datasets import Dataset


def _said(completion: Any) -> str:
    return str(completion[-1]["content"])


def reverse(system_prompt: str = "Reverse the text.") -> vf.Environment:
    rows = Dataset.from_list(
        [{"question": text, "answer": text[::-1], "info": {"length": len(text)}} for text in ("abc", "hello")]
    )

    def same(completion: Any, answer: str) -> float:
        return float(_said(completion) == answer)

    def length(completion: Any, info: dict[str, int]) -> float:
        return float(len(_said(completion)) == info["length"])

    return vf.SingleTurnEnv(dataset=rows, eval_dataset=rows, system_prompt=system_prompt, rubric=vf.Rubric(funcs=[same, length], weights=[1.0, 0.5]))  # fmt: skip


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: one
        b: the other
    """
    return a + b


def sums(max_turns: int = 5) -> vf.Environment:
    rows = Dataset.from_list([{"question": "What is 17 + 25?", "answer": "42"}])

    def right(completion: Any, answer: str) -> float:
        return float(answer in _said(completion))

    return vf.ToolEnv(dataset=rows, tools=[add], max_turns=max_turns, rubric=vf.Rubric(funcs=[right]))


class Doubling(vf.MultiTurnEnv):
    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        if messages[-1]["content"] == "break":
            raise ValueError("it is broken")
        if messages[-1]["content"] == "8":
            state["final_env_response"] = [{"role": "user", "content": "enough"}]
            return state["final_env_response"]
        return [{"role": "user", "content": f"double {messages[-1]['content']}"}]


def doubling() -> vf.Environment:
    rows = Dataset.from_list([{"question": "Start with 1", "answer": "8"}])

    def turns(state: Any) -> float:
        return len(state["trajectory"]) / 10

    return Doubling(dataset=rows, rubric=vf.Rubric(funcs=[turns]), max_turns=6)


def broken_rubric() -> vf.Environment:
    rows = Dataset.from_list([{"question": "x", "answer": "y"}])

    def broken(completion: Any) -> float:
        raise ZeroDivisionError("the rubric is broken")

    return vf.SingleTurnEnv(dataset=rows, rubric=vf.Rubric(funcs=[broken]))
