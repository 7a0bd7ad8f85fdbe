"""Any text gives a verdict within its deadline, from each rewarder whose answers rules can check."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import pytest
from answercases import math_cases, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewarders.choice import Choice
from rewarders.math import MathAccuracy
from rewarders.reasoning_gym import ReasoningGym
from rewarders.rewarder import Reward, Rewarder

GYM = {
    "reasoning_gym": {"dataset": "countdown", "entry": {"answer": "1+2", "metadata": {"numbers": [1, 2], "target": 3}}}
}
SECONDS = 3.0
"""Of the processor, in this process: no verdict comes near it."""
PIECES = [
    "\\boxed{", "}", "{", "<think>", "</think>", "<answer>", "</answer>", "\\frac", "\\sqrt", "^", "_", "(", ")", "[", "]", "|", "\\{", "\\}", ",", ";", ":", "=", "<", "\\le ", "\\cup ",
    "\\pm ", "1", "9", "0", ".5", "x", "ab", "e", "i", "\\pi", "\\infty", "!", "%", "\\text{km}", "\\text{or}", "^\\circ", "\\sin ", "\\log_", "\\binom", "\\sum_{i=1}^{9}", "\\begin{pmatrix}",
    "\\end{pmatrix}", "&", "\\\\", "\\int ", "\\lim ", "**", "999999999", "A", "(B)", "C)", "²", "√", "½", "π", "\u202e", "\x00", "\ud7ff", "\u200b", " ", "\n", "$", "#### ", "...", "\\overline{3}",
]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(PIECES), max_size=40).map("".join),
    st.lists(st.sampled_from(PIECES), max_size=25).map(lambda parts: "\\boxed{" + "".join(parts) + "}"),
    st.sampled_from([c.response for c in math_cases()]),
)
REFERENCES = [
    "5",
    "\\frac{1}{2}",
    "x^2+1",
    "(1,2]",
    "\\{1,2\\}",
    "\\text{even}",
    "12\\text{ km}",
    "y=2x+1",
    "\\begin{pmatrix}1\\\\2\\end{pmatrix}",
    "2:3",
    "B",
    "x>2",
    "\\pm 3",
]


@pytest.fixture(scope="module")
def judges() -> Iterator[dict[str, Rewarder]]:
    judges = {
        "math": MathAccuracy(timeout=60.0),
        "loose": MathAccuracy(boxed=False, boxes="last", percent="either", tolerance=1e-3, timeout=60.0),
        "choice": Choice(),
        "line": Choice(boxed=False),
        "gym": ReasoningGym(timeout=60.0),
    }
    yield judges
    for warm in (*judges["math"]._symbolic, *judges["loose"]._symbolic, *judges["gym"]._scorers):  # type: ignore[attr-defined]
        warm.stop()


def verdict(judge: Callable[..., Reward | float | None], text: str, reference: str) -> Reward:
    metadata = {**GYM, "options": {"A": "5", "B": "x^2+1", "C": "none"}}
    started = time.process_time()
    reward = judge(sample(text, reference, metadata=metadata))
    assert time.process_time() - started < SECONDS, text
    assert isinstance(reward, Reward) and math.isfinite(reward.value) and 0.0 <= reward.value <= 1.0
    assert len(reward.answer) <= 512 and len(reward.why) <= 512
    return reward


@pytest.mark.long
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(text=TEXTS, reference=st.sampled_from(REFERENCES))
def test_any_text_gives_a_verdict(judges: dict[str, Rewarder], text: str, reference: str) -> None:
    for name in ("math", "loose"):
        verdict(judges[name], text, reference)
    for name in ("choice", "line"):
        verdict(judges[name], text, "B")
    verdict(judges["gym"], text, "")


@pytest.mark.long
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(answer=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_what_is_right_for_itself_has_one_canonical_text(judges: dict[str, Rewarder], answer: str) -> None:
    """An answer that can be read as a reference is right for it, and its canonical text does not depend on what it is compared with."""
    from rewarders.answers.readings import UnreadableReference

    judge = judges["math"]
    assert isinstance(judge, MathAccuracy)
    try:
        judge.reference(answer)
    except UnreadableReference:
        return
    assert (
        verdict(judge, f"\\boxed{{{answer}}}", answer).answer
        == verdict(judge, f"\\boxed{{{answer}}}", "123456789").answer
        or "\\boxed" in answer
    )
