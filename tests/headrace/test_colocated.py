"""Whole runs whose engines and learner share one set of devices in shifts: to the end, and whatever dies in a shift."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from patience import HANG, until
from ringtools import by_role, end_run, sets, start_run, verify
from runlog import manifests, messages, results_of, said, scraped, steps_of
from runmetrics import check_metrics

from broker.control.client import ControlClient
from broker.control.wire import Message
from broker.messages import PolicyVersion, Trajectory

pytestmark = [pytest.mark.processes, pytest.mark.slow]
LONG = (
    "learner.groups_per_step=12", "learner.group_size=8", "learner.sampling.max_new_tokens=100", "actors.slots=32",
    "stage.0.steps=1", "stage.1.eval_every=0",
)  # fmt: skip
"""Steps of a second and more, so that a turn can be met in its middle."""
FIRST = 5  # the first turn of the RL stage: those before are of the learner's start and of supervised training


def in_turns(*settings: str) -> list[str]:
    return sets("learner.colocated=true", *settings)


class Watcher:
    """Hears on the control road whose turn it is, as an actor does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._client = ControlClient("watcher", "watcher", handler=self._hear)
        self.rest, self.turn = False, 0

    def _hear(self, message: Message) -> None:
        if message["k"] == "state":
            self.rest, self.turn = message["rest"], message["turn"]

    def follow(self) -> None:
        """Listen to the learner that has published last."""
        policies = [m for m in messages(self._directory, "policy") if isinstance(m, PolicyVersion)]
        if policies:
            self._client.connect(policies[-1].control)

    def meet_turn(self, run: subprocess.Popen[bytes]) -> None:
        """Wait for the learner's shift to train by reinforcement."""

        def met() -> bool:
            assert run.poll() is None, said(self._directory)
            self.follow()
            return self.rest and self.turn >= FIRST

        until(met, "the learner's shift")

    def close(self) -> None:
        self._client.close()


@contextmanager
def watching(directory: Path) -> Iterator[Watcher]:
    watcher = Watcher(directory)
    try:
        yield watcher
    finally:
        watcher.close()


def drawn_by(directory: Path, actor: str) -> float:
    """Tokens that an actor has drawn so far."""
    return scraped(directory, actor)["headrace_generated_tokens_total"]


def evictions(directory: Path) -> float:
    found = scraped(directory, "learner-0").items()
    return sum(value for name, value in found if name.startswith("headrace_broadcast_evictions_total"))


def test_a_run_in_turns_is_on_policy_and_every_second_is_accounted_for(tmp_path: Path) -> None:
    run = start_run(
        tmp_path, *in_turns("learner.max_lag=0", "stage.1.steps=24", "stage.1.eval_every=12", "actors.count=2")
    )
    try:
        until(lambda: steps_of(tmp_path) >= 8 or run.poll() is not None, "some steps")
        zero_in_a_turn = {"headrace_outstanding_groups", "headrace_weight_receivers"}
        seen = check_metrics(tmp_path, quiet=zero_in_a_turn)
        learner, actor = seen["learner-0"], seen["actor-0"]
        assert learner["headrace_shift_seconds_count"] >= 8
        assert sum(v for k, v in learner.items() if k.startswith("headrace_idle_seconds_total") and "shift" in k) > 0
        assert sum(v for k, v in actor.items() if k.startswith("headrace_idle_seconds_total") and "shift" in k) > 0
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (24, 96, 0, [])
    assert audit["evaluated"] == 8 + 8 + 16
    steps = {m.step: m for m in manifests(tmp_path) if m.kind == "step"}
    of_group = {ref.group_id: step for step, m in steps.items() for ref in m.groups}
    samples: dict[str, Trajectory] = {}
    for m in messages(tmp_path, "trajectories"):
        if isinstance(m, Trajectory) and m.purpose == "train":
            samples.setdefault(m.id, m)  # of what a redelivery brings again the first holds
    assert len(samples) == 24 * 4 * 4
    for sample in samples.values():
        assert [span.version for span in sample.versions] == [of_group[sample.group_id] - 1], "of the newest weights"
    results = results_of(tmp_path)
    assert all(r.metrics["staleness_max"] == 0 and r.metrics["mismatch"] < 1e-4 for r in results)
    assert all("shift" in r.phases for r in results if r.step > min(steps))


def test_a_learner_that_is_killed_in_its_turn_leaves_nobody_resting(tmp_path: Path) -> None:
    """Nothing is sampled until its successor has taken the steps that were ordered; two steps a turn, one publication each."""
    run = start_run(tmp_path, *in_turns(*LONG, "learner.max_lag=1", "learner.shift_steps=2", "stage.1.steps=6"))
    try:
        with watching(tmp_path) as watcher:
            watcher.meet_turn(run)
            by_role(run, "learner")[0].kill()
            looks = [-1.0, drawn_by(tmp_path, "actor-0")]
            while looks[-1] > looks[-2]:  # samples that were finished before are still being published
                time.sleep(0.5)
                looks.append(drawn_by(tmp_path, "actor-0"))
            time.sleep(1.5)
            assert drawn_by(tmp_path, "actor-0") == looks[-1], "it rests"
            before = steps_of(tmp_path)
            until(lambda: steps_of(tmp_path) > before or run.poll() is not None, "more steps")
        assert run.wait(HANG) == 0, said(tmp_path)
    finally:
        end_run(run)
    audit = verify(tmp_path)
    assert (audit["steps"], audit["trained"], audit["outstanding"], audit["problems"]) == (6, 72, 0, [])
    published = {m.version for m in messages(tmp_path, "policy") if isinstance(m, PolicyVersion)}
    assert all(r.metrics["staleness_max"] <= 1 for r in results_of(tmp_path)) and len(published) <= 6
