"""Training that has left the finite numbers is said at once, and ends the run before it has spent its steps on nothing."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from ring import ring

from broker.errors import RunFault
from learner.finite import HOPELESS_STEPS, Finite
from learner.learner import Learner
from learner.training.sft import SftReport


def test_one_step_is_said_and_many_in_a_row_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    finite = Finite()
    for step in range(1, 40):
        finite.take(step, math.nan if step % HOPELESS_STEPS else 1.0)
    finite.take(40, None)
    with (
        caplog.at_level(logging.WARNING, "learner"),
        pytest.raises(RunFault, match=r"steps in a row, up to step 48, are not finite"),
    ):
        for step in range(41, 99):
            finite.take(step, math.inf)
    with caplog.at_level(logging.WARNING, "learner"):
        finite.take(99, 0.0, 7.0)
    assert "7 tokens of step 99 are left out" in caplog.text
    assert "the gradient of step 41 is not finite (norm inf): the weights stay" in caplog.text


@pytest.mark.long
def test_supervised_training_on_broken_weights_ends_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = Learner.progress_in_stage

    def progress(self: Learner, index: int, report: SftReport) -> None:
        taken(self, index, report)
        next(self.state.model.parameters()).data.fill_(math.inf)

    monkeypatch.setattr(Learner, "progress_in_stage", progress)
    wanted = "are not finite: the weights or the data are broken"
    with ring(tmp_path, "stage.0.steps=100") as made, pytest.raises(RunFault, match=wanted):
        made.run()
