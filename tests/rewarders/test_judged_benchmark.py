"""Short facts with a reference, compared by a language model over HTTP, as docs/evaluation.md says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from answercases import sample
from judging import Remote

from broker.errors import HeadraceError
from broker.runfile import RunFile
from learner.data.registry import open_prompts
from learner.tables import SourceTable
from rewarders.judge import Judge

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "benchmarks"


def test_a_judge_compares_the_answer_with_the_reference(remote: Remote) -> None:
    table = SourceTable(use="learner.data.benchmarks.facts:SimpleQa", path="simpleqa.csv")
    row = open_prompts("facts", table, RunFile({}, FIXTURES, FIXTURES / "run.toml")).row(0)
    judge = Judge(url=f"{remote.url}/v1", model="judge", rubric="correctness", lowest=0, highest=1, tries=1)
    said = replace(
        sample("<think>Hm</think>The Atlantic.", row.answer, metadata=dict(row.metadata)), messages=row.messages
    )
    remote.faults({"say": "The same.\nScore: 1"}, {"say": "Another one.\nScore: 0"}, {"say": "Perhaps."})
    values = [reward.value for reward in (judge(said), judge(said)) if reward is not None]
    assert values == [1.0, 0.0]
    asked = remote.seen()[0]["body"]["messages"][1]["content"]
    assert "The Atlantic Ocean" in asked and "Which ocean lies" in asked and "Hm" not in asked
    with pytest.raises(HeadraceError):
        judge(said)
