"""The lineage of one optimizer step: which samples, from which versions, judged how, at which log positions."""

from __future__ import annotations

from typing import Any

from broker.errors import RunFault
from broker.log import Log
from broker.messages import Manifest, Prompt, StepResult, Trajectory, Vote
from broker.topics import Topics
from headrace.records import read, scan


def trace(log: Log, topics: Topics, step: int) -> dict[str, Any]:
    """Everything about ``step``, as JSON can say it. Raises RunFault if the log has no such step."""
    manifest: Manifest | None = None
    result: StepResult | None = None
    for _, message in scan(log, topics.steps):
        if isinstance(message, Manifest) and message.step == step and message.kind == "step":
            manifest = message
        elif (
            isinstance(message, StepResult)
            and manifest is not None
            and message.step == step
            and message.stage == manifest.stage
        ):
            result = message
    if manifest is None:
        raise RunFault(f"the log of {topics.run} has no step {step}")
    readers = log.reader(topics.prompts), log.reader(topics.trajectories), log.reader(topics.rewards)
    prompts, trajectories, rewards = readers
    groups = []
    for group in manifest.groups:
        prompt = read(prompts.get([group.prompt])[0])
        samples = []
        for ref in group.samples:
            sample = read(trajectories.get([ref.position])[0])
            votes = [read(r) for r in rewards.get([v.position for v in ref.votes])]
            assert isinstance(sample, Trajectory)
            samples.append(
                {
                    "index": ref.sample,
                    "position": list(ref.position),
                    "versions": [list(v) for v in sample.versions],
                    "staleness": manifest.step - 1 - sample.oldest_version,
                    "tokens": sample.response_tokens,
                    "finish_reason": sample.finish_reason,
                    "actor": sample.actor,
                    "text": sample.text,
                    "votes": [_vote(v, list(p.position)) for v, p in zip(votes, ref.votes, strict=True)],
                }
            )
        question = prompt.messages[-1].content if isinstance(prompt, Prompt) else ""
        groups.append(
            {"group_id": group.group_id, "prompt": list(group.prompt), "question": question, "samples": samples}
        )
    for reader in readers:
        reader.close()
    return {
        "step": step,
        "stage": manifest.stage,
        "created": manifest.created,
        "groups": groups,
        "dropped": [d._asdict() for d in manifest.dropped],
        "metrics": dict(result.metrics) if result else {},
        "phases": dict(result.phases) if result else {},
    }


def _vote(vote: object, position: list[int]) -> dict[str, Any]:
    assert isinstance(vote, Vote)
    return {
        "rewarder": vote.rewarder,
        "outcome": vote.outcome,
        "value": vote.value,
        "why": vote.why,
        "position": position,
    }
