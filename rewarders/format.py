"""The form reward of R1-Zero: the whole response is one thought and one answer in their tags (arXiv 2501.12948, table 1)."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import Trajectory
from rewarders.rewarder import Reward
from rewarders.text import last_box

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@dataclass(frozen=True)
class Format:
    """``<think>...</think><answer>...</answer>`` and nothing else: 1, otherwise 0. ``boxed``: the answer holds a ``\\boxed{}``."""

    boxed: bool = False

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.finish_reason != "stop":
            return Reward(0.0, "not finished")
        fault = self.fault(sample.text)
        return Reward(0.0 if fault else 1.0, fault)

    def fault(self, text: str) -> str:
        """What is wrong with the form of ``text``; empty if nothing is. Linear in its length."""
        text = text.strip()
        for tag in TAGS:
            if text.count(tag) != 1:
                return f"{text.count(tag)} times {tag}"
        if not text.startswith(TAGS[0]) or not text.endswith(TAGS[3]):
            return "text outside of the tags"
        thought, _, rest = text[len(TAGS[0]) :].partition(TAGS[1])
        between, _, answer = rest.partition(TAGS[2])
        answer = answer[: -len(TAGS[3])] if answer.endswith(TAGS[3]) else ""
        if TAGS[2] not in rest or between.strip():
            return "text between thought and answer"
        if not thought.strip():
            return "an empty thought"
        if not answer.strip():
            return "an empty answer"
        if self.boxed and not (last_box(answer) or "").strip():
            return "no boxed answer"
        return ""
