"""What a learner finds when it is opened again: where the checkpoint, the log and the run file have come apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ring import Killed, ring
from ringtools import small_copy

from learner.training.checkpoint import Checkpoints, Progress

SECOND = """
[[stage]]
kind = "sft"
name = "second"
model = "base"
data = "corpus"
steps = 4
documents_per_step = 2
"""


@pytest.mark.long
def test_a_supervised_stage_does_not_take_up_what_the_one_before_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stage's closing checkpoint is lost; the one that it leaves for good is there, and so is the order of the second's weights."""
    file = small_copy(tmp_path)
    text = file.read_text()
    file.write_text(text[: text.index('[[stage]]\nkind = "rl"')] + SECOND)
    finish = Checkpoints.finish

    def full(self: Checkpoints, progress: Progress, *rest: Any) -> Path:
        if progress.closed:
            raise OSError("no space left on device")
        return finish(self, progress, *rest)

    with ring(tmp_path / "run", file=file) as made:
        with monkeypatch.context() as patched:
            patched.setattr(Checkpoints, "finish", full)
            made.kill_at(2)  # the version that the second stage begins with
            with pytest.raises((OSError, Killed)):
                made.run()
        before = len(made.results())
        assert made.run()
        assert [(r.stage, r.stage_step) for r in made.results()[before:]] == [(1, step) for step in range(1, 5)]
