"""``headrace plan --simulate``: predict the time of a step, who waits, how old samples are, and the log's traffic."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.errors import RunFileError
from headrace.commands.arguments import key_values
from headrace.running.rundir import reopen
from headrace.running.runfile import WholeRun
from headrace.simulation.observed import observed
from headrace.simulation.rates import Rates, measured
from headrace.simulation.ring import Forecast, forecast

NEEDED = ("decode_step", "learner_token")


def arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--simulate", action="store_true", help="play an RL stage in simulated time instead of the checks")
    sub.add_argument("--like", type=Path, metavar="RUN", help="simulate by the rates and lengths of this recorded run")
    sub.add_argument(
        "--rates", action="append", default=[], metavar="NAME=VALUE", help="a rate of its own (docs/simulate.md)"
    )
    sub.add_argument("--steps", type=int, default=40, metavar="N", help="how many steps are simulated")
    sub.add_argument("--stage", type=int, default=None, metavar="NUMBER", help="default: the first RL stage")


def check(options: argparse.Namespace) -> None:
    """Raises RunFileError for options that need ``--simulate`` if it is not given, and for ``--steps`` below 1."""
    if not options.simulate and (options.like or options.rates or options.stage is not None):
        raise RunFileError("--like, --rates and --stage go with --simulate")
    if options.steps < 1:
        raise RunFileError(f"--steps {options.steps}: at least 1 is needed")


def simulate(options: argparse.Namespace, whole: WholeRun) -> tuple[Rates, Forecast, Forecast | None]:
    """The rates, the forecast made from them, and the recorded run if there is one. Raises RunFileError, RunFault."""
    given = key_values(options.rates, "--rates")
    rates, seen = Rates(), None
    if options.like is not None:
        run = reopen(options.like)
        with closing(run.open_log()) as log:
            rates, seen = measured(log, run.topics, options.stage), observed(log, run.topics, options.stage)
    elif missing := [name for name in NEEDED if name not in given]:
        raise RunFileError(
            f"--simulate needs rates: --like RUN takes those of a recorded run, or give --rates {'=... --rates '.join(missing)}=..."
        )
    rates = rates.with_given(given)
    return rates, forecast(whole, rates, options.stage, options.steps), seen


def told(rates: Rates, found: Forecast, seen: Forecast | None) -> Iterator[str]:
    """The forecast as text, with the figures of the recorded run in brackets if there is one."""
    beside = [seen] if seen is not None else []
    yield f"simulated {found.steps} steps of stage {found.stage}" + (
        " (the recorded run in brackets)" if beside else ""
    )
    yield f"  step         {found.step_seconds:.3g} s" + "".join(f"  [{s.step_seconds:.3g} s]" for s in beside)
    for name, share in found.waits.items():
        yield f"  {name + ' waits':12} {share:.0%}" + "".join(
            f"  [{s.waits[name]:.0%}]" for s in beside if name in s.waits
        )
    yield f"  slowest      {found.slowest}"
    yield f"  staleness    {found.staleness_mean:.2f}, at most {found.staleness_max}" + "".join(
        f"  [{s.staleness_mean:.2f}, {s.staleness_max}]" for s in beside
    )
    yield f"  sampled      {found.tokens_per_second:,.0f} tokens/s" + "".join(
        f"  [{s.tokens_per_second:,.0f}]" for s in beside
    )
    yield (
        f"  log          {megabytes(found.written):.3g} MB/s written"
        + "".join(f"  [{megabytes(s.written):.3g}]" for s in beside)
        + f", {megabytes(found.read):.3g} MB/s read"
    )
    for reason, count in sorted(found.dropped.items()):
        yield f"  dropped      {count:.2g} groups a step: {reason}"
    told_rates = {k: v for k, v in asdict(rates).items() if k not in ("lengths", "judge")}
    yield "  by           " + ", ".join(f"{name} {value:.3g}" for name, value in told_rates.items())
    judged = ", ".join(f"{name or 'all'} {s:.3g}" for name, s in rates.judge.items())
    yield f"               judging {judged or rates.judgement('')}; answers of {rates.lengths.mean:.3g} tokens, prompts of {rates.lengths.prompt}"


def as_data(rates: Rates, found: Forecast, seen: Forecast | None) -> dict[str, Any]:
    """The rates, the forecast and the recorded run's figures as data for ``--json``."""
    kept = asdict(rates)
    kept["lengths"] = {k: v for k, v in kept["lengths"].items() if k != "groups"}
    return {"rates": kept, "forecast": asdict(found), "measured": asdict(seen) if seen is not None else None}


def megabytes(by_topic: dict[str, float]) -> float:
    return sum(by_topic.values()) / 1e6
