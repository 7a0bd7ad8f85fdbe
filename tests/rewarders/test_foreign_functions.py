"""Reward functions of TRL's style and rubrics of the real verifiers package run unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from spoken import group, spoken

from broker.errors import MessageError, RunFileError
from broker.messages import ChatMessage
from rewarders.adapters.trl import TrlFunction
from rewarders.adapters.verifiers import VerifiersRubric
from rewarders.registry import load_any

pytestmark = pytest.mark.lane("languages and rubrics")  # seconds to load

RIGHT, WRONG = "<think>so</think><answer>5</answer>", "<think>so</think><answer>6</answer>"


def values(rewards: object) -> list[float | None]:
    return [None if r is None else r.value for r in rewards]  # type: ignore[attr-defined]


def test_open_r1s_functions_get_messages_and_columns() -> None:
    judge = TrlFunction(function="trl_style:accuracy_reward")
    assert values(judge.judge(group(["it is 5", "it is 6"]))) == [1.0, 0.0]
    assert values(judge.judge(group(["it is 5"], answer=""))) == [None], "None means that it does not apply"
    assert values(TrlFunction(function="trl_style:format_reward").judge(group([RIGHT, "5"]))) == [1.0, 0.0]


def test_a_factory_is_called_with_its_arguments() -> None:
    judge = TrlFunction(function="trl_style:get_len_reward", factory=True, arguments={"weight": 0.5})
    assert values(judge.judge(group(["aa", "aaaa"]))) == [-0.25, -0.5]
    with pytest.raises(RunFileError, match="did you mean 'weight'"):
        TrlFunction(function="trl_style:get_len_reward", factory=True, arguments={"wieght": 0.5})


def test_plain_texts_and_only_what_the_function_names() -> None:
    judge = TrlFunction(function="trl_style:plain", conversational=False)
    samples = [spoken("12345", "?", tokens=3, metadata={"level": 2, "more": 1}), spoken("12345", "?", tokens=3)]
    assert values(judge.judge(samples)) == [1 + 0.5 + 3 + 200, 1 + 0.5 + 3]


def test_a_coroutine_is_waited_for_and_nan_is_an_abstention() -> None:
    assert values(TrlFunction(function="trl_style:waiting").judge(group(["a", "b"]))) == [None, 0.25]


def test_what_a_function_does_wrong_is_an_error() -> None:
    with pytest.raises(MessageError, match="a list of 2 numbers"):
        TrlFunction(function="trl_style:wrong").judge(group(["a", "b"]))
    with pytest.raises(ValueError, match="no such column"):
        TrlFunction(function="trl_style:raising").judge(group(["a"]))
    with pytest.raises(RunFileError, match="cannot be loaded"):
        TrlFunction(function="trl_style:missing")
    with pytest.raises(
        MessageError,
        match=r"asks for the column 'level'; known: completion_ids, .*, solution, task \(of the samples\): name it in",
    ):
        TrlFunction(function="trl_style:plain", conversational=False).judge(group(["a"]))
    with pytest.raises(MessageError, match="asks for the column 'level'; did you mean 'levels'"):
        TrlFunction(function="trl_style:plain").judge(group(["a"], metadata={"levels": 3}))


def test_a_function_of_a_file_beside_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def rewarded(completions, **kwargs):\n    return [len(c[0]['content']) for c in completions]\n"
    )
    assert values(
        load_any("rewarders.adapters.trl:TrlFunction", {"function": "mine.py:rewarded"}, tmp_path).judge(group(["abc"]))
    ) == [3.0]


@pytest.mark.long
def test_a_rubric_scores_as_it_does_in_its_own_environments() -> None:
    judge = VerifiersRubric(rubric="rubrics:SUMS")
    rewards = judge.judge(group([RIGHT, WRONG]))
    assert values(rewards) == pytest.approx([1 + 0.5 / len(RIGHT), 0.5 / len(WRONG)])
    assert rewards[0].why == f"exact 1, short {1 / len(RIGHT):.3g}"


@pytest.mark.long
def test_metadata_is_info_and_a_function_may_make_the_rubric() -> None:
    judge = VerifiersRubric(rubric="rubrics:of_levels", arguments={"weight": 2.0})
    assert values(judge.judge([spoken("x", metadata={"level": 3}, kind="sum")])) == [26.0]


def test_groups_of_rubrics_and_functions_of_groups() -> None:
    assert values(VerifiersRubric(rubric="rubrics:grouped").judge(group([WRONG, RIGHT, RIGHT]))) == [2.0, 1.0, 1.0]
    assert values(VerifiersRubric(rubric="rubrics:Own").judge(group([RIGHT]))) == pytest.approx([1.0])


def test_a_failure_inside_of_a_rubric_is_an_error_and_no_reward_of_0() -> None:
    judge = VerifiersRubric(rubric="rubrics:BROKEN")
    for _ in range(2):
        with pytest.raises(ValueError, match="no such thing"):
            judge.judge(group([RIGHT, WRONG]))


def test_what_is_no_rubric_is_refused() -> None:
    with pytest.raises(RunFileError, match="must be a Rubric"):
        VerifiersRubric(rubric="rubrics:NOT_A_RUBRIC")


def test_an_episode_is_all_that_was_said() -> None:
    turns = (ChatMessage("assistant", "call"), ChatMessage("tool", "5"), ChatMessage("assistant", "it is 5"))
    assert values(
        TrlFunction(function="trl_style:format_reward").judge([spoken("it is 5", turns=turns, environment="e")])
    ) == [0.0]
