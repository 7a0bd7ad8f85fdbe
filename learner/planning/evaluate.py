"""pass@1 over k samples and cons@k, with 95% intervals, of the groups that an evaluation asked for.

An evaluation runs in the ring like everything else: its prompts go to the actors, its samples to the rewarders.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from broker.log import Producer
from broker.messages import Dropped, Evaluation, encode
from learner.planning.groups import Group
from learner.planning.join import Join

Z95 = 1.959964
_BOX = re.compile(r"\\boxed\{([^{}]*)\}")
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Request:
    """An evaluation under way. Correct is what ``rewarder`` gives at least 1; ``deadline`` in seconds."""

    name: str
    step: int
    stage: int
    k: int
    rewarder: str
    deadline: float
    asked: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The judged answers to one question: whether each is correct, and the final answer that it gives."""

    correct: tuple[bool, ...]
    finals: tuple[str, ...]


def final_answer(text: str) -> str:
    """What a response gives as its answer: the last box, else what the answer tags hold, else what follows the thinking."""
    tail = text.rpartition("</think>")[2]
    boxes = _BOX.findall(tail)
    if boxes:
        return str(boxes[-1]).strip()
    tagged = _TAG.findall(tail)
    return " ".join((tagged[-1] if tagged else tail).split())


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


class Evaluations:
    """The evaluations under way; writes each result as soon as its last group has ended."""

    def __init__(self, join: Join, producer: Producer, topic: str) -> None:
        self._join, self._producer, self._topic = join, producer, topic
        self._requests: dict[str, Request] = {}
        self._lost: dict[str, list[Dropped]] = {}
        self._restarted = 0.0

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(self._requests)

    def expect(self, request: Request) -> None:
        self._requests.setdefault(request.name, request)

    def restart_deadlines(self, now: float) -> None:
        """Count all deadlines anew from ``now``."""
        self._restarted = now

    def settle(self, now: float) -> list[Evaluation]:
        """Write the results of all evaluations that are complete; returns them."""
        done = []
        for request in list(self._requests.values()):
            groups = [g for g in self._join.groups.values() if g.prompt.collection == request.name]
            groups = [g for g in groups if not self._lose(g, request, now)]
            if all(g.complete for g in groups):
                done.append(self._finish(request, groups))
        return done

    def _lose(self, group: Group, request: Request, now: float) -> bool:
        """Whether the group ends here without an answer: dead-lettered, or past the deadline."""
        if group.id in self._join.dead:
            del self._join.dead[group.id]
            reason = "dead_letter"
        elif not group.complete and now - max(request.asked, self._restarted) > request.deadline:
            reason = "incomplete"
        else:
            return False
        self._join.remove(group.id)
        self._lost.setdefault(request.name, []).append(Dropped(group.id, reason, group.tokens))
        return True

    def _finish(self, request: Request, groups: list[Group]) -> Evaluation:
        judged, dropped = [], self._lost.pop(request.name, [])
        versions, lengths = [], []
        for group in groups:
            answers = answers_of(group, request.rewarder)
            if answers is None:
                dropped.append(Dropped(group.id, "unjudged", group.tokens))
                continue
            judged.append(answers)
            for trajectory, _ in group.samples.values():
                versions += [trajectory.oldest_version, trajectory.newest_version]
                lengths.append(trajectory.response_tokens)
        mean, interval = pass_at_1(judged)
        cons, cons_interval = cons_at_k(judged)
        result = Evaluation(
            name=request.name,
            step=request.step,
            stage=request.stage,
            questions=len(judged),
            k=request.k,
            pass_at_1=mean,
            pass_at_1_interval=interval,
            cons_at_k=cons,
            cons_at_k_interval=cons_interval,
            versions=(min(versions, default=request.step), max(versions, default=request.step)),
            response_tokens=fmean(lengths) if lengths else 0.0,
            group_ids=tuple(g.id for g in groups if g.id not in {d.group_id for d in dropped}),
            dropped=tuple(dropped),
            created=time.time(),
        )
        self._producer.send(self._topic, f"evaluation/{request.name}".encode(), encode(result))
        self._producer.flush()
        for group in groups:
            self._join.remove(group.id)
        del self._requests[request.name]
        return result


def answers_of(group: Group, rewarder: str) -> Answers | None:
    """The judged answers of a group; None if ``rewarder`` has judged none of them."""
    correct, finals = [], []
    for index in sorted(group.samples):
        vote = group.votes_on(index).get(rewarder)
        if vote is not None and vote.value is not None:
            correct.append(vote.value >= 1.0)
            finals.append(final_answer(group.samples[index][0].text))
    return Answers(tuple(correct), tuple(finals)) if correct else None
