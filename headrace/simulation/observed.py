"""Measures a recorded run in the form of a forecast, to compare a simulation with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from broker.log import Log
from broker.messages import StepResult, Trajectory, Vote
from broker.topics import Topics
from headrace.reading.records import scan
from headrace.simulation.rates import covered, settled_steps
from headrace.simulation.ring import Forecast


def observed(log: Log, topics: Topics, stage: int | None = None) -> Forecast:
    """The steps of an RL stage behind its first ones. A rewarder waits while it judges nothing: what a judgement costs beside is not in the log.

    Raises RunFault if there are too few.
    """
    results = settled_steps(log, topics, stage)
    begin, end = results[0].created, results[-1].created
    steps, seconds = results[1:], end - begin
    samples, written = list[Trajectory](), Counter[str]()
    votes = list[Vote]()
    for topic in (topics.prompts, topics.trajectories, topics.rewards, topics.steps):
        for record, message in scan(log, topic):
            if begin <= record.timestamp < end:
                written[topic.rpartition(".")[2]] += len(record.value)
                if isinstance(message, Trajectory):
                    samples.append(message)
                elif isinstance(message, Vote):
                    votes.append(message)
    waits = {"learner": _learner_waits(steps)}
    actors = sorted({s.actor for s in samples})
    waits["actors"] = (
        fmean(1 - covered([(s.started, s.created) for s in samples if s.actor == a], begin, end) for a in actors)
        if actors
        else 1.0
    )
    for name in sorted({v.rewarder for v in votes}):
        waits[name] = 1 - covered([(v.created - v.seconds, v.created) for v in votes if v.rewarder == name], begin, end)
    return Forecast(
        str(results[0].stage), len(steps), seconds / len(steps), waits,
        fmean(r.metrics.get("staleness_mean", 0.0) for r in steps),
        int(max(r.metrics.get("staleness_max", 0.0) for r in steps)), sum(s.response_tokens for s in samples) / seconds,
        {name: count / seconds for name, count in written.items()}, {},
    )  # fmt: skip


def _learner_waits(steps: Sequence[StepResult]) -> float:
    waited = sum(s for r in steps for name, s in r.phases.items() if name.startswith("wait_"))
    return waited / max(1e-9, sum(sum(r.phases.values()) for r in steps))
