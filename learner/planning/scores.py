"""pass@1 over k samples, pass@k and cons@k, with 95% intervals, of the groups that an evaluation asked for.

What an answer is, its rewarder says (``Vote.answer``, in canonical form): nothing here reads a response.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from broker.messages import Dropped, Evaluation
from learner.planning.fates import Reason
from learner.planning.groups import Group
from learner.tables import Benchmark

Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Answers:
    """The judged answers to one question: whether each is correct, and the final answer that it gives."""

    correct: tuple[bool, ...]
    finals: tuple[str, ...]


def pass_at_1(questions: Sequence[Answers]) -> tuple[float, tuple[float, float]]:
    """Mean correctness over samples and questions, with the interval of a mean over questions (arXiv 2411.00640, section 2.2).

    With one sample a question the mean is a proportion, and Wilson's interval is used.
    """
    means = [fmean(q.correct) for q in questions]
    if not means:
        return 0.0, (0.0, 1.0)
    value = fmean(means)
    if all(len(q.correct) == 1 for q in questions) or len(means) < 2:
        return value, wilson(value, len(means))
    half = Z95 * stdev(means) / math.sqrt(len(means))
    return value, (max(0.0, value - half), min(1.0, value + half))


def cons_at_k(questions: Sequence[Answers]) -> tuple[float, tuple[float, float]]:
    """Share of questions whose most frequent final answer is correct; ties go to the answer that came first."""
    if not questions:
        return 0.0, (0.0, 1.0)
    hits = []
    for q in questions:
        winner = Counter(q.finals).most_common(1)[0][0]
        hits.append(q.correct[q.finals.index(winner)])
    value = fmean(hits)
    return value, wilson(value, len(hits))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% score interval of a proportion (E. B. Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z2 = Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(questions: Sequence[Answers], k: int) -> float:
    """Chance that one of ``k`` answers is correct, the unbiased estimate of arXiv 2107.03374, eq. 1; 0 without questions."""
    chances = []
    for q in questions:
        n, right = len(q.correct), sum(q.correct)
        chances.append(float(right > 0) if n - right < k else 1.0 - math.comb(n - right, k) / math.comb(n, k))
    return fmean(chances) if chances else 0.0


def answers_of(group: Group, rewarder: str) -> Answers | None:
    """The answers to one question, of all samples that were asked for; None if ``rewarder`` has judged none of them.

    An answer that was never finished is wrong whatever its beginning looks like. One that the rewarder could not judge, or abstained on,
    is left out, and ``score`` says so.
    """
    correct, finals = [], []
    for index in sorted(group.samples):
        sample, vote = group.samples[index][0], group.votes_on(index).get(rewarder)
        finished = sample.finish_reason in ("stop", "turns")
        if finished and (vote is None or vote.value is None):
            continue
        correct.append(finished and vote is not None and vote.value is not None and vote.value >= 1.0)
        finals.append(
            (vote.answer if vote is not None and finished else "") or f"#{index}"
        )  # no answer agrees with no other
    return Answers(tuple(correct), tuple(finals)) if correct else None


def score(
    asked: Benchmark, name: str, step: int, stage: int, groups: Sequence[Group], lost: Sequence[Dropped], now: float
) -> Evaluation:
    """The figures of an evaluation whose groups have ended: what was judged, and apart from it what was not.

    ``metrics`` tell how many questions and samples were asked, answered and judged, and pass@k.
    """
    judged, dropped, versions, lengths = [], list(lost), [], []
    samples = sum(len(g.samples) for g in groups)
    for group in groups:
        answers = answers_of(group, asked.rewarder)
        if answers is None:
            dropped.append(Dropped(group.id, Reason.UNJUDGED.value, group.tokens))
            continue
        judged.append(answers)
        for trajectory, _ in group.samples.values():
            versions += [trajectory.oldest_version, trajectory.newest_version]
            lengths.append(trajectory.response_tokens)
    mean, interval = pass_at_1(judged)
    cons, cons_interval = cons_at_k(judged)
    answered = sum(len(q.correct) for q in judged)
    unjudged = {d.group_id for d in dropped}
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
        response_tokens=fmean(lengths) if lengths else 0.0,
        group_ids=tuple(g.id for g in groups if g.id not in unjudged),
        dropped=tuple(dropped),
        metrics={
            "questions_asked": float(len(groups) + len(lost)),
            "questions_judged": float(len(judged)),
            "samples": float(samples),
            "samples_judged": float(answered),
            "pass_at_k": pass_at_k(judged, asked.k),
        },
        created=now,
    )
