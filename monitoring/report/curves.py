"""The curves of a report: which metrics of the steps are drawn together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monitoring.report.charts import Line, line_chart
from monitoring.report.data import RunReport

GROUPS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Entropy", "nats", (("entropy", "Entropy"),)),
    ("KL divergence", "nats", (("kl_behavior", "to the behaviour policy"), ("kl_reference", "to the reference"))),
    ("Clipped and masked tokens", "", (("clip_fraction_low", "clipped low"), ("clip_fraction_high", "clipped high"), ("clip_fraction_dual", "clipped dual"), ("capped_fraction", "weight capped"), ("masked_fraction", "without gradient"))),
    ("Effective sample size", "", (("ess_ratio", "of tokens"), ("ess_ratio_sequence", "of sequences"))),
    ("Gradient norm", "", (("grad_norm", "Gradient norm"),)),
    ("Loss", "", (("loss", "Loss"),)),
    ("Importance ratio", "", (("importance_ratio_mean", "mean"), ("importance_ratio_max", "max"))),
    ("Response length", "tokens", (("response_length_mean", "all judged"), ("trained_length_mean", "trained"))),
    ("Staleness", "versions", (("staleness_mean", "mean"), ("staleness_max", "max"), ("staleness_sampling_mean", "while sampling"), ("staleness_queue_mean", "while waiting"))),
    ("Groups without a gradient", "", (("zero_variance_group_ratio", "Groups without a gradient"),)),
    ("Time of a step", "s", (("step_seconds", "Time of a step"),)),
)  # fmt: skip
"""Title, unit, and metrics with their labels."""
LOGARITHMIC = {"KL divergence", "Gradient norm", "Importance ratio"}
SHARES = {"Effective sample size", "Groups without a gradient"}


def curves(report: RunReport) -> list[str]:
    """The charts that there is data for."""
    voted = sorted(name for name in report.series if name.startswith("reward/"))
    rewards = [("reward_mean", "all judged"), ("trained_reward_mean", "trained")]
    rewards += [(name, name.removeprefix("reward/")) for name in voted]
    charts = [_chart(report, "Reward", "", rewards), _held_out(report), _against(report)]
    return charts + [_chart(report, title, unit, names) for title, unit, names in GROUPS]


def _chart(report: RunReport, title: str, unit: str, names: Sequence[tuple[str, str]]) -> str:
    lines = [Line(label, report.series[name]) for name, label in names if name in report.series]
    return line_chart(title, report.steps, lines, unit, fixed=title in SHARES, log=title in LOGARITHMIC)


def _against(report: RunReport) -> str:
    """Each rewarder, and each shadow, against held-out accuracy, as in DeepSeek-R1 (arXiv 2501.12948), Figure 6: where the one rises and the other
    falls, the rewarder is gamed."""
    values: dict[str, dict[float, float]] = {}
    for step, name, value, _, _ in report.evaluations:
        values.setdefault(name.rpartition(":")[0], {})[step] = value
    nan = float("nan")
    lines = [
        Line(" ".join(filter(None, ("pass@1", benchmark))), [found.get(step, nan) for step in report.steps])
        for benchmark, found in values.items()
    ]
    lines = [line for line in lines if any(value == value for value in line.values)]
    given = [
        Line(name if prefix == "shadow/" else name.removeprefix(prefix), report.series[name])
        for prefix in ("reward/", "shadow/")
        for name in sorted(report.series)
        if name.startswith(prefix)
    ]
    return line_chart("Rewarders against held-out accuracy", report.steps, [*lines, *given]) if lines and given else ""


def _held_out(report: RunReport) -> str:
    """pass@1 of every evaluation, a line a benchmark; of two on one version the last is drawn."""
    found: dict[str, dict[float, tuple[float, float, float]]] = {}
    for score in report.course:
        found.setdefault(score.benchmark, {})[score.step] = score.value, score.low, score.high
    if not found:
        found = {"": {step: (value, low, high) for step, _, value, low, high in report.evaluations}}
    steps = sorted({step for points in found.values() for step in points})
    nothing = (math.nan, math.nan, math.nan)
    lines = []
    for name, points in found.items():
        values, lows, highs = (
            zip(*(points.get(step, nothing) for step in steps), strict=True) if steps else ((), (), ())
        )
        lines.append(Line(name if len(found) > 1 else "pass@1", values, lows, highs))
    return line_chart("Held-out pass@1 (95% interval)", steps, lines, fixed=True) if steps else ""
