"""Whatever a response holds, each rewarder has a verdict, in its bounds and in time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from conftest import Remote
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoken import group

from broker.messages import Trajectory, decode, encode
from rewarders.adapters.trl import TrlFunction
from rewarders.adapters.verifiers import VerifiersRubric
from rewarders.comparison import Difficulty, Diversity, Tournament
from rewarders.ensemble import Ensemble
from rewarders.format import Format
from rewarders.judge import Judge
from rewarders.language import LanguageConsistency
from rewarders.length import CalibratedLength, Overlong
from rewarders.reflection import Reflection
from rewarders.repetition import Repetition
from rewarders.reward_model import RewardServer
from rewarders.schedule import Schedule

DEADLINE = 2.0  # seconds; the worker's own default is ten
SAYS = "test_penalties:Says"
JUDGES: dict[str, tuple[Callable[[], Any], float, float]] = {
    "format": (Format, 0, 1), "boxed": (lambda: Format(boxed=True, opened=True), 0, 1), "readable": (lambda: Format(pattern="readable"), 0, 1),
    "language": (lambda: LanguageConsistency(language="en", among=("en", "de")), 0, 1), "script": (lambda: LanguageConsistency(language="Han"), 0, 1),
    "spoken": (lambda: LanguageConsistency(among=("en", "de", "ru", "uk"), sees="response"), 0, 1),
    "repetition": (Repetition, -1, 0), "overlong": (Overlong, -1, 0), "reflection": (Reflection, 0, math.inf),
    "calibrated": (lambda: CalibratedLength(correct=SAYS), -1, 0), "difficulty": (lambda: Difficulty(correct=SAYS), 0, 1), "diversity": (Diversity, 0, 1),
    "tournament": (lambda: Tournament(judge_of_pairs="test_penalties:Longer"), 0, 1), "ensemble": (lambda: Ensemble(members=[SAYS, "rewarders.format:Format"]), -1, 1),
    "schedule": (lambda: Schedule(judge_by="rewarders.format:Format"), 0, 1), "trl": (lambda: TrlFunction(function="trl_style:format_reward"), 0, 1),
    "verifiers": (lambda: VerifiersRubric(rubric="rubrics:SHORT"), 0, 2),
}  # fmt: skip
MADE: dict[str, Any] = {}
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "|special_token|", "\\boxed{", "}", "{", "```", "`", "$", "$$", "\\[", "\\]", "\\(", "\\text{", "\\begin{align}", "\\end{align}",
    "<!--", "-->", "&#8203;", "&lt;", "<|im_end|>", "\u202e", "\u200b", "wait", "but ", "So we have ", "我们", "слово ", "。", "http://", "a/b/", "a.", "_", "1", "\n", " ", "\x00", "𝔸", "é",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))


def verdicts(judge: Any, samples: Sequence[Trajectory]) -> list[Any]:
    return list(judge.judge(samples)) if getattr(judge, "per_group", False) else [judge(sample) for sample in samples]


def made(name: str) -> Any:
    return MADE.setdefault(name, JUDGES[name][0]()) if name not in MADE else MADE[name]


@pytest.mark.parametrize("name", JUDGES)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_gets_a_verdict_within_its_bounds(name: str, texts: list[str]) -> None:
    _, low, high = JUDGES[name]
    samples = [decode(encode(s)) for s in group(texts) if _sayable(s.text)]  # what can be on the wire
    if not samples:
        return
    found = verdicts(made(name), samples)  # type: ignore[arg-type]
    assert len(found) == len(samples)
    assert all(v is None or low - 1e-9 <= v.value <= high + 1e-9 for v in found)


@pytest.mark.parametrize("name", JUDGES)
def test_long_and_hostile_text_is_judged_in_time(name: str) -> None:
    judge = made(name)
    verdicts(judge, group(["warm"]))
    for piece in PIECES:
        sample = group([f"<think>{piece * (60_000 // len(piece))}", "x"])
        started = time.process_time()
        verdicts(judge, sample)
        assert time.process_time() - started < DEADLINE, piece


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=TEXTS)
def test_any_text_can_be_sent_to_a_judge(remote: Remote, text: str) -> None:
    judge = MADE.setdefault("judge", Judge(url=f"{remote.url}/v1", model="m", sees="response"))
    model = MADE.setdefault("server", RewardServer(url=remote.url))
    (sample,) = group([text])
    assert 0 <= judge(sample).value <= 1 and 0 <= model.judge([sample])[0].value <= 1


def _sayable(text: str) -> bool:
    return text.encode("utf-8", "ignore").decode() == text
