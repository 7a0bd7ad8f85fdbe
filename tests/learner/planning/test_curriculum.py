"""Pass rates from a log, the rows that they choose, and that a restart chooses the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated import Evaluated

from broker.errors import DataError, RunFileError
from broker.messages import Artefact, ChatMessage, Position, Prompt, Vote, encode
from headrace.reading.verify import verify
from learner.chosen import Choice
from learner.data.selection import CurriculumTable
from learner.data.source import PromptRow
from learner.planning.curriculum import Rate, Read, chosen_rows, pass_rates, times
from learner.planning.feed import content_of


class Eight:
    """Eight questions; the last cannot be read."""

    size = 8

    def row(self, number: int) -> PromptRow:
        if number == 7:
            raise DataError("row 7 is odd")
        return PromptRow((ChatMessage("user", f"question {number}"),), str(number))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Evaluated]:
    run = Evaluated(tmp_path / "run")
    yield run
    run.close()


def trained(
    run: Evaluated, row: int, *values: float | None, issue: int = 0, purpose: str = "train", **changes: Any
) -> Position:
    """A group of ``row`` that was fed and judged so; returns where the last vote lies."""
    asked, group_id = Eight().row(row), f"math-{row}@{issue}"
    collection = {"collection": "c"} if purpose != "train" else {}
    prompt = Prompt(
        group_id,
        asked.messages,
        len(values),
        rewards={"accuracy": 1.0},
        content=content_of(asked),
        purpose=purpose,
        **collection,
    )
    run.write("prompts", group_id, prompt)
    for index, value in enumerate(values):
        vote = Vote(group_id, index, "accuracy", "abstain" if value is None else "value", value, "")
        at = run.write("rewards", group_id, replace(vote, **changes))
    return at


def rates(run: Evaluated, read: Read | None = None) -> dict[int, Rate]:
    found = pass_rates(run.log, run.run.topics, read or Read.now(run.log, run.run.topics), "accuracy")
    return {n: found[content] for n in range(7) if (content := content_of(Eight().row(n))) in found}


def test_rates_are_of_what_was_trained_and_collected(made: Evaluated) -> None:
    trained(made, 0, 1.0, 0.0, 0.5, None)
    trained(made, 0, 1.0, issue=1)
    trained(made, 1, 1.0, purpose="collect")
    trained(made, 2, 1.0, purpose="eval")
    trained(made, 3, 1.0, shadow=True)
    trained(made, 4, 1.0, rewarder="format")
    made._out.send(made.run.topics.rewards, b"x", b"no record")
    made._out.flush()
    assert rates(made) == {0: Rate(2, 4), 1: Rate(1, 1)}
    made.write("rewards", "math-1@0", Vote("math-1@0", 0, "accuracy", "value", 0.0, "again"))
    assert rates(made)[1] == Rate(1, 1), "the first vote of a sample holds"


def test_the_same_positions_give_the_same_rates_whatever_came_since(made: Evaluated) -> None:
    trained(made, 0, 1.0, 0.0)
    read = Read.now(made.log, made.run.topics)
    before = rates(made, read)
    for issue in range(1, 40):
        trained(made, 0, 1.0, 1.0, issue=issue)
    assert rates(made, read) == before == {0: Rate(1, 2)} and rates(made)[0].judged == 80


def test_rows_are_left_out_or_repeated_by_their_rate() -> None:
    known = {content_of(Eight().row(n)): Rate(n, 6) for n in range(7)}
    rule = CurriculumTable(least=0.1, most=0.9, repeat=4)
    assert Counter(chosen_rows(Eight(), 8, known, rule, "x")) == {1: 3, 2: 4, 3: 4, 4: 4, 5: 3, 7: 1}
    strict = CurriculumTable(least=0.1, most=0.9, unseen=False)
    assert chosen_rows(Eight(), 8, known, strict, "x") == [1, 2, 3, 4, 5]
    assert chosen_rows(Eight(), 8, known, CurriculumTable(fewest=7), "x") == list(range(8)), "too few samples: unseen"
    with pytest.raises(DataError, match=r"none of 8 rows has a pass rate from 0.1 to 0.1 by 'accuracy'"):
        chosen_rows(Eight(), 8, known, CurriculumTable(least=0.1, most=0.1, unseen=False), "x")
    with pytest.raises(ValueError, match=r"least = 0.5 is above most = 0.2"):
        CurriculumTable(least=0.5, most=0.2)
    assert [times(p, 5) for p in (0.0, 0.5, 1.0)] == [1, 5, 1]


def choice(made: Evaluated, **rule: Any) -> Choice:
    return Choice(made.run, "zero-math", "math", Eight(), CurriculumTable(**rule))


def test_a_choice_is_recorded_with_its_positions_and_made_once(made: Evaluated) -> None:
    trained(made, 0, 1.0, 1.0)
    trained(made, 1, 1.0, 0.0)
    records: list[Artefact] = []

    def keep(artefact: Artefact) -> None:
        records.append(artefact)
        made.write("steps", f"artefact/{artefact.name}", artefact)

    rows, begins = choice(made, most=0.9).rows(1, 5, 12, keep)
    assert rows == [1, 2, 3, 4, 5, 6, 7] and begins == 12
    trained(made, 1, 1.0, 1.0, 1.0, issue=1)
    assert choice(made, most=0.6).rows(1, 9, 15, keep) == (rows, 12), "a restart: what was chosen holds"
    (record,) = records
    assert (record.kind, record.stage, record.step, record.metrics) == (
        "rows",
        1,
        5,
        {"rows": 8.0, "kept": 7.0, "asked": 7.0},
    )
    read = Read(*(dict(map(tuple, record.about["read"][name])) for name in ("rewards", "prompts")))
    known = pass_rates(made.log, made.run.topics, read, "accuracy")
    again = chosen_rows(Eight(), 8, known, CurriculumTable.model_validate(record.about["rule"]), "x")
    assert again == rows, "the record is enough to choose the same"
    assert encode(record) and not verify(made.log, made.run.topics).problems


@pytest.mark.parametrize(
    "kept",
    [
        "no JSON",
        "{}",
        '{"size": 8, "begins": 0, "rows": ["x"]}',
        '{"size": 8, "begins": 0, "rows": [8]}',
        '{"size": 8, "begins": 0, "rows": []}',
        '{"size": 9, "begins": 0, "rows": [0]}',
    ],
)
def test_a_choice_that_was_damaged_or_is_of_other_rows_is_refused(made: Evaluated, kept: str) -> None:
    path = made.run.directory / "artefacts" / "zero-math.rows.json"
    path.parent.mkdir()
    path.write_text(kept)
    with pytest.raises(RunFileError, match="remove it, and the rows are chosen anew"):
        choice(made).rows(1, 5, 0, lambda artefact: None)
