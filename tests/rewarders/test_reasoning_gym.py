"""Every task of reasoning-gym through its own scorer: its own answer, nonsense, and answers that are meant to harm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from answercases import Ending, sample

from broker.errors import HeadraceError
from broker.faults import Failed
from broker.messages import Trajectory, decode, encode
from learner.data.reasoning_gym import ReasoningGymTasks, jsonable, tuple_keys
from rewarders.answers.warm import Ended
from rewarders.reasoning_gym import ReasoningGym

reasoning_gym = pytest.importorskip("reasoning_gym")
TASKS = sorted(set(reasoning_gym.factory.DATASETS) - {"composite"})
SOLUTIONS = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
UNSOLVED = ("boxnet", "rush_hour")
"""Tasks whose entries carry no answer at all."""
HOSTILE = [
    "",
    "{}",
    "[" * 3000,
    "9" * 4000,
    "1/0",
    "\x00\u202e",
    "9**9**9**9",
    "__import__('os').system('touch {}')",
    "().__class__.__base__.__subclasses__()",
    "NaN",
    "[[[]]]",
    "null",
]


@pytest.fixture(scope="module")
def judge() -> Iterator[ReasoningGym]:
    judge = ReasoningGym(timeout=60.0)
    yield judge
    for warm in judge._scorers:
        warm.stop()


def carried(task: str) -> dict[str, Any]:
    """The metadata of one entry of a task, as it comes off the wire."""
    entry = reasoning_gym.create_dataset(task, size=1, seed=7)[0]
    wire = {"question": entry["question"], "answer": entry["answer"], "metadata": jsonable(entry["metadata"])}
    return {"reasoning_gym": {"dataset": task, "entry": wire, "tuples": tuple_keys(entry["metadata"])}}


def off_the_wire(text: str, metadata: dict[str, Any]) -> Trajectory:
    record = decode(encode(sample(text, None, metadata=metadata)))
    assert isinstance(record, Trajectory)
    return record


def solution(task: str, entry: Mapping[str, Any]) -> str | None:
    if entry["answer"] is not None:
        return str(entry["answer"])
    found = entry["metadata"].get(SOLUTIONS.get(task, ""))
    return found if found is None or isinstance(found, str) else json.dumps(found)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_a_task_knows_its_answer_and_survives_every_other(judge: ReasoningGym, task: str, tmp_path: Path) -> None:
    metadata = carried(task)
    own = solution(task, metadata["reasoning_gym"]["entry"])
    assert (own is None) == (task in UNSOLVED)
    if own is not None:
        reward = judge(off_the_wire(f"<think>x</think><answer>{own}</answer>", metadata))
        assert reward is not None and reward.value == 1.0 and reward.answer, reward
    harmed = tmp_path / "harmed"
    for answer in ["no such thing", *HOSTILE]:
        reward = judge(
            off_the_wire(
                f"<answer>{answer.replace('{}', str(harmed)) if 'touch' in answer else answer}</answer>", metadata
            )
        )
        assert reward is not None and 0.0 <= reward.value < 0.5, (answer, reward)
    assert not harmed.exists()


@pytest.mark.parametrize(
    "text",
    [
        "<think>7",
        "<answer>7</answer><answer>8</answer>",
        "\\boxed{7} \\boxed{8}",
        "7" * 5000,
        "<think>a</think>7<think>",
    ],
)
def test_no_single_answer_scores_nothing(judge: ReasoningGym, text: str) -> None:
    reward = judge(sample(text, None, metadata=carried("chain_sum")))
    assert reward is not None and reward.value == 0.0


@pytest.mark.long
def test_equal_answers_are_one_candidate_and_partial_scores_can_be_refused(judge: ReasoningGym) -> None:
    metadata = carried("chain_sum")
    answers = {
        judge(sample(text, None, metadata=metadata)).answer for text in ("<answer>77</answer>", "77.0", "\\boxed{ 77 }")
    }  # type: ignore[union-attr]
    assert answers == {"77"}
    nearly = sample("<answer>zz</answer>", None, metadata=carried("advanced_geometry"))
    assert judge(nearly).value == 0.01 and ReasoningGym(partial=False)(nearly).value == 0.0  # type: ignore[union-attr]


@pytest.mark.long
def test_an_answer_that_keeps_the_scorer_busy_is_wrong_with_the_cause() -> None:
    judge = ReasoningGym(cpu_seconds=0.3, timeout=60.0)
    metadata = carried("simple_integration")
    for _ in range(2):
        reward = judge(sample("<answer>(((x+1)**99+x)**99+x)**99</answer>", None, metadata=metadata))
        assert reward is not None and reward.value == 0.0 and reward.cause == "timeout"


@pytest.mark.parametrize(
    "metadata",
    [{"dataset": "chain_sum"}, {"dataset": "no_such_task", "entry": {"answer": "1", "metadata": {}}}, {"dataset": "sudoku", "entry": {"answer": "1", "metadata": {}}}, {}],
)  # fmt: skip
def test_an_entry_that_is_not_as_the_task_made_it_is_an_error(judge: ReasoningGym, metadata: dict[str, Any]) -> None:
    with pytest.raises(HeadraceError, match="metadata"):
        judge(sample("<answer>n</answer>", None, metadata={"reasoning_gym": metadata}))


@pytest.mark.parametrize("by_machine", [False, True])
def test_a_scorer_that_cannot_be_loaded_is_an_error_and_no_zero(by_machine: bool) -> None:
    judge = ReasoningGym()
    judge._scorers.append(Ending(Ended("killed", "too large", by_machine), "load"))
    with pytest.raises(HeadraceError, match="cannot be loaded: too large; raise memory_mb = 4096"):
        judge(sample("<answer>7</answer>", None, metadata=carried("chain_sum")))


def test_only_what_the_answer_itself_did_to_the_scorer_is_a_zero() -> None:
    judge = ReasoningGym()
    judge._scorers.append(Ending(Ended("timeout", "the end"), "answer"))
    asked = sample("<answer>7</answer>", None, metadata=carried("chain_sum"))
    reward = judge(asked)
    assert reward is not None and (reward.value, reward.cause) == (0.0, "timeout")
    judge._scorers[:] = [Ending(Ended("timeout", "the end", by_machine=True), "answer")]
    with pytest.raises(Failed, match="too busy") as failed:
        judge(asked)
    assert failed.value.kind == "error", "a time-out could become a wrong answer"


def test_it_abstains_on_other_samples(judge: ReasoningGym) -> None:
    assert judge(sample("5")) is None


def test_a_row_of_the_data_source_is_judged(judge: ReasoningGym) -> None:
    row = ReasoningGymTasks(tasks=["gcd"], seed=3).row(0)
    assert judge(off_the_wire(f"<answer>{row.answer}</answer>", dict(row.metadata))).value == 1.0  # type: ignore[union-attr]


@pytest.mark.long
def test_a_mixture_of_tasks_is_scored_by_the_task_that_made_the_entry(judge: ReasoningGym) -> None:
    from reasoning_gym.composite import DatasetSpec

    mixed = reasoning_gym.create_dataset(
        "composite", size=1, seed=1, datasets=[DatasetSpec(name="gcd", weight=1, config={})]
    )[0]
    wire = {"dataset": "composite", "entry": {"answer": mixed["answer"], "metadata": jsonable(mixed["metadata"])}}
    assert judge(sample(f"<answer>{mixed['answer']}</answer>", None, metadata={"reasoning_gym": wire})).value == 1.0  # type: ignore[union-attr]
