"""The same questions answered by the models of several stages, side by side; read at the places that the evaluations' records name."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from broker.errors import HeadraceError
from broker.log import Log, Reader
from broker.messages import Evaluation, GroupRef, Prompt, Trajectory
from broker.topics import Topics
from headrace.reading.records import read
from monitoring.report import Excerpt

QUESTIONS = 3  # of each benchmark


def excerpts(log: Log, topics: Topics, stages: Mapping[str, Mapping[str, Evaluation]]) -> list[Excerpt]:
    """Some questions of each benchmark that several stages were asked; those answered differently come first."""
    found: list[Excerpt] = []
    with closing(log.reader(topics.prompts)) as prompts, closing(log.reader(topics.trajectories)) as samples:
        for benchmark in dict.fromkeys(name for asked in stages.values() for name in asked):
            sides = {stage: _refs(asked[benchmark]) for stage, asked in stages.items() if benchmark in asked}
            rows = {row for refs in sides.values() for row in refs}
            for row in sorted(rows, key=lambda row: (-_differ(sides, row), row))[:QUESTIONS]:
                excerpt = Excerpt(benchmark, "")
                for stage, refs in sides.items():
                    if row in refs:
                        _add(excerpt, stage, *refs[row], prompts, samples)
                if excerpt.answers:
                    found.append(excerpt)
    return found


def _refs(evaluation: Evaluation) -> dict[str, tuple[GroupRef, str]]:
    """The groups whose places are known, with their marks, by source and row."""
    marks = dict(zip(evaluation.group_ids, evaluation.marks, strict=False))
    return {ref.group_id.rpartition("@")[0]: (ref, marks.get(ref.group_id, "")) for ref in evaluation.examples}


def _differ(sides: Mapping[str, Mapping[str, tuple[GroupRef, str]]], row: str) -> float:
    """By how much the shares of right answers differ between the stages; more stages go first."""
    shares = [
        marks.count("1") / max(1, len(marks)) for refs in sides.values() if row in refs for _, marks in [refs[row]]
    ]
    return max(shares) - min(shares) + 0.01 * len(shares)


def _add(excerpt: Excerpt, stage: str, ref: GroupRef, marks: str, prompts: Reader, samples: Reader) -> None:
    """Add the first sample of a group, and its question if not known yet; nothing if retention has removed it."""
    try:
        sample = read(samples.get([ref.samples[0].position])[0])
        prompt = read(prompts.get([ref.prompt])[0]) if not excerpt.question else None
    except (HeadraceError, IndexError):
        return
    if isinstance(sample, Trajectory) and sample.group_id == ref.group_id:
        if isinstance(prompt, Prompt):
            excerpt.question = prompt.messages[-1].content
        right = {"1": True, "0": False}.get(marks[:1])
        excerpt.answers.append((stage, right, sample.text))
