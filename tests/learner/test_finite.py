"""Training that has left the finite numbers is said at once, and ends the run before it has spent its steps on nothing."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
from ring import ring

from broker.errors import RunFault
from learner.finite import HOPELESS_STEPS, Finite


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
    assert "the gradient of step 41 is not finite (norm inf): the weights stay" in caplog.text


def test_supervised_training_that_blows_up_ends_with_the_reason(tmp_path: Path) -> None:
    settings = ("stage.0.optimizer.lr=1e30", "stage.0.optimizer.weight_decay=0.0", "stage.0.steps=100")
    with (
        ring(tmp_path, *settings) as made,
        pytest.raises(RunFault, match="are not finite: the weights or the data are broken"),
    ):
        made.run()
