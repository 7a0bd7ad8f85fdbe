"""The whole recipe on one thread, with the fewest steps: killed in every stage and redone, nothing lost, every document traced to the log."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ring import TINY, Killed, Ring, ring

from broker.messages import Artefact, Prompt
from learner.config import LearnerConfig
from learner.learner import Learner

ROOT = TINY.parents[1]
RUN = f"""
[run]
name = "short"
model = "{TINY}"
seed = 5
rewards = {{ sure = 1.0, vowels = 0.1 }}

[data]
corpus = {{ use = "learner.data.bilingual:BilingualCorpus" }}
prompts = {{ use = "learner.data.bilingual:BilingualSums", seed = 1 }}
hard = {{ use = "learner.data.bilingual:BilingualSums", seed = 2, min_terms = 6, max_terms = 8 }}
general = {{ use = "learner.data.greetings:Greetings", seed = 3, rewards = {{ judge = 1.0 }} }}
replies = {{ use = "learner.data.greetings:GreetingReplies", count = 6 }}
preferences = {{ use = "learner.data.greetings:GreetingPairs", count = 16 }}
heldout = {{ use = "learner.data.bilingual:BilingualSums", seed = 9, held_out = true }}

[actors]
slots = 32
context_length = 128

[rewarders.sure]
use = "seen.py:Sure"

[rewarders.vowels]
use = "seen.py:Vowels"

[rewarders.judge]
use = "rewarders.reward_model:RewardModel"
model = "{{run}}/models/preferred"
device = "cpu"

[rewarders.judge.worker]
memory_mb = 8192
spares = 0

[learner]
groups_per_step = 2
group_size = 3
max_lag = 1
drop_zero_variance = false
deadline = 600.0
checkpoint_every = 2
optimizer = {{ lr = 1e-4 }}
sampling = {{ max_new_tokens = 16 }}

[[stage]]
kind = "sft"
name = "base"
init = "random"
data = "corpus"
steps = 4
documents_per_step = 2
checkpoint_every = 2

[[stage]]
kind = "train_reward"
name = "preferred"
data = "preferences"
model = "base"
batch = 8

[[stage]]
kind = "rl"
name = "zero"
steps = 3

[[stage]]
kind = "reject"
name = "collected"
data = "prompts"
questions = 4
samples = 2
require = {{ sure = 1.0 }}

[[stage]]
kind = "rewrite"
name = "readable"
data = "collected"
rewriter = {{ use = "seen.py:Louder" }}

[[stage]]
kind = "sft"
name = "cold"
model = "base"
data = "readable"
epochs = 2
documents_per_step = 2
checkpoint_every = 1

[[stage]]
kind = "rl"
name = "reasoning"
steps = 2
rewards = {{ prompts = {{ sure = 1.0, vowels = 0.5 }} }}

[[stage]]
kind = "reject"
name = "chosen"
data = "prompts"
questions = 4
samples = 2
require = {{ sure = 1.0 }}

[[stage]]
kind = "sft"
name = "tuned"
model = "base"
data = ["chosen", "replies"]
epochs = 1
documents_per_step = 2

[[stage]]
kind = "rl"
name = "r1"
steps = 4
data = "hard"
later = [{{ last_steps = 2, data = {{ hard = 1, general = 1 }}, max_new_tokens = 20 }}]

[[stage]]
kind = "sft"
name = "student-base"
init = "random"
model = "{ROOT}/recipes/tiny_student_m"
data = "corpus"
steps = 2
documents_per_step = 2

[[stage]]
kind = "distill"
name = "student"
data = ["chosen", "replies"]
epochs = 1
documents_per_step = 4

[[stage]]
kind = "evaluate"
name = "student-scores"
questions = 4
rewarder = "sure"

[[stage]]
kind = "evaluate"
name = "r1-scores"
model = "r1"
questions = 4
rewarder = "sure"
"""

SEEN = """
class Sure:
    def __call__(self, sample):
        return 1.0


class Vowels:
    def __call__(self, sample):
        return sum(c in "aeiou" for c in sample.text) / max(1, len(sample.text))


class Louder:
    def __call__(self, row):
        return row["response"].upper() + "!"
"""

DIGITS = 'stop = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "."]'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "seen.py").write_text(SEEN)
    (tmp_path / "run.toml").write_text(RUN.replace("max_new_tokens = 16 ", f"max_new_tokens = 16, {DIGITS} "))
    return tmp_path / "run.toml"


def kill_everywhere(made: Ring, monkeypatch: pytest.MonkeyPatch, stages: int) -> dict[tuple[str, int], int]:
    """Have the learner killed once in the middle of every stage, once before it is closed and once behind that; how often each has come."""
    left = {(where, index) for where in ("step", "ends", "closed") for index in range(stages)}
    seen: dict[tuple[str, int], int] = {}

    def killing(where: str, index: int) -> None:
        seen[where, index] = seen.get((where, index), 0) + 1
        if (where, index) in left:
            left.discard((where, index))
            raise Killed

    closes, supervised, taken = Learner.close_stage, Learner.progress_in_stage, Learner.take

    def close_stage(self: Learner, index: int) -> None:
        killing("ends", index)
        closes(self, index)
        killing("closed", index)

    def progress(self: Learner, index: int, report: Any) -> None:
        supervised(self, index, report)
        killing("step", index)

    def take(self: Learner, planned: Any) -> Any:
        done = taken(self, planned)
        if planned.manifest.kind == "step":
            killing("step", planned.manifest.stage)
        return done

    monkeypatch.setattr(Learner, "close_stage", close_stage)
    monkeypatch.setattr(Learner, "progress_in_stage", progress)
    monkeypatch.setattr(Learner, "take", take)
    return seen


@pytest.mark.slow
def test_the_recipe_is_killed_in_every_stage_and_loses_nothing(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "run"
    with ring(home, file=file) as made:
        stages = LearnerConfig(made.run_of.file).stages
        names = [stage.name for stage in stages]
        seen = kill_everywhere(made, monkeypatch, len(stages))
        runs = 1
        while not ran(made):
            runs += 1
        assert {index for where, index in seen if where == "closed"} == set(range(len(stages)))
        in_the_middle = {names[index] for where, index in seen if where == "step"}
        assert in_the_middle == {s.name for s in stages if s.kind in ("sft", "distill", "rl", "train_reward")}
        assert runs == 1 + 2 * len(stages) + len(in_the_middle)
        audit = made.verify()
        assert (audit.steps, audit.outstanding, audit.problems) == (3 + 2 + 4, 0, [])
        assert audit.trained == 2 * audit.steps
        lineage(made, home)
        documents(made)
        phases(made)


def ran(made: Ring) -> bool:
    try:
        return made.run()
    except Killed:
        return False


def lineage(made: Ring, home: Path) -> None:
    """Each artefact is the file that the log tells of, and each of its documents names the sample in the log that it was made of."""
    artefacts = {a.name: a for a in made.records("steps", Artefact)}
    assert set(artefacts) == {"preferred", "collected", "readable", "chosen"}
    samples = {tuple(position): sample for position, sample in made.positions("trajectories")}
    for name in ("collected", "readable", "chosen"):
        path = home / artefacts[name].path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == artefacts[name].sha256
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert rows and len(rows) == artefacts[name].metrics["documents"]
        for row in rows:
            sample = samples[tuple(row["metadata"]["position"])]
            text = sample.text if name != "readable" else sample.text.upper() + "!"
            assert (sample.id, text) == (row["metadata"]["sample"], row["response"])
    counts = artefacts["chosen"].about["statistics"]
    assert counts["sums"]["documents"] == counts["total"]["documents"] == artefacts["chosen"].metrics["documents"]


def documents(made: Ring) -> None:
    """Every supervised step says what it has read, and what was read again after a kill is the same."""
    told: dict[int, dict[int, Any]] = {}
    for result in made.results():
        if result.documents is not None:
            read = result.documents, result.rows
            assert told.setdefault(result.stage, {}).setdefault(result.stage_step, read) == read
    assert set(told) == {0, 5, 8, 10, 11}, "every supervised stage"
    assert all(set(steps) == set(range(1, len(steps) + 1)) for steps in told.values())
    (numbers, rows), (last, _) = told[0][1], told[0][4]
    assert (numbers[:2], rows, last[:2]) == ((0, 2), {"corpus": ((0, 2),)}, (6, 2))
    mixed = {(name, first) for _, read in told[8].values() for name, runs in read.items() for first, _ in runs}
    assert {name for name, _ in mixed} == {"chosen", "replies"}
    audit = made.verify()
    assert (audit.supervised_steps, audit.reread) == (sum(map(len, told.values())), 0)


def phases(made: Ring) -> None:
    """General prompts come with the last steps alone, with the mix of their own and at the length of the phase."""
    fed = [p for p in made.records("prompts", Prompt) if p.purpose == "train"]
    general = [p for p in fed if p.dataset == "general"]
    hard = [p for p in fed if p.dataset == "hard"]
    assert {frozenset(p.rewards) for p in general} == {frozenset({"judge"})}
    assert {p.sampling.max_new_tokens for p in general} == {20} and {p.sampling.max_new_tokens for p in hard} == {
        16,
        20,
    }
    trained = [{ref.group_id.partition("-")[0] for ref in m.groups} for m in made.steps() if m.stage == 9]
    assert trained[:2] == [{"hard"}] * 2 and {"general", "hard"} == set().union(*trained[2:])
    reasoned = [p.rewards for p in fed if p.dataset == "prompts" and p.rewards.get("vowels") == 0.5]
    assert reasoned, "the stage's own mix goes before that of the run"
