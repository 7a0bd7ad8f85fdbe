"""The result of an audit: its counts, and the problems that it found."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 50  # number of problems that are spelled out; all are counted


@dataclass(slots=True)
class Audit:
    """Counts of groups by fate, and what is wrong (nothing: the run is sound)."""

    fed: int = 0
    trained: int = 0
    dropped: int = 0
    dead_lettered: int = 0
    evaluated: int = 0
    collected: int = 0
    """Groups that ended in an artefact of a stage."""
    outstanding: int = 0
    steps: int = 0
    samples_trained: int = 0
    supervised_steps: int = 0
    documents: int = 0
    """Those that supervised steps were trained on; in every pass anew."""
    reread: int = 0
    """Supervised steps that were made again after a checkpoint and have read other documents: data or run file were changed meanwhile."""
    dead_letters: int = 0
    duplicate_samples: int = 0
    """Samples that came again while their group was among the last ``duplicates.REMEMBERED`` of its partition."""
    expired: int = 0
    """Records of manifests that retention has removed, as the run file asked."""
    looked_into: int = 0
    """Manifests whose samples and votes were read, each one; of the other ones only the groups' fates are known."""
    sealed: int = 0
    """The offset in the steps topic at which this audit began: an earlier one has found everything below it sound."""
    forked_from: str = ""
    """The run and the step that this one begins from, which are no part of this audit."""
    dropped_by_reason: dict[str, int] = field(default_factory=dict)
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """The first ``SHOWN`` of them."""

    def problem(self, text: str) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(text)

    def ended(self, fate: str, groups: int = 1) -> None:
        """Count groups by their fate."""
        setattr(self, fate, getattr(self, fate) + groups)


COUNTS = (
    "fed", "trained", "dropped", "dead_lettered", "evaluated", "collected", "outstanding", "steps", "samples_trained",
    "supervised_steps", "documents", "reread", "dead_letters", "duplicate_samples", "expired", "looked_into",
)  # fmt: skip
"""The counts in the order in which people are shown them."""
