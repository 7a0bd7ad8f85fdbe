"""Chooses the samples that a report shows: the best, the worst, and those that rewarders or siblings disagree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.log import Log
from broker.messages import Manifest
from broker.topics import Topics
from headrace.reading.trace import groups_of
from headrace.reading.turns import facts as turn_facts
from monitoring.report import Sample

STEPS = 2  # number of steps at either end of the run
GROUPS = 32  # number of groups of a step to look at
EACH = 2


def showcase(log: Log, topics: Topics, trained: Sequence[Manifest]) -> list[Sample]:
    """Samples of the first and of the last steps, each once with all that it was chosen for."""
    early = trained[: min(STEPS, (len(trained) + 1) // 2)]
    late = trained[max(len(early), len(trained) - STEPS) :]
    shown = []
    for period, manifests in (("early", early), ("late", late)):
        groups = [(m.step, g) for m in manifests for g in groups_of(log, topics, m, GROUPS)]
        shown += _chosen(period, groups)
    return shown


def _chosen(period: str, groups: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Sample]:
    judged = [(step, group, _readable(group)) for step, group in groups]
    everyone = [(step, group, s) for step, group, samples in judged for s in samples]
    everyone.sort(key=lambda e: -e[2]["reward"])
    disputed = sorted((e for e in everyone if vote_spread(e[2]) > 0), key=lambda e: -vote_spread(e[2]))
    torn = max(judged, key=lambda g: _reward_spread(g[2]), default=None)
    picked = [("best", e) for e in everyone[:EACH]]
    picked += [("worst", e) for e in everyone[::-1][:EACH]]
    picked += [(f"rewarders differ by {vote_spread(e[2]):.3g}", e) for e in disputed[:EACH]]
    if torn is not None and _reward_spread(torn[2]) > 0:
        step, group, samples = torn
        samples = sorted(samples, key=lambda s: -s["reward"])
        picked += [
            (f"group differs by {_reward_spread(samples):.3g}", (step, group, s)) for s in (samples[0], samples[-1])
        ]
    shown: dict[tuple[int, int], Sample] = {}
    for why, (step, group, sample) in picked:
        one = shown.setdefault(tuple(sample["position"]), _sample(period, step, group, sample))
        one.chosen = f"{one.chosen}; {why}" if one.chosen else why
    return list(shown.values())


def _readable(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The samples that are still there and have a reward."""
    return [s for s in group["samples"] if "unreadable" not in s and s["reward"] is not None]


def vote_spread(sample: Mapping[str, Any]) -> float:
    """By how much the rewarders' values on one sample differ."""
    values = [v["value"] for v in sample["votes"] if v.get("value") is not None]
    return max(values) - min(values) if values else 0.0


def _reward_spread(samples: Sequence[Mapping[str, Any]]) -> float:
    rewards = [s["reward"] for s in samples]
    return max(rewards) - min(rewards) if rewards else 0.0


def _sample(period: str, step: int, group: Mapping[str, Any], sample: Mapping[str, Any]) -> Sample:
    versions = "+".join(str(version) for version, _ in sample["versions"])
    facts = [
        f"sampled by version {versions}", f"staleness {sample['staleness']}", f"{sample['tokens']} tokens",
        f"ended by {sample['finish_reason']}", f"reference answer {group['answer']}" if group["answer"] is not None else "",
    ]  # fmt: skip
    return Sample(
        title=f"step {step}, {group['group_id']}#{sample['index']}",
        question=group["question"],
        text=sample["text"],
        reward=sample["reward"],
        votes={v["rewarder"]: vote_text(v) for v in sample["votes"]},
        period=period,
        facts=", ".join(fact for fact in facts if fact),
        turns=_turns(sample),
    )


def _turns(sample: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """An episode's turns and how it ended; none of a single answer."""
    told = [(turn["role"], turn["text"], turn_facts(turn)) for turn in sample.get("turns", ())]
    return [*told, (sample["environment"], "", sample["ending"])] if told else []


def vote_text(vote: Mapping[str, Any]) -> str:
    """One vote with its why."""
    if "unreadable" in vote:
        return "unreadable"
    return f"{round(vote['value'], 4) if vote['outcome'] == 'value' else vote['outcome']} {vote['why']}".rstrip()
