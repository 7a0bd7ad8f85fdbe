"""The audit of a run: every prompt has exactly one fate, no sample is trained twice, every position is readable."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker.errors import HeadraceError
from broker.log import Log
from broker.messages import DeadLetter, Dropped, Evaluation, Manifest, Prompt, Trajectory, Vote
from broker.topics import Topics
from headrace.records import read, scan

SHOWN = 20  # problems of one kind that are spelled out


@dataclass(slots=True)
class Audit:
    """Counts of groups by fate, and what is wrong (nothing: the run is sound)."""

    fed: int = 0
    trained: int = 0
    dropped: int = 0
    dead_lettered: int = 0
    evaluated: int = 0
    outstanding: int = 0
    steps: int = 0
    samples_trained: int = 0
    dead_letters: int = 0
    duplicate_samples: int = 0
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def problem(self, text: str) -> None:
        if len(self.problems) < SHOWN:
            self.problems.append(text)


def verify(log: Log, topics: Topics) -> Audit:
    """Audit the whole log of a run."""
    audit = Audit()
    prompts = _prompts(log, topics, audit)
    fates: dict[str, str] = {}
    manifests = _manifests(log, topics, audit, fates)
    for group_id in fates:
        if group_id not in prompts:
            audit.problem(f"group {group_id} is {fates[group_id]}, but was never fed")
    counts = Counter(fates.values())
    audit.fed = len(prompts)
    audit.trained, audit.dropped = counts["trained"], counts["dropped"]
    audit.dead_lettered, audit.evaluated = counts["dead_lettered"], counts["evaluated"]
    audit.outstanding = sum(group_id not in fates for group_id in prompts)
    _samples(log, topics, audit, manifests)
    seen: Counter[str] = Counter()
    for _, message in scan(log, topics.trajectories):
        if isinstance(message, Trajectory):
            seen[message.id] += 1
    audit.duplicate_samples = sum(n - 1 for n in seen.values())
    audit.dead_letters = sum(isinstance(m, DeadLetter) for _, m in scan(log, topics.deadletters))
    return audit


def _prompts(log: Log, topics: Topics, audit: Audit) -> dict[str, Prompt]:
    found: dict[str, Prompt] = {}
    for record, message in scan(log, topics.prompts):
        if not isinstance(message, Prompt):
            continue  # another client's record; the actors dead-letter it
        if message.group_id in found:
            audit.problem(
                f"group {message.group_id} was fed twice ({record.topic}[{record.partition}] {record.offset})"
            )
        found[message.group_id] = message
    return found


def _manifests(log: Log, topics: Topics, audit: Audit, fates: dict[str, str]) -> list[Manifest]:
    """All manifests; fills in each group's fate."""

    def end(group_id: str, fate: str, where: str) -> None:
        if group_id in fates:
            audit.problem(f"group {group_id} is {fates[group_id]} and, by {where}, {fate} again")
        fates[group_id] = fate

    manifests: list[Manifest] = []
    version = 0
    reasons: Counter[str] = Counter()
    for record, message in scan(log, topics.steps):
        dropped: tuple[Dropped, ...] = ()
        where = f"record {record.offset} of {record.topic}"
        if isinstance(message, Manifest):
            where = f"manifest {message.kind} {message.step}"
            expected = version + (message.kind != "close")
            if message.step != expected:
                audit.problem(f"{where} stands where version {expected} is due")
            version = message.step
            manifests.append(message)
            audit.steps += message.kind == "step"
            for group in message.groups:
                end(group.group_id, "trained", where)
            dropped = message.dropped
        elif isinstance(message, Evaluation):
            for group_id in message.group_ids:
                end(group_id, "evaluated", where)
            dropped = message.dropped
        for group_id, reason, _ in dropped:
            reasons[reason] += 1
            end(group_id, "dead_lettered" if reason == "dead_letter" else "dropped", where)
    audit.dropped_by_reason = dict(reasons)
    return manifests


def _samples(log: Log, topics: Topics, audit: Audit, manifests: list[Manifest]) -> None:
    """Every sample and vote that a manifest names is readable, is what it is said to be, and is trained once."""
    trajectories, rewards = log.reader(topics.trajectories), log.reader(topics.rewards)
    trained: Counter[tuple[str, int]] = Counter()
    for manifest in manifests:
        for group in manifest.groups:
            for sample in group.samples:
                audit.samples_trained += 1
                trained[group.group_id, sample.sample] += 1
                name = f"{group.group_id}#{sample.sample} of step {manifest.step}"
                try:
                    found = read(trajectories.get([sample.position])[0])
                    votes = [read(r) for r in rewards.get([v.position for v in sample.votes])]
                except HeadraceError as error:
                    audit.problem(f"{name}: {error}")
                    continue
                if not isinstance(found, Trajectory) or (found.group_id, found.index) != (
                    group.group_id,
                    sample.sample,
                ):
                    audit.problem(f"{name}: another record lies at {sample.position}")
                for vote, ref in zip(votes, sample.votes, strict=True):
                    named = isinstance(vote, Vote) and (vote.group_id, vote.index, vote.rewarder) == (
                        group.group_id,
                        sample.sample,
                        ref.rewarder,
                    )
                    if not named:
                        audit.problem(f"{name}: {ref.rewarder}'s vote does not lie at {ref.position}")
    for (group_id, index), times in trained.items():
        if times > 1:
            audit.problem(f"sample {group_id}#{index} was trained {times} times")
    trajectories.close()
    rewards.close()
