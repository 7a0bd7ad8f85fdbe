"""The lineage of one optimizer step: which samples, from which versions, judged how, at which log positions; of a supervised one, which documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.errors import DecodeError, HeadraceError, RunFault
from broker.log import Log, Reader
from broker.messages import GroupRef, Manifest, Message, Position, Prompt, SampleRef, StepResult, Trajectory, Vote
from broker.topics import Topics
from headrace.reading.heads import head_of
from headrace.reading.history import History, whole
from headrace.reading.origin import origin_of, told
from headrace.reading.records import read, records
from headrace.reading.turns import ending, spoken
from learner.planning.rewards import reward_of


def trace(log: Log, topics: Topics, step: int) -> dict[str, Any]:
    """Everything about ``step``, as JSON can say it. Raises RunFault if the log has no such step.

    Where a record can no longer be read, ``unreadable`` says why in its place; the ``reward`` of a sample is None where votes are missing.
    """
    origin = origin_of(log, topics)
    if origin is not None and step <= origin.step:
        raise RunFault(f"step {step} is not of this run, which was forked from {told(origin)}: look there")
    manifest, result, why = find(log, topics, step)
    return {
        "step": step,
        "stage": manifest.stage,
        "created": manifest.created,
        "groups": groups_of(log, topics, manifest),
        "dropped": [d._asdict() for d in manifest.dropped],
        "metrics": dict(result.metrics) if result else {},
        "phases": dict(result.phases) if result else {},
        "set_aside": why,
        "again": manifest.again,
        "forked_from": origin._asdict() if origin is not None else None,
    }


def trace_supervised(log: Log, topics: Topics, stage: int, step: int) -> dict[str, Any]:
    """Everything about step ``step`` of supervised stage ``stage``, as JSON can say it; of a redo the last. Raises RunFault if the log has none.

    ``rows`` are those of each source, as runs of first row and number; older logs have the ``documents`` of ten steps, and no rows.
    """
    found, steps = None, set()
    for record in records(log, topics.steps):
        head = head_of(record)
        if head.type != StepResult.TYPE or head.stage != stage:
            continue
        message = read(record)
        if isinstance(message, StepResult):
            steps.add(message.stage_step)
            found = message if message.stage_step == step else found
    if found is None:
        there = f"; it has {min(steps)}..{max(steps)}" if steps else ""
        raise RunFault(f"the log of {topics.run} has no step {step} of stage {stage}{there}")
    first, count, sha256 = found.documents or (0, 0, "")
    return {
        "step": step,
        "stage": stage,
        "version": found.step,
        "created": found.created,
        "documents": {"first": first, "count": count, "sha256": sha256},
        "rows": {name: [list(run) for run in runs] for name, runs in found.rows.items()},
        "metrics": dict(found.metrics),
        "phases": dict(found.phases),
    }


def groups_of(log: Log, topics: Topics, manifest: Manifest, limit: int | None = None) -> list[dict[str, Any]]:
    """The groups of a manifest (the first ``limit``), with their samples and votes."""
    prompts, samples, votes = log.reader(topics.prompts), log.reader(topics.trajectories), log.reader(topics.rewards)
    try:
        return [_group(g, manifest.step, prompts, samples, votes) for g in manifest.groups[:limit]]
    finally:
        for reader in (prompts, samples, votes):
            reader.close()


def find(log: Log, topics: Topics, step: int) -> tuple[Manifest, StepResult | None, str]:
    """The manifest of ``step``, what came out of it if it has been executed, and why it was set aside if it was."""
    history = History.around(log, topics, step, step)
    head = next((h for h in history.manifests if h.kind == "step" and h.step == step), None)
    if head is None:
        raise RunFault(
            f"the log of {topics.run} has no step {step}{known_steps(log, topics)}; a step of a supervised stage: --stage NAME"
        )
    done = history.executed(head)
    return next(whole(log, topics, [head])), done.result if done is not None else None, history.aside.get(step, "")


def known_steps(log: Log, topics: Topics) -> str:
    """Which steps there are, for an error."""
    found = [head.step for head in History.of(log, topics).steps]
    return f"; it has {min(found)}..{max(found)}" if found else "; it has none yet"


def _group(group: GroupRef, step: int, prompts: Reader, samples: Reader, votes: Reader) -> dict[str, Any]:
    (prompt,) = _fetch(prompts, [group.prompt])
    found = _fetch(samples, [s.position for s in group.samples])
    question = prompt.messages[-1].content if isinstance(prompt, Prompt) else ""
    return {
        "group_id": group.group_id,
        "prompt": list(group.prompt),
        "question": question,
        "answer": prompt.answer if isinstance(prompt, Prompt) else None,
        "samples": [_sample(ref, sample, step, votes) for ref, sample in zip(group.samples, found, strict=True)],
    }


def _sample(ref: SampleRef, sample: Message | str, step: int, votes: Reader) -> dict[str, Any]:
    cast = _fetch(votes, [v.position for v in ref.votes])
    told = [_vote(v.rewarder, v.position, vote) for v, vote in zip(ref.votes, cast, strict=True)]
    out: dict[str, Any] = {"index": ref.sample, "position": list(ref.position), "votes": told}
    if not isinstance(sample, Trajectory):
        return out | {"unreadable": sample if isinstance(sample, str) else f"a {type(sample).__name__} lies there"}
    turns = [turn.plain() for turn in spoken(sample)]
    episode = {"environment": sample.environment, "turns": turns, "ending": ending(sample)} if turns else {}
    return out | {
        "reward": reward_of(sample.rewards, {v.rewarder: v for v in cast if isinstance(v, Vote)}),
        "versions": [list(v) for v in sample.versions],
        "staleness": sample.staleness(step),
        "tokens": sample.response_tokens,
        "finish_reason": sample.finish_reason,
        "actor": sample.actor,
        "engine": sample.engine,
        "text": sample.text,
        **episode,
    }


def _vote(rewarder: str, position: Position, vote: Message | str) -> dict[str, Any]:
    out: dict[str, Any] = {"rewarder": rewarder, "position": list(position)}
    if not isinstance(vote, Vote):
        return out | {"unreadable": vote if isinstance(vote, str) else f"a {type(vote).__name__} lies there"}
    return out | {"outcome": vote.outcome, "value": vote.value, "why": vote.why, "seconds": vote.seconds}


def _fetch(reader: Reader, positions: Sequence[Position]) -> list[Message | str]:
    """The message at each position, or why there is none."""
    out: list[Message | str] = []
    for position in positions:
        try:
            message = read(reader.get([position])[0])
        except HeadraceError as error:
            out.append(str(error))
        else:
            out.append(message.reason if isinstance(message, DecodeError) else message)
    return out
