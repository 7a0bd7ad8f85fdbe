"""The state of a run for display, as plain data; ``live`` and ``report`` draw it."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGES = ("overview", "daemons", "queues", "steps", "letters", "samples")
"""The views of a run, in the order of their number keys."""


@dataclass(slots=True)
class DaemonView:
    """One daemon: ``state`` is running, restarting or gone. Unknown values are None.

    ``rate`` is its throughput per second, in ``unit``; ``inflight`` the number of samples that it is generating;
    ``slots`` the limit for each of its servers; ``busy`` the share of its time, in [0, 1], in which it does not wait.
    """

    name: str
    role: str
    pid: int
    state: str
    restarts: int = 0
    version: int | None = None
    rate: float | None = None
    unit: str = ""
    inflight: int | None = None
    slots: int | None = None
    busy: float | None = None


@dataclass(slots=True)
class QueueView:
    """``lag`` records of a topic that a consumer group has yet to read; ``age`` of the oldest of them, in seconds."""

    group: str
    topic: str
    lag: int
    age: float | None = None


@dataclass(slots=True)
class StepView:
    """One optimizer step of a stage: its metrics, and the policy version that it made."""

    version: int
    stage: str
    step: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class LetterView:
    """One dead letter: when it was written (``at``, seconds since the epoch), the record, the reason, and what
    ``became`` of it.
    """

    offset: int
    at: float
    record: str
    group: str
    worker: str
    reason: str
    became: str = "waiting"


@dataclass(slots=True)
class SampleView:
    """One trained sample: its reward, its votes as one line, and the model's text."""

    title: str
    reward: float
    votes: str
    text: str


@dataclass(slots=True)
class RunView:
    """A run at one moment. Rates are per second, since the last refresh; ``evaluations`` are (name, pass@1, low, high).

    ``history`` has the last steps. ``lags``, ``letters`` (the newest) and ``samples`` are filled only on request.
    """

    name: str
    stage: str = "starting"
    stage_number: int = 0
    stages: int = 0
    step: int = 0
    steps: int = 0
    version: int = 0
    elapsed: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    evaluations: list[tuple[str, float, float, float]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    generated_per_second: float = 0.0
    trained_per_second: float = 0.0
    queues: dict[str, int] = field(default_factory=dict)
    daemons: list[DaemonView] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    history: list[StepView] = field(default_factory=list)
    lags: list[QueueView] = field(default_factory=list)
    letters: list[LetterView] = field(default_factory=list)
    letters_waiting: int = 0
    samples: list[SampleView] = field(default_factory=list)


def clean_text(text: str, limit: int = 2000) -> str:
    """The first ``limit`` characters of ``text``, with control characters replaced: a model's text must not control the
    terminal.
    """
    kept = "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text[:limit])
    return kept + ("…" if len(text) > limit else "")


def sparkline(values: list[float], width: int = 40) -> str:
    """``values`` as a line of block characters; many values are averaged, to fewer than 2 * ``width`` characters."""
    if not values:
        return ""
    step = max(1, len(values) // width)
    shown = [sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)]
    low, high = min(shown), max(shown)
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(blocks[round((v - low) / (high - low) * 7) if high > low else 0] for v in shown)
