"""What the planner is given, the plan of a stage, and what it makes: planned steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.messages import Manifest
from learner.planning.feed import Feeding
from learner.planning.rewards import Judged
from learner.tables import Training


@dataclass(frozen=True, slots=True)
class Planned:
    """A manifest that is durable, with its records decoded: what the executor takes. ``offset`` is the offset
    after it."""

    manifest: Manifest
    groups: tuple[tuple[Judged, ...], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the planner needs of an RL stage."""

    index: int
    training: Training
    feedings: tuple[Feeding, ...]
    last_step: int
    """The stage ends with this policy version."""
    later: tuple[tuple[int, tuple[Feeding, ...]], ...] = ()
    """What is asked instead for the steps after a version, the versions rising."""

    def asked_for(self, step: int) -> tuple[Feeding, ...]:
        """What is asked for the groups that make policy version ``step``."""
        return next((feedings for version, feedings in reversed(self.later) if step > version), self.feedings)

    def mixed(self, old: Mapping[str, float], mix: Mapping[str, float]) -> StagePlan:
        """The same, with ``mix`` wherever a source has the mix ``old``."""

        def changed(feedings: tuple[Feeding, ...]) -> tuple[Feeding, ...]:
            return tuple(replace(f, ask=replace(f.ask, rewards=mix)) if f.ask.rewards == old else f for f in feedings)

        later = tuple((version, changed(feedings)) for version, feedings in self.later)
        return replace(self, feedings=changed(self.feedings), later=later)

    @property
    def sources(self) -> tuple[Feeding, ...]:
        """All that is asked at some time."""
        return (*self.feedings, *(feeding for _, feedings in self.later for feeding in feedings))
