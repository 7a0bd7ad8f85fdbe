"""What the learner takes from a run file as a whole."""

from __future__ import annotations

from pathlib import Path

from broker.runfile import RunFile
from learner.config import LearnerConfig


def test_mixes_and_judges_say_which_rewarders_groups_may_wait_for(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        """
[data]
general = { path = "general.jsonl", rewards = { taste = 1.0 } }

[[stage]]
kind = "rl"
data = "general"
rewards = { general = { form = 0.5 } }
eval_every = 5
eval_rewarder = "strict"

[[stage]]
kind = "reject"
require = { solved = 1.0 }

[[stage]]
kind = "evaluate"
rewarder = "blind"
"""
    )
    config = LearnerConfig(RunFile.read(file))
    assert config.judging({"accuracy": 1.0}) == {"accuracy", "taste", "form", "strict", "solved", "blind"}
