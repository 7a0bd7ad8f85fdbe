"""The data sources of a run from one start to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from plannertools import TOPICS, Ring

from broker.errors import RunFileError
from broker.log import Log
from broker.messages import Prompt, decode
from broker.open import open_log
from broker.run import Run
from headrace.reading.verify import verify
from learner.config import LearnerConfig
from learner.planning.join import read_all
from learner.planning.plans import StagePlan
from learner.sources import Sources
from learner.tables import LearnerTable, SamplingTable

RUN = """
[run]
name = "t"
model = "m"
rewards = { r = 1.0 }

[data]
rows = "rows.jsonl"

[[stage]]
kind = "rl"
data = "rows"
"""


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with closing(open_log(f"sqlite://{tmp_path / 'log'}")) as log:
        log.create(TOPICS.specs())
        yield log


def write_rows(directory: Path, first: str, size: int = 40) -> None:
    rows = [{"prompt": first if n == 0 else f"question {n}", "answer": str(n)} for n in range(size)]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def started(ring: Ring, directory: Path, credits: int) -> StagePlan:
    """Start a learner on the run in ``directory``: its plan, in which that many groups may be out."""
    ring.start()
    (directory / "run.toml").write_text(RUN)
    run = Run.open(directory / "run.toml", [], directory)
    sources = Sources(run, LearnerConfig(run.file), ring.planner.state().eras, ring.planner.feed.cursor)
    table = LearnerTable.model_validate({"groups_per_step": 4, "group_size": 2, "max_lag": credits // 4 - 1})
    return replace(ring.stage, training=table, feedings=(sources.feeding("rows", 2, SamplingTable()),))


def prompts(log: Log) -> list[Prompt]:
    with closing(log.reader(TOPICS.prompts)) as reader:
        found = [decode(record.value) for record in read_all(reader, log.ends(TOPICS.prompts))]
    return sorted((m for m in found if isinstance(m, Prompt)), key=lambda prompt: prompt.number)


@pytest.mark.parametrize(
    "edit",
    [lambda home: write_rows(home, "corrected"), lambda home: write_rows(home, "question 0", size=41)],
    ids=["corrected", "grown"],
)
@pytest.mark.parametrize("planned", [True, False])
def test_an_edit_of_a_source_outlives_a_learner_that_is_killed_before_its_next_manifest(
    tmp_path: Path, log: Log, edit: Callable[[Path], None], planned: bool
) -> None:
    write_rows(tmp_path, "question 0")
    ring = Ring(log, groups_per_step=4)
    stage = started(ring, tmp_path, credits=8)
    ring.planner.refill(stage)
    if planned:
        for prompt in ring.fed():
            ring.answer(prompt, [0, 1])
        ring.pump()
        assert ring.planner.plan(stage) is not None
    edit(tmp_path)
    for credits in (16, 24, 48, 72):  # the learner is killed as soon as it has fed what it may
        stage = started(ring, tmp_path, credits)
        assert ring.planner.refill(stage) > 0
    fed = prompts(log)
    assert [p.number for p in fed] == list(range(len(fed))) and len(fed) > 60
    issues = [int(p.group_id.rpartition("@")[2]) for p in fed]
    assert issues[:8] == [0] * 8 and issues[8:48] == [1] * 40 and issues[-1] == 2, "one new era, at the edit"
    assert len({p.group_id for p in fed}) == len(fed) and not verify(log, TOPICS).problems


def test_eras_that_are_damaged_are_refused_with_the_cure(tmp_path: Path, log: Log) -> None:
    write_rows(tmp_path, "question 0")
    ring = Ring(log)
    started(ring, tmp_path, credits=8)
    kept = tmp_path / "eras.json"
    assert json.loads(kept.read_text())["rows"][0][:3] == [0, 40, 0]
    for damaged in ("no JSON", "[]", '{"rows": [[0, 40]]}', '{"rows": 3}'):
        kept.write_text(damaged)
        with pytest.raises(
            RunFileError, match=r"eras.json cannot be read: .*; remove it, and the newest manifest says"
        ):
            started(ring, tmp_path, credits=8)
    kept.unlink()
    assert started(ring, tmp_path, credits=8).feedings[0].schedule.eras[0].start == 0
