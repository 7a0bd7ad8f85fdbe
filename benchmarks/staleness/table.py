"""Writes benchmarks/staleness.md and staleness.svg from the results: mean and spread over bases, by objective and lag."""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.staleness.lab import ANSWER, FINAL_SAMPLES, QUESTIONS, Setting
from benchmarks.staleness.results import known

Result = Mapping[str, Any]
BENCHMARKS = Path(__file__).resolve().parents[1]
SHOWN = 6  # objectives in the plot


def label(found: Result) -> str:
    """A setting without its lag and base."""
    options = {**found["options"], **{f"optimizer.{k}": v for k, v in found["optimizer"].items()}}
    told = "".join(f", {name} {value}" for name, value in sorted(options.items()))
    return f"`{found['objective']}`{told}"


def final(found: Result) -> float:
    """Held-out pass@1 after ``steps`` steps behind the first ``lag``."""
    return float(found["curve"][str(found["steps"])])


def rows(results: Iterable[Result]) -> dict[tuple[str, float, float], dict[int, list[Result]]]:
    """Results by (setting, rate, momentum), then lag."""
    out: dict[tuple[str, float, float], dict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for found in results:
        out[label(found), found["lr"], found["beta1"]][found["lag"]].append(found)
    return out


def cell(found: Sequence[Result]) -> str:
    """Mean, and the range over bases where there are several."""
    values = [final(one) for one in found]
    if not values:
        return ""
    spread = f" ({min(values):.3f}-{max(values):.3f}, {len(values)} bases)" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{spread}"


def table(results: Sequence[Result]) -> list[str]:
    lags = sorted({found["lag"] for found in results})
    lines = [
        "| objective | lr | beta1 |" + "".join(f" lag {lag} |" for lag in lags),
        "|---|---|---|" + "---|" * len(lags),
    ]
    found = rows(results)
    worst = max(lags)

    def order(key: tuple[str, float, float]) -> tuple[float, ...]:
        at = found[key].get(8) or found[key].get(worst) or []
        return (-fmean(map(final, at)) if at else 1.0, key[1], key[2])

    for key in sorted(found, key=order):
        name, lr, beta1 = key
        lines.append(
            f"| {name} | {lr:g} | {beta1:g} |" + "".join(f" {cell(found[key].get(lag, []))} |" for lag in lags)
        )
    return lines


def on_policy(results: Sequence[Result]) -> dict[int, float]:
    """The best result without lag of any setting, by base; not a number where there is none."""
    return {
        b: max((final(r) for r in results if r["base"] == b and r["lag"] == 0), default=float("nan"))
        for b in {r["base"] for r in results}
    }


def by_base(results: Sequence[Result], setting: Setting) -> list[str]:
    """``setting`` on every base and at every lag, with the share of the same base on-policy (the best of all settings)."""
    mine = [
        r
        for r in results
        if label(r) == label(setting.__dict__) and (r["lr"], r["beta1"]) == (setting.lr, setting.beta1)
    ]
    bases, lags = sorted({r["base"] for r in mine}), sorted({r["lag"] for r in mine})
    best = on_policy(results)
    value = {(r["base"], r["lag"]): final(r) for r in mine}
    head = "| base | best on-policy |" + "".join(f" lag {lag} | of on-policy |" for lag in lags)
    lines = [head, "|---|---|" + "---|---|" * len(lags)]
    for b in bases:
        cells = [
            f" {value[b, lag]:.3f} | {value[b, lag] / best[b]:.1%} |" if (b, lag) in value else " | |" for lag in lags
        ]
        lines.append(f"| {b} | {best[b]:.3f} |" + "".join(cells))
    means = [[value[b, lag] / best[b] for b in bases if (b, lag) in value] for lag in lags]
    lines.append("| mean | |" + "".join(f" | {fmean(m):.1%} |" for m in means))
    return lines


def rivals(results: Sequence[Result], lag: int) -> list[str]:
    """The settings that were tried at ``lag`` on every base, and their share of the best on-policy result there."""
    bases = sorted({r["base"] for r in results})
    best = on_policy(results)
    shares = {}
    for (name, lr, beta1), found in rows(results).items():
        value = {r["base"]: final(r) for r in found.get(lag, [])}
        if value.keys() == set(bases):
            shares[f"{name}, lr {lr:g}, beta1 {beta1:g}"] = [value[b] / best[b] for b in bases]
    lines = ["| setting |" + "".join(f" base {b} |" for b in bases) + " mean |", "|---|" + "---|" * (len(bases) + 1)]
    for name, share in sorted(shares.items(), key=lambda item: -fmean(item[1])):
        lines.append(f"| {name} |" + "".join(f" {s:.1%} |" for s in share) + f" {fmean(share):.1%} |")
    return lines


def plot(results: Sequence[Result], path: Path) -> None:
    """Final pass@1 over lag, of the best settings that were tried at several."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    found = rows(results)
    whole = [key for key, lags in found.items() if len(lags) > 1]
    whole.sort(key=lambda key: -fmean(final(r) for r in found[key][max(found[key])]))
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for key in whole[:SHOWN]:
        lags = sorted(found[key])
        axes.plot(
            lags,
            [fmean(map(final, found[key][lag])) for lag in lags],
            "o-",
            label=f"{key[0].replace('`', '')}, lr {key[1]:g}",
        )
    axes.set(xlabel="lag (updates)", ylabel="held-out pass@1 after 40 + lag steps", ylim=(0.5, 1))
    axes.legend(fontsize=7)
    with rc_context({"svg.hashsalt": "headrace"}):
        figure.savefig(path, metadata={"Date": None})


def newest_bases(results: Sequence[Result]) -> list[Result]:
    """The results that say which weights they began from: of each base those of the weights that came last."""
    last = {r["base"]: r["weights"] for r in results if r.get("weights")}
    return [r for r in results if r.get("weights") and r["weights"] == last[r["base"]]]


def write(default: Setting) -> None:
    everything = list(known().values())
    newest, results = newest_bases(everything), [r for r in everything if not r.get("weights")]
    one = [result for result in results if result["base"] == default.base]
    minutes = sum(r["seconds"] for r in everything) / 60
    text = (BENCHMARKS / "staleness" / "about.md").read_text()
    parts = {
        "questions": str(QUESTIONS), "answer": str(ANSWER), "samples": str(FINAL_SAMPLES), "count": str(len(everything)), "minutes": f"{minutes:.0f}",
        "versions": f"torch {version('torch')}, Python {platform.python_version()}, {platform.machine()}",
        "table": "\n".join(table(one)), "default": "\n".join(by_base(newest, default)), "newest": "\n".join(table(newest)),
        "rivals": "\n".join(rivals(results, default.lag)), "rivals16": "\n".join(rivals(results, 2 * default.lag)),
        "plain": "\n".join(by_base(results, replace(default, objective="tis_sequence"))),
        "setting": f"{label(json.loads(json.dumps(default.__dict__)))}, lr {default.lr:g}, beta1 {default.beta1:g}",
    }  # fmt: skip
    for name, value in parts.items():
        text = text.replace("{" + name + "}", value)
    (BENCHMARKS / "staleness.md").write_text(text)
    plot(one, BENCHMARKS / "staleness.svg")
