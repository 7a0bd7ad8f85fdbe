"""Whatever a response holds, each rewarder of the package has a verdict, in its bounds and in time; one that is added is found by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from everyone import CASES, HERE, Case, Needs, rewarder_classes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judging import Remote
from spoken import group

from broker.messages import Trajectory, encode
from rewarders.config import WorkerTable
from rewarders.registry import Judge, judge_factory

pytestmark = pytest.mark.lane("languages and rubrics")  # seconds to load

DEADLINE = 2.0  # seconds of this process; the worker's own default is ten of the clock
PIECES = [
    "<think>", "</think>", "<answer>", "</answer>", "|special_token|", "\\boxed{", "}", "{", "```", "`", "$", "$$", "\\[", "\\]", "\\(", "\\text{", "\\begin{align}", "\\end{align}",
    "<!--", "-->", "&#8203;", "&lt;", "<|im_end|>", "\u202e", "\u200b", "wait", "but ", "So we have ", "我们", "слово ", "。", "http://", "a/b/", "a.", "_", "1", "\n", " ", "\x00", "𝔸", "é",
    "```python\n", "print(", "\n```", "[[", "^", "!", "%", "1e999", "-", "(B)", "=",
]  # fmt: skip
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=60).map("".join))


@pytest.fixture(scope="session")
def judge_of(judge_process: Remote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Judge]:
    """What a judging process makes of a case's table, each once."""
    needs, made = Needs(judge_process.url, tmp_path_factory.mktemp("models")), {}

    def judge(name: str) -> Judge:
        if name not in made:
            case = CASES[name]
            made[name] = judge_factory({"use": case.use, "options": dict(case.options(needs)), "base": HERE})
        return made[name]

    return judge


def verdicts(judge: Judge, case: Case, texts: Sequence[str]) -> list[Any]:
    """The verdicts on a group that says ``texts``, as they go over the wire; checked for their bounds."""
    samples = group(texts, answer=case.answer, metadata=dict(case.metadata))
    payloads = [encode(sample) for sample in samples]
    found = judge(payloads) if judge.about["per_group"] else [one for p in payloads for one in judge([p])]
    assert len(found) == len(texts)
    for verdict, sample in zip(found, samples, strict=True):
        _check(verdict, case, sample)
    return found


def _check(verdict: dict[str, Any] | None, case: Case, sample: Trajectory) -> None:
    if verdict is None:
        return
    value, why = verdict["value"], verdict.get("why", "")
    assert math.isfinite(value), verdict
    assert len(why.encode()) <= 8000
    if case.taught:
        assert np.frombuffer(verdict["logprobs"], "<f4").shape == (sample.response_tokens,)
    else:
        assert case.low - 1e-9 <= value <= case.high + 1e-9, verdict


def test_no_rewarder_of_the_package_escapes() -> None:
    fuzzed = {case.use for case in CASES.values()}
    assert rewarder_classes() == fuzzed, "give each rewarder a case in tests/rewarders/everyone.py"


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_any_text_gets_a_verdict_within_its_bounds(name: str, judge_of: Callable[[str], Judge]) -> None:
    case, judge = CASES[name], judge_of(name)
    patience = WorkerTable().timeout
    verdicts(judge, case, ["what the first sample loads is loaded"])

    @settings(
        max_examples=case.examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(texts=st.lists(TEXTS.filter(_sayable), min_size=1, max_size=4))
    def any_text(texts: list[str]) -> None:
        started, worked = time.monotonic(), time.process_time()
        verdicts(judge, case, texts)
        assert time.process_time() - worked < DEADLINE
        assert time.monotonic() - started < patience * len(texts)

    any_text()


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_long_and_hostile_text_is_judged_in_time(name: str, judge_of: Callable[[str], Judge]) -> None:
    case, judge = CASES[name], judge_of(name)
    verdicts(judge, case, ["warm"])
    for piece in PIECES:
        started = time.process_time()
        verdicts(judge, case, [f"<think>{piece * (60_000 // len(piece))}", "x"])
        assert time.process_time() - started < DEADLINE, piece


def _sayable(text: str) -> bool:
    """Whether it can be on the wire."""
    return text.encode("utf-8", "ignore").decode() == text
