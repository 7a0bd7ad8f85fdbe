"""The README's own blocks work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from broker.messages import ChatMessage, Sampling, Segment, Trajectory, VersionSpan
from rewarders.registry import load_rewarder

ROOT = Path(__file__).resolve().parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_rewarder_of_the_readme_can_be_plugged_in(tmp_path: Path) -> None:
    (code,) = blocks("python")
    (tmp_path / "brevity.py").write_text(code)
    (table,) = blocks("toml")
    assert 'use = "brevity.py:Brevity"' in table
    judge = load_rewarder("brevity.py:Brevity", {"budget": 10}, tmp_path)
    text = "x" * 15
    spans = (Segment("prompt", 0, 1, False), Segment("assistant", 1, 2, True))
    sample = Trajectory("g@0", 0, 1, (ChatMessage("user", "?"),), None, "", {}, {}, "train", text, np.array([1, 2], np.int32), np.zeros(2, np.float32), spans, (VersionSpan(0, 1),), "stop", Sampling())  # fmt: skip
    reward = judge(sample)
    assert reward is not None and reward.value == 0.5 and reward.why == "5 characters over"


def test_the_commands_and_files_it_names_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+) ", text):
        assert f"\n{target}:" in makefile, target
    for path in re.findall(r"(?:recipes|docs)/[\w./]+\w", text):
        assert (ROOT / path).exists(), path
