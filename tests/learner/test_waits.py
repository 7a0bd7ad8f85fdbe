"""Whoever waits says for what, and hears it if there is nothing to wait for."""

from __future__ import annotations

from pathlib import Path

import pytest
import ring as rings
from ring import Direct, ring

from broker.errors import WeightPushError


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


@pytest.mark.long
@pytest.mark.parametrize("version", [1, 3], ids=["for the first step", "for an evaluation"])
def test_a_learner_whose_weights_reach_nobody_does_not_wait_for_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    class Broken(Direct):
        """Fails, as the publisher's thread does, without a word to who publishes."""

        failed = False

        def publish(self, now: int) -> None:
            self.failed = now >= version
            if not self.failed:
                super().publish(now)

        def check(self) -> None:
            if self.failed:
                raise WeightPushError("the publisher has failed: the disk is full")

    monkeypatch.setattr(rings, "Direct", Broken)
    settings = ("stage.0.steps=2", "stage.1.steps=2", "stage.1.eval_every=0", "stage.2.questions=4")
    with ring(tmp_path, *settings, "learner.max_lag=0") as made, pytest.raises(WeightPushError, match="disk is full"):
        made.run()
