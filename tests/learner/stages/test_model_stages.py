"""Stages that make a model beside the policy, or the policy anew: a reward model, random weights, a model that is kept for others."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ring import TINY, Killed, ring
from ringtools import small_copy

from broker.errors import RunFileError
from broker.messages import Artefact, Manifest, Trajectory, Vote
from learner.learner import Learner
from learner.model.load import load_model, save_model
from learner.stages.distill import rate_of
from learner.stages.train_reward import weights_sha256
from learner.training.reward_model import REPORT
from learner.training.trainer import state_sha256
from rewarders.config import in_run, rewarder_tables
from rewarders.registry import load_any

STAGES = """
[rewarders.polite]
use = "rewarders.reward_model:RewardModel"
model = "{run}/models/judge"

[[stage]]
kind = "train_reward"
name = "judge"
data = "preferences"
model = "base"
epochs = 3
batch = 8
held_out = 0.25
optimizer = { lr = 3e-3, schedule = "linear", warmup_steps = 2 }
keep_model = true

[[stage]]
kind = "sft"
name = "anew"
init = "random"
data = "corpus"
steps = 2
documents_per_step = 2
optimizer = { lr = 1e-30 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small ring's first stage, and then ``STAGES``."""
    rng, rows = random.Random(0), []
    for i in range(32):
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        rows.append({"prompt": f"{i}: {a}+{b}?", "better": f"please: {a + b}", "worse": f"go away {a + b}"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = small_copy(tmp_path)
    text = made.read_text()
    text = text[: text.index('[[stage]]\nkind = "rl"')].replace(
        "[data]\n",
        '[data]\npreferences = { path = "pairs.jsonl", columns = { chosen = "better", rejected = "worse" } }\n',
    )
    made.write_text(text + STAGES)
    return made


def counted(monkeypatch: pytest.MonkeyPatch, at: int, then: Any) -> list[int]:
    """The stage's steps of each call, in order; at step ``at`` of the reward model's stage ``then`` is done, once."""
    seen: list[int] = []
    taken = Learner.progress_in_stage

    def progress(self: Learner, index: int, report: Any) -> None:
        taken(self, index, report)
        if index == 1:
            seen.append(report.stage_step)
            if len(seen) == at:
                then()

    monkeypatch.setattr(Learner, "progress_in_stage", progress)
    return seen


@pytest.mark.long
def test_a_reward_model_is_trained_once_and_judges(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "run"
    with ring(home, "stage.0.steps=4", file=file) as made:
        seen = counted(monkeypatch, 4, made.kill)
        made.killed()
        assert not made.records("steps", Artefact) and not (home / "models" / "judge").exists()
        recorded = Learner.made

        def then_killed(self: Learner, artefact: Artefact) -> None:
            recorded(self, artefact)
            raise Killed

        monkeypatch.setattr(Learner, "made", then_killed)
        made.killed()
        assert seen == [1, 2, 3, 4, *range(1, 10)], "cut off in the middle, it begins again"
        assert made.run()
        assert len(seen) == 13, "its record is in the log: nothing is trained twice"
        (artefact,) = made.records("steps", Artefact)
        assert (artefact.kind, artefact.path, artefact.stage) == ("model", "models/judge", 1)
        assert artefact.sha256 == weights_sha256(home / "models" / "judge")
        report = json.loads((home / "models" / "judge" / REPORT).read_text())
        assert (
            artefact.metrics["held_out_accuracy"] == report["held_out_accuracy"] > artefact.metrics["majority"] == 0.5
        )
        assert (artefact.metrics["trained"], artefact.metrics["held_out"]) == (24, 8)
        audit = made.verify()
        assert (audit.outstanding, audit.problems) == (0, [])
        table = in_run(rewarder_tables(made.run_of.file)["polite"], home)
        assert type(load_any(table.use, table.options, file.parent)).__name__ == "RewardModel"


@pytest.mark.long
def test_a_stop_in_the_middle_of_a_reward_model_is_heard(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ring(tmp_path / "run", file=file) as made:
        seen = counted(monkeypatch, 3, lambda: made.stop.set())
        assert not made.run() and len(seen) == 3
        assert made.run() and len(made.records("steps", Artefact)) == 1


@pytest.mark.long
def test_a_later_stage_begins_from_random_weights_of_its_own(tmp_path: Path, file: Path) -> None:
    home = tmp_path / "run"
    with ring(home, file=file) as made:
        assert made.run()
        orders = [m for m in made.records("steps", Manifest) if m.kind == "weights"]
        assert [m.weights for m in orders if m.stage == 2] == ["random:5", "checkpoints/stage-2-anew"]
        checkpoints = home / "checkpoints"
        base, kept, anew = (load_model(str(checkpoints / f"stage-{name}")) for name in ("0-base", "1-judge", "2-anew"))
        wanted = load_model(str(TINY), init="random", seed=5)
        for name, tensor in anew.state_dict().items():
            assert torch.allclose(tensor, wanted.state_dict()[name], atol=1e-20), name
        assert state_sha256(kept) == state_sha256(base) != state_sha256(anew)


@pytest.mark.long
def test_the_first_stage_begins_from_a_model_of_its_own(tmp_path: Path, file: Path) -> None:
    other = load_model(str(TINY), init="random", seed=77)
    save_model(other, str(TINY), tmp_path / "other")
    text = file.read_text()
    first = text[text.index("[[stage]]") : text.index("[rewarders.polite]")]
    mine = '[[stage]]\nkind = "sft"\nname = "on"\nmodel = "other"\ndata = "corpus"\nsteps = 1\noptimizer = { lr = 1e-30 }\n'
    file.write_text(text[: text.index(first)] + mine)
    home = tmp_path / "run"
    with ring(home, f"run.model={model_with_weights(tmp_path)}", file=file) as made:
        made.kill_at(1)
        made.killed()
        assert made.run()
        orders = [m.weights for m in made.records("steps", Manifest) if m.kind == "weights"]
        assert orders == [str(tmp_path / "other"), "checkpoints/stage-0-on"], "ordered once, though it was killed there"
    kept = load_model(str(home / "checkpoints" / "stage-0-on")).state_dict()
    assert all(torch.allclose(tensor, kept[name], atol=1e-20) for name, tensor in other.state_dict().items())


def model_with_weights(directory: Path) -> Path:
    save_model(load_model(str(TINY), init="random", seed=1), str(TINY), directory / "first")
    return directory / "first"


DISTILLED = """
[[stage]]
kind = "distill"
name = "student"
data = "told"
documents_per_step = 4
epochs = 1.5

[[stage]]
kind = "distill"
name = "other"
model = "base"
data = "told"
documents_per_step = 4
steps = 3
optimizer = { lr = 1e-3 }
"""


@pytest.mark.long
def test_a_student_reads_what_a_teacher_wrote_at_the_rate_of_its_size(tmp_path: Path, file: Path) -> None:
    told = [{"prompt": f"Compute {n}+1 mod 10.", "response": f"It is {(n + 1) % 10}."} for n in range(10)]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in told))
    text = file.read_text().replace("[data]\n", '[data]\ntold = "told.jsonl"\n')
    file.write_text(text[: text.index("[rewarders.polite]")] + DISTILLED)
    with ring(tmp_path / "run", file=file) as made:
        made.kill_at(2)
        made.killed()
        assert made.run()
        last = {r.stage: r for r in made.results()}
        cosine = [0.1 + 0.45 * (1 + math.cos(math.pi * done)) for done in (3 / 4, 2 / 3)]
        assert (last[1].stage_step, last[2].stage_step) == (4, 3), "15 documents are four steps"
        assert last[1].metrics["lr"] == pytest.approx(1e-4 * cosine[0])
        assert last[2].metrics["lr"] == pytest.approx(1e-3 * cosine[1])
        assert made.verify().problems == []
    assert [rate_of(n) for n in (10**6, 1_540_000_000, 7_600_000_000, 32_800_000_000, 70_600_000_000)] == [
        1e-4, 1e-4, 8e-5, 6e-5, 2e-5,
    ]  # fmt: skip


@pytest.mark.long
def test_passes_over_data_without_end_are_refused(tmp_path: Path, file: Path) -> None:
    text = file.read_text()
    endless = DISTILLED.replace('"told"', '"corpus"')
    file.write_text(text[: text.index("[rewarders.polite]")] + endless)
    with ring(tmp_path / "run", file=file) as made, pytest.raises(RunFileError, match="has no end: set steps"):
        made.run()


TAUGHT = f"""
[rewarders.teacher]
use = "rewarders.teacher:Teacher"
model = "{{run}}/checkpoints/stage-0-base"
student = "{TINY}"
device = "cpu"

[rewarders.teacher.worker]
memory_mb = 8192
spares = 0

[[stage]]
kind = "rl"
name = "taught"
data = "lessons"
steps = 3
learner = {{ objective = "distill", max_lag = 0, drop_zero_variance = true, optimizer = {{ lr = 1e-3 }} }}
"""


@pytest.mark.long
def test_a_policy_is_taught_by_what_an_earlier_stage_left(tmp_path: Path, file: Path) -> None:
    lessons = 'lessons = { use = "learner.data.sums:SignedSums", rewards = { teacher = 0.0 } }\n'
    text = file.read_text().replace("[data]\n", f"[data]\n{lessons}")
    file.write_text(text[: text.index("[rewarders.polite]")] + TAUGHT)
    with ring(tmp_path / "run", "stage.0.steps=10", file=file) as made:
        assert made.run()
        first, *later = (r.metrics["kl_teacher"] for r in made.results() if r.stage == 1)
        assert abs(first) < 1e-5 and len(later) == 2, "the first step is taken on the teacher's own tokens"
        votes = {(v.group_id, v.index): v for v in made.records("rewards", Vote)}
        fresh = [t for t in made.records("trajectories", Trajectory) if t.newest_version == 1]
        assert len(fresh) == 16
        for sample in fresh:
            said = np.frombuffer(votes[sample.group_id, sample.index].logprobs, "<f4")
            assert said == pytest.approx(sample.logprobs[sample.mask()], abs=1e-4)
        audit = made.verify()
        assert (audit.trained, audit.dropped, audit.problems) == (12, 0, []), (
            "no group is flat where a teacher has spoken"
        )
