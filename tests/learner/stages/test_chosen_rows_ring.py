"""Whole runs on one thread whose rows are chosen: what stands in a benchmark is never asked, and a killed learner asks the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ring import ring
from ringtools import small_copy

from broker.messages import Artefact, Evaluation, Prompt, Trajectory

FURTHER = """
[rewarders.choice]
use = "rewarders.choice:Choice"

[[stage]]
kind = "rl"
name = "again"
steps = 2
data = "hard"

[[stage]]
kind = "rl"
name = "further"
steps = 2
data = "hard"

[[stage]]
kind = "evaluate"
name = "end"
benchmarks = [
  { data = "heldout", questions = 3, rewarder = "vowels", k = 2 },
  { data = "choices", questions = 3, rewarder = "choice", sampling = { temperature = 0.6, top_p = 0.95 } },
]
"""


def run_file(directory: Path) -> Path:
    file = small_copy(directory)
    fixture = Path(__file__).resolve().parents[2] / "fixtures" / "benchmarks" / "mmlu.jsonl"
    (directory / "vowels.py").write_text(
        "class Vowels:\n    def __call__(self, sample):\n        return float(sum(map(ord, sample.text)) % 2)\n"
    )
    (directory / "train.jsonl").write_text("".join(json.dumps({"prompt": f"Compute {n}+1."}) + "\n" for n in range(12)))
    (directory / "exam.jsonl").write_text(
        "".join(json.dumps({"prompt": f"compute {n} + 1 ."}) + "\n" for n in (3, 4, 90))
    )
    text = file.read_text()
    for old, new in (
        ('prompts = { use = "learner.data.sums:SignedSums", seed = 1 }', 'prompts = { path = "train.jsonl", select = { decontaminate = true } }\n'
         'hard = { path = "train.jsonl", select = { decontaminate = true, curriculum = { rewarder = "vowels", repeat = 3, unseen = false } } }\n'
         f'choices = {{ use = "learner.data.benchmarks.multiple_choice:Mmlu", path = "{fixture}" }}'),
        ('heldout = { use = "learner.data.sums:SignedSums", seed = 2 }', 'heldout = "exam.jsonl"'),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    file.write_text(text[: text.index('[[stage]]\nkind = "evaluate"')] + FURTHER)
    return file


@pytest.mark.slow
def test_contaminated_rows_are_never_asked_and_a_restart_follows_the_same_curriculum(tmp_path: Path) -> None:
    settings = ("stage.0.steps=1", "stage.1.steps=3", "stage.1.eval_every=0", "learner.checkpoint_every=1000")
    with ring(tmp_path / "run", *settings, file=run_file(tmp_path)) as made:
        place = tmp_path / "run" / "artefacts"

        def fed_of(stage: str) -> list[Prompt]:
            begins = json.loads((place / f"{stage}-hard.rows.json").read_text())["begins"]
            return [p for p in made.records("prompts", Prompt) if p.dataset == "hard" and p.number >= begins]

        def is_fed() -> bool:
            return (place / "further-hard.rows.json").exists() and bool(fed_of("further"))

        made.when(is_fed, made.kill)  # rows of the second curriculum are asked, and no manifest knows of them
        made.killed()
        before = (place / "further-hard.rows.json").read_text()
        assert made.run() and (place / "further-hard.rows.json").read_text() == before
        prompts = made.records("prompts", Prompt)
        trained = [p for p in prompts if p.purpose == "train"]
        assert {p.messages[0].content for p in trained}.isdisjoint({"Compute 3+1.", "Compute 4+1."})
        left, later = [n for n in range(12) if n not in (3, 4)], {p.group_id for p in fed_of("further")}
        fed = [p for p in trained if p.dataset == "hard"]
        assert len({p.group_id for p in fed}) == len(fed) and 0 < len(later) < len(fed)
        for prompt in fed:
            stage = "further" if prompt.group_id in later else "again"
            kept = json.loads((place / f"{stage}-hard.rows.json").read_text())["rows"]
            row = left[kept[int(prompt.group_id.partition("@")[0].removeprefix("hard-"))]]
            assert prompt.messages[0].content == f"Compute {row}+1.", "a restart gives each number the same row"
        choices = made.records("steps", Artefact)
        assert [(c.kind, c.name, c.about["data"]) for c in choices] == [
            ("rows", "again-hard", "hard"),
            ("rows", "further-hard", "hard"),
        ]
        ends = {e.name: e for e in made.records("steps", Evaluation)}
        assert ends.keys() == {"end/heldout", "end/choices"} and ends["end/choices"].rewarder == "choice"
        asked = [p for p in prompts if p.collection == "end/choices"]
        assert all(dict(p.rewards) == {"choice": 1.0} for p in asked)
        assert all(
            (p.sampling.temperature, p.sampling.top_p, p.sampling.max_new_tokens) == (0.6, 0.95, 12) for p in asked
        )
        samples = [t for t in made.records("trajectories", Trajectory) if t.collection == "end/choices"]
        assert len(samples) == 3 and made.verify().problems == []
