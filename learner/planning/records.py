"""Reads the records that a manifest names back from the log, for recovery, replay and trace."""

from __future__ import annotations

from broker.errors import LogError
from broker.log import Log, Record
from broker.messages import Manifest, Position, SampleRef, Trajectory, Vote, decode
from broker.topics import Topics
from learner.planning.rewards import Judged, judge


class ManifestReader:
    """Reads the samples and votes that a manifest names. Raises OffsetExpired where retention has removed one."""

    def __init__(self, log: Log, topics: Topics) -> None:
        self._topics = topics
        self._trajectories = log.reader(topics.trajectories)
        self._rewards = log.reader(topics.rewards)

    def groups(self, manifest: Manifest) -> tuple[tuple[Judged, ...], ...]:
        """The manifest's groups as the planner saw them, in order; the same rewards from the same votes."""
        samples = [s for g in manifest.groups for s in g.samples]
        trajectories = self._trajectories.get([s.position for s in samples])
        votes = self._rewards.get([v.position for s in samples for v in s.votes])
        taken, out = iter(zip(samples, trajectories, strict=True)), []
        vote_records = iter(votes)
        for group in manifest.groups:
            judged = []
            for _ in group.samples:
                ref, record = next(taken)
                judged.append(
                    self._judge(
                        group.group_id, ref, record, [next(vote_records) for _ in ref.votes], manifest.reward_rule
                    )
                )
            out.append(tuple(judged))
        return tuple(out)

    def _judge(self, group_id: str, ref: SampleRef, record: Record, votes: list[Record], rule: int) -> Judged:
        trajectory = decode(record.value)
        if not isinstance(trajectory, Trajectory) or (trajectory.group_id, trajectory.index) != (group_id, ref.sample):
            raise LogError(
                f"{self._topics.trajectories}{Position(*record.position)} is not sample {group_id}#{ref.sample}"
            )
        cast: dict[str, Vote] = {}
        for wanted, found in zip(ref.votes, votes, strict=True):
            vote = decode(found.value)
            if not isinstance(vote, Vote) or (vote.group_id, vote.index, vote.rewarder) != (
                group_id,
                ref.sample,
                wanted.rewarder,
            ):
                raise LogError(
                    f"{self._topics.rewards}{Position(*found.position)} is not {wanted.rewarder}'s vote on {group_id}#{ref.sample}"
                )
            cast[vote.rewarder] = vote
        mix = {name: weight for name, weight in trajectory.rewards.items() if name in cast}  # others were excused
        judged = judge(trajectory, mix, cast, rule)
        if judged is None:
            raise LogError(f"sample {group_id}#{ref.sample} has no reward by its votes")
        return judged

    def close(self) -> None:
        self._trajectories.close()
        self._rewards.close()
