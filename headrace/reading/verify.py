"""The audit of a run: every prompt has exactly one fate, no sample is trained twice, every position is readable.

Pure over the log: it reads what is there when it begins and changes nothing. What retention was asked to remove is counted,
not held against the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from broker.errors import DecodeError, HeadraceError, OffsetExpired
from broker.log import Log, Reader
from broker.messages import (
    DeadLetter,
    Evaluation,
    GroupRef,
    Manifest,
    Message,
    PlannerState,
    Position,
    Prompt,
    SampleRef,
    Trajectory,
    Trimmed,
    Vote,
)
from broker.topics import Topics
from headrace.reading.records import read, scan

SHOWN = 50  # problems that are spelled out; all are counted


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
    expired: int = 0
    """Records of manifests that retention has removed, as the run file asked."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ``SHOWN`` of them."""

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(text)


def verify(log: Log, topics: Topics) -> Audit:
    """Audit the whole log of a run."""
    audit = Audit()
    steps = _Steps(audit)
    for record, message in scan(log, topics.steps):
        steps.take(record.offset, message)
    prompts = _prompts(log, topics, audit)
    _fates(log, topics, audit, steps, prompts)
    _lost(audit, steps, prompts)
    _samples(log, topics, audit, steps.manifests)
    seen = Counter(m.id for _, m in scan(log, topics.trajectories) if isinstance(m, Trajectory))
    audit.duplicate_samples = sum(n - 1 for n in seen.values())
    audit.dead_letters = sum(isinstance(m, DeadLetter) for _, m in scan(log, topics.deadletters))
    return audit


class _Steps:
    """Reads the ``steps`` topic in order: the fate of each group, and whether the versions follow each other."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._version = 0
        self._made: dict[int, Manifest] = {}
        self.manifests: list[Manifest] = []
        self.fates: dict[str, str] = {}
        self.reasons: Counter[str] = Counter()

    def take(self, offset: int, message: Message | DecodeError) -> None:
        if isinstance(message, DecodeError):
            self._audit.problem(f"record {offset} of the steps cannot be read: {message.reason}")
        elif isinstance(message, Manifest):
            where = f"manifest {message.kind} {message.step}"
            self._follows(message, where)
            self.manifests.append(message)
            self._audit.steps += message.kind == "step"
            for group in message.groups:
                self._end(group.group_id, "trained", where)
            self._drop(message.dropped, where)
        elif isinstance(message, Evaluation):
            for group_id in message.group_ids:
                self._end(group_id, "evaluated", f"evaluation {message.name}")
            self._drop(message.dropped, f"evaluation {message.name}")

    def _follows(self, manifest: Manifest, where: str) -> None:
        expected = self._version + (manifest.kind != "close")
        first = self._made.get(manifest.step) if manifest.kind != "close" else None
        if first is not None:
            same = replace(first, created=0.0) == replace(manifest, created=0.0)
            self._audit.problem(f"{where} is written twice{'' if same else ', with different content'}")
        elif manifest.step != expected:
            self._audit.problem(f"{where} stands where version {expected} is due")
        if manifest.kind != "close":
            self._made.setdefault(manifest.step, manifest)
        self._version = max(self._version, manifest.step)

    def _drop(self, dropped: Iterable[tuple[str, str, int]], where: str) -> None:
        for group_id, reason, _ in dropped:
            self.reasons[reason] += 1
            self._end(group_id, "dead_lettered" if reason == "dead_letter" else "dropped", where)

    def _end(self, group_id: str, fate: str, where: str) -> None:
        if group_id in self.fates:
            self._audit.problem(f"group {group_id} is {self.fates[group_id]} and, by {where}, {fate} again")
        self.fates.setdefault(group_id, fate)

    @property
    def state(self) -> PlannerState:
        """What the newest manifest says is under way."""
        return self.manifests[-1].state if self.manifests else PlannerState()


def _prompts(log: Log, topics: Topics, audit: Audit) -> dict[str, tuple[Prompt, Position]]:
    """The prompts by group. A record that is no prompt is another client's: the actors dead-letter it."""
    found: dict[str, tuple[Prompt, Position]] = {}
    for record, message in scan(log, topics.prompts):
        if isinstance(message, Prompt):
            first, _ = found.setdefault(message.group_id, (message, record.position))
            if _asked(first) != _asked(message):
                audit.problem(f"group {message.group_id} was fed twice, with different content")
    return found


def _asked(prompt: Prompt) -> Prompt:
    """The prompt without what may differ between two feedings of one group."""
    return replace(prompt, version=0, min_version=0, created=0.0)


def _fates(log: Log, topics: Topics, audit: Audit, steps: _Steps, prompts: dict[str, tuple[Prompt, Position]]) -> None:
    counts = Counter(steps.fates.values())
    whole = not any(log.begins(topics.prompts).values())  # else retention may have removed the prompt of an ended group
    for group_id, fate in steps.fates.items():
        if whole and group_id not in prompts:
            audit.problem(f"group {group_id} is {fate}, but was never fed")
    audit.fed = len(prompts.keys() | steps.fates.keys())
    audit.trained, audit.dropped = counts["trained"], counts["dropped"]
    audit.dead_lettered, audit.evaluated = counts["dead_lettered"], counts["evaluated"]
    audit.outstanding = sum(group_id not in steps.fates for group_id in prompts)
    audit.dropped_by_reason = dict(steps.reasons)


def _lost(audit: Audit, steps: _Steps, prompts: dict[str, tuple[Prompt, Position]]) -> None:
    """A group without a fate that the newest manifest does not know as outstanding will never end."""
    state = steps.state
    known = set(state.outstanding)
    for group_id, (_, position) in prompts.items():
        due = position.offset < state.fed.get(position.partition, 0)  # fed before that manifest was written
        if due and group_id not in steps.fates and group_id not in known:
            audit.problem(f"group {group_id} is lost: it has no fate, and the newest manifest does not know it")


def _samples(log: Log, topics: Topics, audit: Audit, manifests: Sequence[Manifest]) -> None:
    """Every record that a manifest names is readable and is what it is said to be; each sample is trained once."""
    readers = tuple(log.reader(t) for t in (topics.prompts, topics.trajectories, topics.rewards))
    fetch = _Fetch(readers, _asked_for(log, topics), audit)
    trained: Counter[tuple[str, int]] = Counter()
    for manifest in manifests:
        for group in manifest.groups:
            trained.update((group.group_id, sample.sample) for sample in group.samples)
            audit.samples_trained += len(group.samples)
            _group(fetch, audit, group, manifest.step)
    for (group_id, index), times in trained.items():
        if times > 1:
            audit.problem(f"sample {group_id}#{index} was trained {times} times")
    for reader in readers:
        reader.close()


def _asked_for(log: Log, topics: Topics) -> Callable[[int, Position], bool]:
    """Whether somebody wanted the record at a position of a topic (0, 1, 2) removed: by retention, or by a trim."""
    names, specs = (topics.prompts, topics.trajectories, topics.rewards), log.topics()
    below: dict[tuple[str, int], int] = {}
    for _, message in scan(log, topics.deadletters):
        if isinstance(message, Trimmed):
            for partition, offset in message.offsets.items():
                below[message.topic, partition] = max(offset, below.get((message.topic, partition), 0))

    def asked(topic: int, position: Position) -> bool:
        name = names[topic]
        return specs[name].retention_seconds > 0 or position.offset < below.get((name, position.partition), 0)

    return asked


class _Fetch:
    """Reads the records of a group: prompts, trajectories, votes (topics 0, 1, 2)."""

    def __init__(self, readers: tuple[Reader, ...], asked: Callable[[int, Position], bool], audit: Audit) -> None:
        self._readers, self._asked, self._audit = readers, asked, audit

    def __call__(self, topic: int, positions: Sequence[Position], name: str) -> list[Message | DecodeError | None]:
        """The records at ``positions``; None for one that is not there (and the audit knows it)."""
        try:
            return [read(r) for r in self._readers[topic].get(positions)]
        except HeadraceError:
            return [self._one(topic, p, name) for p in positions]

    def _one(self, topic: int, position: Position, name: str) -> Message | DecodeError | None:
        try:
            return read(self._readers[topic].get([position])[0])
        except OffsetExpired as error:
            if self._asked(topic, position):
                self._audit.expired += 1
            else:
                self._audit.problem(f"{name}: {error}")
        except HeadraceError as error:
            self._audit.problem(f"{name}: {error}")
        return None


def _group(fetch: _Fetch, audit: Audit, group: GroupRef, step: int) -> None:
    name = f"group {group.group_id} of step {step}"
    (prompt,) = fetch(0, [group.prompt], name)
    if prompt is not None and not (isinstance(prompt, Prompt) and prompt.group_id == group.group_id):
        audit.problem(f"{name}: its prompt does not lie at {tuple(group.prompt)}")
    samples = fetch(1, [s.position for s in group.samples], name)
    votes = iter(fetch(2, [v.position for s in group.samples for v in s.votes], name))
    for ref, sample in zip(group.samples, samples, strict=True):
        _sample(audit, group.group_id, ref, sample, [next(votes) for _ in ref.votes], step)


def _sample(
    audit: Audit,
    group_id: str,
    ref: SampleRef,
    sample: Message | DecodeError | None,
    votes: Sequence[Message | DecodeError | None],
    step: int,
) -> None:
    name = f"sample {group_id}#{ref.sample} of step {step}"
    if isinstance(sample, Trajectory) and (sample.group_id, sample.index) == (group_id, ref.sample):
        if sample.newest_version >= step:
            audit.problem(f"{name}: it was sampled by version {sample.newest_version}, which was not made yet")
    elif sample is not None:
        audit.problem(f"{name}: another record lies at {tuple(ref.position)}")
    for vote, wanted in zip(votes, ref.votes, strict=True):
        named = (group_id, ref.sample, wanted.rewarder)
        if isinstance(vote, Vote) and (vote.group_id, vote.index, vote.rewarder) == named:
            if vote.outcome == "error":
                audit.problem(f"{name}: it was trained though {vote.rewarder} could not judge it")
        elif vote is not None:
            audit.problem(f"{name}: {wanted.rewarder}'s vote does not lie at {tuple(wanted.position)}")
    if votes and all(isinstance(v, Vote) and v.outcome == "abstain" for v in votes):
        audit.problem(f"{name}: it was trained though every rewarder abstained")
    if not ref.votes:
        audit.problem(f"{name}: it was trained without a vote")
