"""Whoever waits says for what: a learner that asks for an evaluation is in a phase of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from ring import ring


@pytest.mark.long
def test_a_learner_that_waits_for_an_evaluation_says_so(tmp_path: Path) -> None:
    seen: set[bool] = set()
    with ring(tmp_path, "stage.0.steps=2", "stage.1.steps=1", "stage.1.eval_every=0", "stage.2.questions=4") as made:

        def look() -> None:
            assert made.learner is not None
            if made.learner.planning.pending():
                seen.add(made.learner.telemetry.metrics.phase_since("collect")._value.get() > 0)

        made.watch = look
        assert made.run()
    assert seen == {True}
