"""A report's data made by hand, as large and as hostile as a test asks for."""

from __future__ import annotations

import math
import random
from collections import Counter

from monitoring.report import Excerpt, Histogram, RunReport, Sample, Score, StageRow, TextWindow

WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
METRICS = (
    "reward_mean", "trained_reward_mean", "reward/accuracy", "reward/format", "entropy", "kl_behavior", "kl_reference",
    "clip_fraction_low", "clip_fraction_high", "ess_ratio", "loss", "importance_ratio_mean", "importance_ratio_max",
    "zero_variance_group_ratio",
)  # fmt: skip
THOUGHT = (
    "<think>\n1 + 2 = 3. Wait, that is wrong. Let me check it again: 12 + 7 = 19.\n</think><answer>\\boxed{19}</answer>"
)


def series(steps: int, seed: int = 0) -> dict[str, list[float]]:
    """Every metric that is drawn, with noise on a course that a real run might take."""
    chance = random.Random(seed)
    done = [i / max(1, steps - 1) for i in range(steps)]
    out = {name: [min(1.0, max(0.0, 0.2 + 0.6 * d + chance.gauss(0, 0.05))) for d in done] for name in METRICS}
    out["grad_norm"] = [10 ** (1 - 2 * d + chance.gauss(0, 0.2)) for d in done]
    out["response_length_mean"] = [200 + 900 * d + chance.gauss(0, 40) for d in done]
    out["trained_length_mean"] = [220 + 900 * d + chance.gauss(0, 60) for d in done]
    out["staleness_mean"] = [float("nan") if i % 50 == 7 else 1 + chance.random() for i in range(steps)]
    out["staleness_max"] = [float(chance.randint(2, 6)) for _ in done]
    out["step_seconds"] = [20 + 5 * d for d in done]
    return out


def stages(steps: int, hostile: str) -> tuple[list[StageRow], list[Score], list[Excerpt]]:
    """Three stages with two benchmarks, the course of one of them, and two questions with an answer of each stage."""

    def score(benchmark: str, step: float, value: float) -> Score:
        return Score(
            benchmark + hostile, step, 400, 16, value, value - 0.05, value + 0.05, value + 0.1, 200 + 900 * value
        )

    names = [f"{name}{hostile}" for name in ("cold", "zero", "r1")]
    rows = [
        StageRow(
            name, "rl" + hostile, steps, {s.benchmark: s for s in (score("aime", n, 0.2 + 0.3 * n), score("math", n, 0.9 - 0.1 * n))[: n + 1]},
            10_000 * n, 2_345_678, 3600.0 * n,
        )
        for n, name in enumerate(names)
    ]  # fmt: skip
    course = [score("aime", float(step), 0.2 + 0.5 * step / steps) for step in range(1, steps + 1, max(1, steps // 8))]
    answers = [(name, verdict, THOUGHT + hostile) for name, verdict in zip(names, (False, True, None), strict=True)]
    return rows, course, [Excerpt("aime" + hostile, f"What is {n}?" + hostile, answers) for n in range(2)]


def hand_report(steps: int = 300, hostile: str = "") -> RunReport:
    """A whole run of ``steps``; ``hostile`` is put wherever a text may come from elsewhere."""
    chance = random.Random(1)
    waits = [4 * math.exp(-5 * i / max(1, steps)) + chance.random() for i in range(steps)]
    phases = {"wait_data": waits} | {
        name: [seconds * (0.8 + 0.4 * chance.random()) for _ in range(steps)]
        for name, seconds in (
            ("pack", 0.2),
            ("forward_backward", 9.0),
            ("optimizer", 1.5),
            ("publish", 0.7),
            ("other", 0.3),
        )
    }
    early = Counter(max(0, round(chance.gauss(1.5, 1))) for _ in range(3000))
    late = Counter(max(0, round(chance.gauss(2.5, 1.5))) for _ in range(3000))
    short = Counter(max(1, round(chance.gauss(250, 90))) for _ in range(3000))
    long = Counter(max(1, round(chance.gauss(900, 300))) for _ in range(3000))
    windows = [
        TextWindow(
            1 + i * 10, 10 + i * 10, 640, 512, 0.2 + i * 0.02, {w: 0.01 * (n + 1) * (1 + i / 10) for n, w in enumerate(WORDS)},
            {"Latin": 0.9 + i / 400, "Han": 0.1 - i / 400}, 0.9 + i / 400, 0.3 * math.exp(-i / 8),
        )
        for i in range(30)
    ]  # fmt: skip
    samples = [
        Sample(
            f"step {step}, sums-{n}@{step}#0{hostile}", "What is 12 + 7?" + hostile, THOUGHT + hostile, 1.2 - n * 0.4,
            {"accuracy" + hostile: "1.0 equal to 19" + hostile, "format": "0.5 text outside of the tags"},
            period, why, "sampled by version 3, staleness 1, 52 tokens, ended by stop" + hostile,
        )
        for period, step in (("early", 2), ("late", 300))
        for n, why in enumerate(("best", "worst", "rewarders differ by 0.5", "group differs by 1.2"))
    ]  # fmt: skip
    summary = {
        "run": "zero" + hostile, "steps": steps, "wall_seconds": 5400.0, "pass_at_1": {"before": 0.214, "after": 0.731, "k": 4, "questions": 500},
        "groups": {"fed": 5200, "trained": 4800, "dropped": 380, "dead_lettered": 3, "evaluated": 12, "outstanding": 5},
        "tokens": {"generated": 81_234_567, "trained": 71_234_567}, "staleness": {"mean": 1.4, "max": 6.0},
        "versions": {"python": "3.12.4", "torch": "2.11.0", "odd" + hostile: hostile},
    }  # fmt: skip
    every = max(1, steps // 8)
    return RunReport(
        "zero" + hostile, summary, "[run]\nname = \"zero\"\n" + hostile, [float(i + 2) for i in range(steps)], series(steps),
        [(float(s), "rl:" + hostile, 0.2 + 0.5 * s / steps, 0.15 + 0.5 * s / steps, 0.25 + 0.5 * s / steps) for s in range(1, steps + 2, every)],
        phases, samples,
        [Histogram("Staleness of trained samples", "versions", early, late), Histogram("Response length of trained samples", "tokens", short, long)],
        windows, {"fed": 5200, "trained": 4800, "problem_count": 1 if hostile else 0}, {"stale": 120, "zero_variance": 260, "odd" + hostile: 1},
        ["group " + hostile] if hostile else [], *stages(steps, hostile),
    )  # fmt: skip
