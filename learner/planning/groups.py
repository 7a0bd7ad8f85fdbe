"""A group on its way from prompt to judgement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from broker.messages import GroupRef, Position, Prompt, SampleRef, Trajectory, Vote, VoteRef
from learner.planning.rewards import Judged, judge


@dataclass(slots=True)
class Group:
    """An outstanding group: its prompt, the samples that have come, and the votes on them. The first valid record of a
    sample or vote counts; duplicates from a redelivery are ignored."""

    prompt: Prompt
    position: Position
    fed: float
    samples: dict[int, tuple[Trajectory, Position]] = field(default_factory=dict)
    votes: dict[int, dict[str, tuple[Vote, Position]]] = field(default_factory=dict)
    excused: frozenset[str] = frozenset()
    """Rewarders of the mix that nobody waits for any longer: they have left the run file."""
    _mix: Mapping[str, float] | None = None
    _judged: list[Judged] | None = None
    _oldest: int | None = None

    @property
    def id(self) -> str:
        return self.prompt.group_id

    def add_sample(self, trajectory: Trajectory, position: Position) -> bool:
        """Returns whether it was the first of its index."""
        if self.samples.setdefault(trajectory.index, (trajectory, position))[1] != position:
            return False
        self._oldest = min(
            trajectory.oldest_version, trajectory.oldest_version if self._oldest is None else self._oldest
        )
        return True

    def add_vote(self, vote: Vote, position: Position) -> bool:
        """Returns whether it was the first of this rewarder on this sample."""
        mine = self.votes.setdefault(vote.index, {})
        return mine.setdefault(vote.rewarder, (vote, position))[1] == position

    @property
    def sampled(self) -> bool:
        return len(self.samples) == self.prompt.group_size

    @property
    def complete(self) -> bool:
        """Whether all samples have arrived and every rewarder of the mix has voted on each."""
        if self._mix is None and self.sampled:  # asked in every round of the planner: once true, it stays true
            voted = [self.votes.get(index, {}).keys() for index in self.samples]
            names = self.prompt.rewards.keys() - self.excused
            if all(names <= there for there in voted):
                self._mix = {
                    name: weight
                    for name, weight in self.prompt.rewards.items()
                    if all(name in there for there in voted)
                }
        return self._mix is not None

    @property
    def mix(self) -> Mapping[str, float]:
        """The rewarders that count, the same for all samples of the group, decided when it becomes complete: an excused one counts
        if it had voted on every sample by then. Empty before."""
        return self._mix or {} if self.complete else {}  # asking whether it is complete is what decides it

    @property
    def oldest_version(self) -> int:
        """The oldest policy version that sampled a token of the samples so far; before the first sample, the version at which the prompt was fed."""
        return max(self.prompt.version, self.prompt.min_version) if self._oldest is None else self._oldest

    @property
    def tokens(self) -> int:
        """Response tokens that have come."""
        return sum(t.response_tokens for t, _ in self.samples.values())

    def votes_on(self, index: int) -> dict[str, Vote]:
        return {name: vote for name, (vote, _) in self.votes.get(index, {}).items()}

    def judged(self) -> list[Judged]:
        """The samples that have a reward, by index; none before the group is complete."""
        if self._judged is None and self.complete:
            samples = [judge(self.samples[index][0], self.mix, self.votes_on(index)) for index in sorted(self.samples)]
            self._judged = [sample for sample in samples if sample is not None]
        return self._judged or []

    def excuse(self, rewarders: frozenset[str]) -> bool:
        """Stop waiting for these rewarders; returns whether the group was waiting for one of them."""
        waiting = not self.complete and bool(rewarders & self.prompt.rewards.keys() - self.excused)
        self.excused |= rewarders
        return waiting

    def ref(self, judged: list[Judged]) -> GroupRef:
        """Where the samples in ``judged`` and their votes lie."""
        samples = []
        for trajectory, *_ in judged:
            votes = self.votes.get(trajectory.index, {})
            refs = tuple(VoteRef(name, votes[name][1]) for name in self.mix)
            samples.append(SampleRef(trajectory.index, self.samples[trajectory.index][1], refs))
        return GroupRef(self.id, self.position, tuple(samples))

    def positions(self) -> tuple[list[Position], list[Position]]:
        """Log positions of the samples and of the votes."""
        return [p for _, p in self.samples.values()], [p for by in self.votes.values() for _, p in by.values()]
