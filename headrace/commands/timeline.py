"""``headrace timeline``: write who did what, and when, in some steps of a run, as a trace for ui.perfetto.dev.

Reads only the log.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from broker.log import Log
from broker.messages import Evaluation
from broker.topics import Topics
from headrace.commands.arguments import run_directory, step_range
from headrace.reading.chrometrace import ChromeTrace, Slice
from headrace.reading.lifetimes import OTHER, Fate, Sample, Stretch, stretch
from headrace.running.rundir import reopen
from monitoring.files import replace
from monitoring.view import clean_text

LEARNER, QUEUE, JOIN = "learner", "prompts waiting for an actor", "samples waiting for the learner"
ENDED_HERE = ("trained", "dropped")
TURN_CHARACTERS = 200
SKEW = 1e-3  # seconds by which measured times may overlap although one came after the other
LASTING = 2e-6  # seconds; anything shorter is left out, because the trace cannot show it


def arguments(sub: argparse.ArgumentParser) -> None:
    run_directory(sub)
    sub.add_argument("--steps", required=True, metavar="A-B")
    sub.add_argument("--out", type=Path, default=None, metavar="FILE", help="default: RUN/timeline.json")


def main(options: argparse.Namespace) -> int:
    first, last = step_range(options.steps)
    run = reopen(options.run)
    path = options.out or options.run / "timeline.json"
    with closing(run.open_log()) as log:
        found = stretch(log, run.topics, first, last)
    replace(path, draw(found))
    steps = [s.manifest.step for s in found.steps]
    print(f"{path}: {len(steps)} steps; open it in ui.perfetto.dev")
    if len(steps) < len(found.planned):
        print(f"planned, but not executed yet: {len(found.planned) - len(steps)} steps")
    if found.missing:
        print(f"no longer in the log: {found.missing} samples of these steps")
    return 0


def timeline(log: Log, topics: Topics, first: int, last: int) -> str:
    """Steps ``first`` to ``last`` as the JSON of a Chrome trace. Raises RunFault if the log has none of them."""
    return draw(stretch(log, topics, first, last))


def draw(found: Stretch) -> str:
    """The Chrome trace of a stretch of training, as JSON text."""
    drawing = _Drawing(found)
    drawing.learner()
    drawing.evaluations()
    for number, sample in enumerate(drawing.samples, start=1):
        drawing.sample(number, sample)
    drawing.unanswered()
    drawing.arrivals()
    executed = [step.manifest.step for step in found.steps]
    return drawing.trace.text({"planned": found.planned, "executed": executed, "missing_samples": found.missing})


class _Drawing:
    """Draws a stretch of training as the rows of a trace."""

    def __init__(self, found: Stretch) -> None:
        self.found, self.trace = found, ChromeTrace()
        shown = (s for s in found.samples.values() if self._shown(s))
        self.samples = sorted(shown, key=lambda s: (s.ended, s.group_id, s.index))
        self._complete: dict[str, float] = {}
        for sample in self.samples:
            self._complete[sample.group_id] = max(self._complete.get(sample.group_id, 0.0), sample.judged)
        self._made = {step.manifest.step: step.made for step in found.steps}
        self.trace.process(LEARNER, "steps", "phases", "weights")
        self.trace.process(QUEUE)
        for actor in sorted({_actor(s) for s in self.samples}):
            self.trace.process(actor, "samples", "weights")
        for rewarder in sorted({_rewarder(name) for s in self.samples for name in s.votes}):
            self.trace.process(rewarder)
        self.trace.process(JOIN)

    def _shown(self, sample: Sample) -> bool:
        """Whether to show ``sample``: it ended in these steps, or kept actors or rewarders busy meanwhile, who would
        look idle without it.
        """
        began = sample.ended if sample.started is None else sample.started
        meanwhile = began <= self.found.end and sample.judged >= self.found.begin
        return self.found.fate(sample).kind in ENDED_HERE or meanwhile

    # -- the learner ---------------------------------------------------------------------------------------------------

    def learner(self) -> None:
        arrows: dict[int, list[int]] = {}
        for number, sample in enumerate(self.samples, start=1):
            step = self.found.fate(sample).step
            if step is not None and sample.started is not None:
                arrows.setdefault(step.manifest.step, []).append(number)
        for step in self.found.steps:
            number = step.manifest.step
            for name, start, end in step.phases:
                if end - start >= LASTING:
                    phase = Slice(clean_text(name, 60), start, end, "phase", {"step": number})
                    self.trace.block(LEARNER, "phases", [phase])
            args = {"stage": step.manifest.stage, "groups": len(step.manifest.groups)} | _finite(step.metrics)
            arrives = tuple(arrows.get(number, ()))
            whole = Slice(f"step {number}", step.begin, step.end, "step", args, arrives=arrives, arrival=step.train)
            self.trace.block(LEARNER, "steps", [whole])
        for version, at in self.found.published:
            if self.found.begin <= at <= self.found.end:
                self.trace.instant(LEARNER, "weights", f"version {version} published", at, {"version": version})

    def evaluations(self) -> None:
        """Draw each evaluation from its first prompt to its result."""
        for evaluation, at in self.found.endings:
            if not isinstance(evaluation, Evaluation):
                continue
            ids = [*evaluation.group_ids, *(d.group_id for d in evaluation.dropped)]
            asked = min((self.found.fed[i] for i in ids if i in self.found.fed), default=at)
            if asked <= self.found.end:
                numbers = {"pass_at_1": evaluation.pass_at_1, "cons_at_k": evaluation.cons_at_k}
                args = {"step": evaluation.step, "questions": evaluation.questions, "k": evaluation.k} | _finite(
                    numbers
                )
                name = f"evaluation {clean_text(evaluation.name, 60)}"
                self.trace.block(LEARNER, "evaluations", [Slice(name, min(asked, at), at, "evaluation", args)])

    # -- samples -------------------------------------------------------------------------------------------------------

    def sample(self, number: int, sample: Sample) -> None:
        """Draw the phases of a sample: waiting for an actor, generation, judging, waiting for the learner, training."""
        fate, fed = self.found.fate(sample), self.found.fed.get(sample.group_id)
        args = _about(sample, fate)
        if sample.started is not None:
            if fate is not OTHER and fed is not None and sample.started - fed >= LASTING:
                self.trace.block(QUEUE, "prompts", [Slice("queued" + _of(fate), fed, sample.started, fate.kind, args)])
            leaves = number if fate.step else 0
            whole = Slice("generated" + _of(fate), sample.started, sample.ended, fate.kind, args, leaves)
            parts = _turns(sample, sample.started) if sample.turns else self._spans(sample, sample.started)
            self.trace.block(_actor(sample), "samples", [whole, *parts])
        for judgement in sample.votes.values():
            told = args | {"vote": judgement.shown}
            judged = Slice("judged" + _of(fate), judgement.begin, judgement.end, fate.kind, told)
            self.trace.block(_rewarder(judgement.vote.rewarder), "judging", [judged])
        if fate.kind in ENDED_HERE:
            waits = [s for s in self._waits(sample, fate, args) if s.end - s.start >= LASTING]
            if waits:
                self.trace.block(JOIN, "samples", waits)

    def _spans(self, sample: Sample, started: float) -> Iterator[Slice]:
        """The spans of a sample with several versions. Only their token counts are known, so all tokens are assumed to
        take equal time.
        """
        if len(sample.spans) < 2:
            return
        every, before, start = sum(tokens for _, tokens in sample.spans), 0, started
        for number, (version, tokens) in enumerate(sample.spans, start=1):
            before += tokens
            end = started + (sample.ended - started) * before / every
            if number < len(sample.spans):  # the next version cannot generate before it exists
                end = min(sample.ended, max(start, end, self._made.get(sample.spans[number][0], 0.0)))
            args = {"version": version, "tokens": tokens, "times": "estimated from the tokens"}
            yield Slice(f"version {version}", start, end, "version", args)
            start = end

    def _waits(self, sample: Sample, fate: Fate, args: Mapping[str, Any]) -> Iterator[Slice]:
        complete = min(self._complete[sample.group_id], fate.at)
        taken = max(complete, fate.step.train if fate.step else fate.at)
        yield Slice("waits for its group" + _of(fate), sample.judged, complete, fate.kind, args)
        yield Slice("waits for the step" + _of(fate), max(sample.judged, complete), taken, fate.kind, args)
        if fate.step:
            yield Slice("trained", max(taken, sample.judged), fate.step.end, fate.kind, args)

    def unanswered(self) -> None:
        """Draw the groups that were dropped before any of their samples arrived."""
        answered = {group_id for group_id, _ in self.found.samples}
        for group_id, fate in self.found.fates.items():
            fed = self.found.fed.get(group_id)
            if fate.kind == "dropped" and group_id not in answered and fed is not None:
                args = {"group": clean_text(group_id, 200), "fate": _fate_text(fate)}
                self.trace.block(
                    QUEUE, "prompts", [Slice("queued" + _of(fate), fed, max(fed, fate.at), fate.kind, args)]
                )

    def arrivals(self) -> None:
        """Mark when each actor began its first sample with each version."""
        first: dict[tuple[str, int], float] = {}
        for sample in self.samples:
            if sample.spans and sample.started is not None:
                key = (_actor(sample), sample.spans[0][0])
                first[key] = min(first.get(key, math.inf), sample.started)
        for (actor, version), at in sorted(first.items(), key=lambda item: item[1]):
            self.trace.instant(actor, "weights", f"first sample by version {version}", at, {"version": version})


def _turns(sample: Sample, started: float) -> Iterator[Slice]:
    """The turns of an episode whose times are known: each reply, and the environment's time to answer it."""
    at = started
    for number, turn in enumerate(sample.turns):
        if turn.started < at - SKEW or turn.ended > sample.ended + SKEW or turn.ended <= 0:
            continue
        begin, end = max(at, turn.started), min(sample.ended, turn.ended)
        if end < begin:
            continue
        args = {name: value for name, value in turn.plain().items() if name in ("tokens", "versions", "value")}
        yield Slice("reply", begin, end, "turn", args | {"text": clean_text(turn.text, TURN_CHARACTERS)})
        said = sample.turns[number + 1] if number + 1 < len(sample.turns) else None
        at = min(sample.ended, end + (sample.answered if said is None else said.seconds))
        told = {"text": clean_text(sample.ending if said is None else said.text, TURN_CHARACTERS)}
        if at - end >= LASTING:
            yield Slice("environment", end, at, "environment", told | ({} if said is None else {"tokens": said.tokens}))


def _actor(sample: Sample) -> str:
    return f"actor {clean_text(sample.actor, 100) or '(unnamed)'}"


def _rewarder(name: str) -> str:
    return f"rewarder {clean_text(name, 100)}"


def _of(fate: Fate) -> str:
    """The suffix of a slice's name, so that a viewer sums and colours each fate separately."""
    return {
        "trained": "",
        "dropped": f" (dropped: {clean_text(fate.why, 60)})",
        "evaluated": " (evaluation)",
        "collected": " (collection)",
    }.get(fate.kind, " (another step)")


def _fate_text(fate: Fate) -> str:
    return clean_text(fate.why if fate is OTHER else f"{fate.kind}: {fate.why}", 200)


def _about(sample: Sample, fate: Fate) -> dict[str, Any]:
    """The arguments of every slice of a sample."""
    return {
        "group": clean_text(sample.group_id, 200),
        "index": sample.index,
        "fate": _fate_text(fate),
        "versions": "+".join(str(version) for version, _ in sample.spans),
        "tokens": sample.tokens,
        **({"reward": "unjudged"} if sample.reward is None else _finite({"reward": sample.reward})),
        "votes": {clean_text(name, 100): vote.shown for name, vote in sample.votes.items()},
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, Any]:
    """The finite ones of ``numbers``: JSON has no others."""
    return {clean_text(name, 100): value for name, value in numbers.items() if math.isfinite(value)}
