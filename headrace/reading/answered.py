"""The evaluations of a checkpoint, named ``RUN@STAGE``, ``RUN@STEP`` or ``RUN@NAME``, and what was asked and answered in each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from broker.errors import RunFileError
from broker.log import Log
from broker.messages import Evaluation, Message, Prompt, Trajectory, Vote
from broker.spelling import nearest
from broker.topics import Topics
from headrace.reading.history import History
from headrace.reading.records import read, records
from learner.data.source import PromptRow
from learner.planning.feed import content_of
from learner.planning.scores import mark_of


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a user wrote: the run's directory, and which of its evaluations (empty: the newest)."""

    run: str
    which: str = ""

    @classmethod
    def of(cls, text: str) -> Chosen:
        run, sign, which = text.rpartition("@")
        return cls(run, which) if sign else cls(text)


def benchmark_of(evaluation: Evaluation) -> str:
    """The benchmark's own name, or that of the source that was asked, also of a record that does not say so.

    One source may be asked as several benchmarks, with a rewarder each.
    """
    named = stem(evaluation.name).partition("/")[2] or evaluation.data
    if named:
        return named
    ids = evaluation.group_ids or tuple(d.group_id for d in evaluation.dropped)
    return ids[0].rpartition("@")[0].rpartition("-")[0] if ids else stem(evaluation.name)


def stem(name: str) -> str:
    """An evaluation's name without its step: ``zero/aime:200`` is ``zero/aime``."""
    head, sign, step = name.rpartition(":")
    return head if sign and step.isdecimal() else name


def chosen(log: Log, topics: Topics, which: str) -> dict[str, Evaluation]:
    """The evaluations that ``which`` names, one a benchmark (the newest holds). Raises RunFileError, which says what there is."""
    found = History.of(log, topics).evaluations()
    if not found:
        raise RunFileError("its log has no evaluation; headrace eval makes one")
    if not which:
        picked = found
    elif which.isdecimal() and not any(e.name == which for e in found):
        picked = [e for e in found if e.step == int(which)]
    else:
        picked = [e for e in found if which in (e.name, stem(e.name)) or stem(e.name).startswith(f"{which}/")]
    if not picked:
        names = sorted({stem(e.name) for e in found})
        steps = ", ".join(map(str, sorted({e.step for e in found})))
        raise RunFileError(
            f"no evaluation {which!r}{nearest(which, names)}; there are {', '.join(names)}, of steps {steps}"
        )
    return {benchmark_of(e): e for e in picked}


@dataclass(slots=True)
class Answered:
    """An evaluation's questions by key (a fingerprint of what is asked and what answers it): marks, question, and texts of its samples."""

    evaluation: Evaluation
    marks: dict[str, str] = field(default_factory=dict)
    questions: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[int, Trajectory]] = field(default_factory=dict)
    by_row: bool = False
    """The prompts are gone: questions are told by the numbers of their rows."""


def answered(log: Log, topics: Topics, evaluation: Evaluation, rewarder: str = "", by_row: bool = False) -> Answered:
    """What the log has of an evaluation. ``rewarder`` judges a record that does not say who did; ``by_row`` tells questions by their rows even
    where the prompts are there. Raises RunFileError."""
    ids = set(evaluation.group_ids)
    prompts = {p.group_id: p for p in _of(log, topics.prompts, ids) if isinstance(p, Prompt)}
    found = Answered(evaluation, by_row=by_row or len(prompts) < len(ids))
    keys = _keys(evaluation.group_ids, {} if found.by_row else prompts)
    for message in _of(log, topics.trajectories, ids):
        if isinstance(message, Trajectory):
            found.samples.setdefault(keys[message.group_id], {}).setdefault(message.index, message)
    known = len(evaluation.marks) == len(evaluation.group_ids)
    marks = evaluation.marks if known else _marks(log, topics, evaluation, keys, found.samples, rewarder)
    found.marks = {keys[i]: mark for i, mark in zip(evaluation.group_ids, marks, strict=True)}
    found.questions = {keys[i]: p.messages[-1].content for i, p in prompts.items()}
    return found


def _keys(ids: Sequence[str], prompts: Mapping[str, Prompt]) -> dict[str, str]:
    """A key for each group. A question that is in the benchmark twice has two."""
    seen: Counter[str] = Counter()
    keys = {}
    for group_id in ids:
        prompt = prompts.get(group_id)
        name = group_id.rpartition("@")[0]
        if prompt is not None:
            name = prompt.content or content_of(PromptRow(prompt.messages, prompt.answer))
        seen[name] += 1
        keys[group_id] = name if seen[name] == 1 else f"{name}/{seen[name]}"
    return keys


def _marks(
    log: Log, topics: Topics, evaluation: Evaluation, keys: Mapping[str, str],
    samples: Mapping[str, Mapping[int, Trajectory]], rewarder: str,
) -> list[str]:  # fmt: skip
    """The marks of a record that has none, from the samples and votes themselves."""
    votes: dict[str, dict[tuple[str, int], Vote]] = defaultdict(dict)
    for message in _of(log, topics.rewards, set(evaluation.group_ids)):
        if isinstance(message, Vote) and not message.shadow:
            votes[message.rewarder].setdefault((message.group_id, message.index), message)
    judge = rewarder or evaluation.rewarder or (next(iter(votes)) if len(votes) == 1 else "")
    if judge not in votes:
        known = ", ".join(sorted(votes)) or "nobody"
        raise RunFileError(
            f"{evaluation.name}: who says what is correct? Name one with --rewarder; there are votes of {known}"
        )
    out = []
    for group_id in evaluation.group_ids:
        mine = samples.get(keys[group_id], {})
        out.append("".join(mark_of(mine[i], votes[judge].get((group_id, i))) for i in sorted(mine)))
    return out


def _of(log: Log, topic: str, ids: Iterable[str]) -> Iterator[Message]:
    """The records of these groups; the key of a record is its group."""
    wanted = {group_id.encode() for group_id in ids}
    for record in records(log, topic):
        if record.key in wanted:
            message = read(record)
            if not isinstance(message, Exception):
                yield message
