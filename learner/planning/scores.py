"""pass@1 over k samples, pass@k and cons@k, with 95% intervals over questions, of the groups that an evaluation asked for.

What an answer is, its rewarder says (``Vote.answer``, in canonical form): nothing here reads a response.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from broker.messages import Dropped, Evaluation, Trajectory, Vote
from learner.data.source import STALE_ROW
from learner.planning.fates import Reason
from learner.planning.groups import Group, Judged
from learner.planning.intervals import Interval, mean_interval
from learner.tables import Benchmark

FINISHED = ("stop", "turns")
"""How an answer ends that counts: the others were cut off by a limit, or given up."""
RIGHT, WRONG, UNJUDGED = "1", "0", "-"
EXAMPLES = 8  # groups whose places an evaluation's record names


@dataclass(frozen=True, slots=True)
class Answers:
    """The judged answers to one question: whether each is correct, and the final answer that it gives. ``marks`` has a sign for every sample,
    judged or not (``mark_of``)."""

    correct: tuple[bool, ...]
    finals: tuple[str, ...]
    marks: str = ""


def pass_at_1(questions: Sequence[Answers]) -> tuple[float, Interval]:
    """Mean correctness over samples, then over questions, with its 95% interval."""
    return _mean([fmean(q.correct) for q in questions])


def cons_at_k(questions: Sequence[Answers]) -> tuple[float, Interval]:
    """Share of questions whose most frequent final answer is correct; ties go to the answer that came first."""
    return _mean([float(q.correct[q.finals.index(Counter(q.finals).most_common(1)[0][0])]) for q in questions])


def pass_at_k(questions: Sequence[Answers], k: int) -> tuple[float, Interval]:
    """Chance that one of ``k`` answers is correct, the unbiased estimate of arXiv 2107.03374, eq. 1."""
    chances = []
    for q in questions:
        n, right = len(q.correct), sum(q.correct)
        chances.append(float(right > 0) if n - right < k else 1.0 - math.comb(n - right, k) / math.comb(n, k))
    return _mean(chances)


def _mean(values: Sequence[float]) -> tuple[float, Interval]:
    """0 in [0, 1] without questions."""
    return (fmean(values), mean_interval(values)) if values else (0.0, (0.0, 1.0))


def answers_of(group: Group, rewarder: str) -> Answers | None:
    """The answers to one question, of all samples that were asked for; None if ``rewarder`` has judged none of them.

    An answer that was never finished is wrong whatever its beginning looks like. One that the rewarder could not judge, or abstained on,
    is left out, and ``score`` says so.
    """
    marks, finals = [], []
    for index in sorted(group.samples):
        sample, vote = group.samples[index][0], group.votes_on(index).get(rewarder)
        mark = mark_of(sample, vote)
        marks.append(mark)
        if mark != UNJUDGED:
            said = vote.answer if vote is not None and sample.finish_reason in FINISHED else ""
            finals.append(said or f"\0{index}")  # no answer agrees with no other, and is none that could be given
    correct = tuple(mark == RIGHT for mark in marks if mark != UNJUDGED)
    return Answers(correct, tuple(finals), "".join(marks)) if correct else None


def mark_of(sample: Trajectory, vote: Vote | None) -> str:
    """``1``: right, at least 1 of its rewarder; ``0``: wrong, or never finished; ``-``: finished, and without a value."""
    if sample.finish_reason not in FINISHED:
        return WRONG
    if vote is None or vote.value is None:
        return UNJUDGED
    return RIGHT if vote.value >= 1.0 else WRONG


def score(
    asked: Benchmark, name: str, step: int, stage: int, groups: Sequence[Group], lost: Sequence[Dropped], now: float
) -> Evaluation:
    """The figures of an evaluation whose groups have ended: what was judged, and apart from it what was not.

    ``metrics`` tell how many questions and samples were asked, answered and judged, and pass@k. ``pass_at_1_least`` is pass@1 if all that has no
    judgement were wrong. Where rows are marked as older than the model's cut-off, ``pass_at_1_fresh`` is that of the others.
    """
    judged, dropped, kept = [], list(lost), []
    for group in groups:
        answers = answers_of(group, asked.rewarder)
        if answers is None:
            dropped.append(Dropped(group.id, Reason.UNJUDGED.value, group.tokens))
        else:
            judged.append(answers)
            kept.append(group)
    samples = [trajectory for group in kept for trajectory, _ in group.samples.values()]
    versions = [version for s in samples for version in (s.oldest_version, s.newest_version)]
    mean, interval = pass_at_1(judged)
    cons, cons_interval = cons_at_k(judged)
    return Evaluation(
        name=name,
        step=step,
        stage=stage,
        questions=len(judged),
        k=asked.k,
        pass_at_1=mean,
        pass_at_1_interval=interval,
        cons_at_k=cons,
        cons_at_k_interval=cons_interval,
        versions=(min(versions, default=step), max(versions, default=step)),
        response_tokens=fmean(s.response_tokens for s in samples) if samples else 0.0,
        group_ids=tuple(g.id for g in kept),
        dropped=tuple(dropped),
        metrics={
            "questions_asked": float(len(groups) + len(lost)),
            "samples": float(sum(len(g.samples) for g in groups)),
            **_figures(asked, kept, judged, len(groups) + len(lost)),
        },
        created=now,
        data=asked.data,
        rewarder=asked.rewarder,
        marks=tuple(q.marks for q in judged),
        examples=tuple(g.ref([Judged(sample, 0.0) for sample, _ in g.samples.values()]) for g in kept[:EXAMPLES]),
    )


def _figures(asked: Benchmark, kept: Sequence[Group], judged: Sequence[Answers], questions: int) -> dict[str, float]:
    chance, (low, high) = pass_at_k(judged, asked.k)
    samples = [sample for group in kept for sample, _ in group.samples.values()]
    found = {
        "questions_judged": float(len(judged)),
        "samples_judged": float(sum(len(q.correct) for q in judged)),
        "samples_unfinished": float(sum(s.finish_reason not in FINISHED for s in samples)),
        "response_tokens_total": float(sum(s.response_tokens for s in samples)),
        "pass_at_k": chance,
        "pass_at_k_low": low,
        "pass_at_k_high": high,
        "pass_at_1_least": sum(sum(q.correct) for q in judged) / (questions * asked.k) if questions else 0.0,
    }
    marked = [bool(group.prompt.metadata.get(STALE_ROW)) for group in kept]
    if any(marked):
        fresh = [q for q, stale in zip(judged, marked, strict=True) if not stale]
        value, (low, high) = pass_at_1(fresh)
        found |= {"questions_fresh": float(len(fresh))}
        if fresh:
            found |= {"pass_at_1_fresh": value, "pass_at_1_fresh_low": low, "pass_at_1_fresh_high": high}
    return found
