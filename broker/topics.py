"""The six topics of a run."""

from __future__ import annotations

from dataclasses import dataclass

from broker.log import TopicSpec

STEPS_OWNER = "learner"  # the name under which the one learner of a run holds its exclusive producer


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of a run's topics, and how they are kept. ``partitions`` bounds how many workers can share a topic."""

    run: str
    partitions: int = 8
    retention_seconds: float = 0.0

    @property
    def prompts(self) -> str:
        return f"{self.run}.prompts"

    @property
    def trajectories(self) -> str:
        return f"{self.run}.trajectories"

    @property
    def rewards(self) -> str:
        return f"{self.run}.rewards"

    @property
    def steps(self) -> str:
        return f"{self.run}.steps"

    @property
    def policy(self) -> str:
        return f"{self.run}.policy"

    @property
    def deadletters(self) -> str:
        return f"{self.run}.deadletters"

    @property
    def sessions(self) -> str:
        """The topic of outside agents' sessions; it exists once ``headrace serve`` has run."""
        return f"{self.run}.sessions"

    def sessions_spec(self) -> TopicSpec:
        """One ordered partition, made by the first ``headrace serve`` of a run."""
        return TopicSpec(self.sessions, 1, retention_seconds=self.retention_seconds)

    def group(self, name: str) -> str:
        """The consumer group ``name`` of this run: several runs may share a cluster."""
        return f"{self.run}.{name}"

    def specs(self) -> list[TopicSpec]:
        """All six. Steps, policy and dead letters are one ordered partition each; steps and dead letters are kept for ever."""
        many, keep = self.partitions, self.retention_seconds
        return [
            TopicSpec(self.prompts, many, retention_seconds=keep),
            TopicSpec(self.trajectories, many, retention_seconds=keep),
            TopicSpec(self.rewards, many, retention_seconds=keep),
            TopicSpec(self.steps, 1),
            TopicSpec(self.policy, 1, compacted=True),
            TopicSpec(self.deadletters, 1),
        ]
