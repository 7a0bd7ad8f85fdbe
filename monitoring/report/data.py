"""What a report shows, as plain data: filled by whoever knows the run, drawn by ``page`` and ``plots``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WAITING = "wait_"
"""The phases of a step whose names begin so are time in which the learner had nothing to do."""


SHOWN_ABOVE = ("stages", "writing")
"""Parts of a summary that the page shows as tables of their own, and that would flood a terminal."""


@dataclass(slots=True)
class Sample:
    """One judged sample to show: question, response, reward, and each rewarder's vote with its why.

    An episode has its ``turns``: who spoke, what, and what else is known of it.
    ``period`` is when it was trained (``early`` or ``late``), ``chosen`` why it is shown, ``facts`` what else is known.
    """

    title: str
    question: str
    text: str
    reward: float
    votes: dict[str, str] = field(default_factory=dict)
    period: str = ""
    chosen: str = ""
    facts: str = ""
    turns: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(slots=True)
class Histogram:
    """How often each whole number was seen, in the first and in the second half of training."""

    title: str
    unit: str
    early: Mapping[int, int] = field(default_factory=dict)
    late: Mapping[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class TextWindow:
    """How the samples trained in steps ``first`` to ``last`` are written. All shares lie in [0, 1].

    ``samples`` were trained and could be read, ``read`` of them were looked into word by word. ``reflective`` is the share
    of those with any reflective word, ``words`` the share with each; ``scripts`` the share of each script among all
    words; ``consistency`` the mean over responses of the share of words in the response's majority script; ``cut`` the
    share of samples that ended at the length limit.
    """

    first: int
    last: int
    samples: int
    read: int
    reflective: float
    words: dict[str, float]
    scripts: dict[str, float]
    consistency: float
    cut: float


@dataclass(slots=True)
class Score:
    """One evaluation of one benchmark: pass@1 with its interval, the majority vote, and the mean tokens of an answer."""

    benchmark: str
    step: float
    questions: int
    k: int
    value: float
    low: float
    high: float
    cons: float
    tokens: float


@dataclass(slots=True)
class StageRow:
    """What a stage left and what it cost. ``scores`` are the newest evaluations of its model, by benchmark.

    ``seconds`` are those from the stage before (or its own first record) to its last record; ``generated`` and ``trained`` are tokens,
    ``documents`` those that supervised steps were trained on, in every pass anew, and ``odd`` those that were left out.
    """

    name: str
    kind: str
    steps: int = 0
    scores: dict[str, Score] = field(default_factory=dict)
    trained: int = 0
    generated: int = 0
    seconds: float = 0.0
    documents: int = 0
    odd: int = 0


@dataclass(slots=True)
class Excerpt:
    """One question of a benchmark, and a sample of each stage's model: stage, whether it was judged right (None: not judged), text."""

    benchmark: str
    question: str
    answers: list[tuple[str, bool | None, str]] = field(default_factory=list)


@dataclass(slots=True)
class RunReport:
    """All that a report shows. ``series`` and ``phases`` (seconds) are per optimizer step of the RL stages, by name;
    ``evaluations`` are (step, name, value, low, high). ``audit`` holds the audit's counts, ``problems`` what it found."""

    name: str
    summary: dict[str, Any]
    config: str
    steps: list[float] = field(default_factory=list)
    series: dict[str, list[float]] = field(default_factory=dict)
    evaluations: list[tuple[float, str, float, float, float]] = field(default_factory=list)
    phases: dict[str, list[float]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    histograms: list[Histogram] = field(default_factory=list)
    texts: list[TextWindow] = field(default_factory=list)
    audit: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stages: list[StageRow] = field(default_factory=list)
    course: list[Score] = field(default_factory=list)
    """Every evaluation in the order of the log."""
    excerpts: list[Excerpt] = field(default_factory=list)


def waiting_share(phases: Mapping[str, Sequence[float]]) -> float:
    """The share of the learner's time in which it waited; 0 where no time is known."""
    total = sum(map(sum, phases.values()))
    waited = sum(sum(seconds) for name, seconds in phases.items() if name.startswith(WAITING))
    return waited / total if total else 0.0


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested summary as rows of name and value."""
    out = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            out += flatten(value, f"{prefix}{key} · ")
        else:
            out.append((f"{prefix}{key}", f"{value:.4g}" if isinstance(value, float) else str(value)))
    return out
