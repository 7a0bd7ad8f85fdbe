"""Rules about groups: credits that are never returned, groups without a gradient, dead letters."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from broker.messages import StepResult
from headrace.doctor.evidence import Evidence
from headrace.doctor.finding import PHASE_SINCE, RECENT_SECONDS, Finding, Rule
from monitoring.metrics import LearnerMetrics

PHASE_SECONDS = 10.0
FLAT, FLAT_STEPS = 0.9, 3
ROWS = "data."  # topic prefix of a dead letter that is a row of a data source, not a record of the log


def credits_gone(e: Evidence) -> Iterator[Finding]:
    """Credits are always lent out; it is a fault when the learner has waited for long meanwhile."""
    learner, since = e.learner, e.of_learner(PHASE_SINCE, "phase").get("wait_data", 0.0)
    if learner is None or not since or e.now - since < PHASE_SECONDS or not e.waiting.oldest:
        return
    if not 0 < learner.get(str(LearnerMetrics.credits)) <= e.waiting.groups:
        return
    parts = [f"{e.waiting.unsampled} lack samples"] if e.waiting.unsampled else []
    parts += [f"{count} lack votes of {name!r}" for name, count in e.waiting.unjudged.items()]
    fed, oldest = min(e.waiting.oldest.values())
    yield Finding(
        "all credits are held by incomplete groups",
        f"{e.waiting.groups} groups for {learner.get(str(LearnerMetrics.credits)):.0f} credits: {', '.join(parts)}; "
        f"the oldest, {oldest}, was fed {e.now - fed:.0f} s ago",
        "see what they lack above; a group is dropped [learner] deadline seconds after it was fed",
    )


def flat_groups(e: Evidence) -> Iterator[Finding]:
    recent = [s.metrics["zero_variance_group_ratio"] for s in _rl(e) if "zero_variance_group_ratio" in s.metrics]
    recent = recent[-2 * FLAT_STEPS :]
    if len(recent) >= FLAT_STEPS and fmean(recent) >= FLAT:
        rewards = ", ".join(f"{s.metrics.get('reward_mean', 0.0):.3g}" for s in _rl(e)[-3:])
        yield Finding(
            "nearly all groups have equal rewards: there is no gradient",
            f"{fmean(recent):.0%} of the groups of the last {len(recent)} steps; mean rewards {rewards}",
            "questions too hard or too easy, or a rewarder that gives one value: `headrace trace` shows the votes; "
            "change the data, the temperature or group_size",
        )


def _rl(e: Evidence) -> list[StepResult]:
    return [step for step in e.steps if "samples" in step.metrics or "zero_variance_group_ratio" in step.metrics]


def set_aside(e: Evidence) -> Iterator[Finding]:
    if e.aside:
        step, why = max(e.aside.items())
        more = f" ({len(e.aside)} of the newest steps)" if len(e.aside) > 1 else ""
        yield Finding(
            f"step {step} could not be executed and is set aside{more}: its groups train nothing",
            why,
            f"`headrace trace {e.run.directory} {step}` shows what it was made of; training goes on with the next step. Once the cause is mended, "
            f"`headrace broker dlq replay {e.run.directory} OFFSET` tries it again (`dlq list` has the offset)",
            False,
        )


def lost_samples(e: Evidence) -> Iterator[Finding]:
    count = e.learner.get(str(LearnerMetrics.asked_again)) if e.learner else 0.0
    if count:
        yield Finding(
            f"samples of {count:.0f} groups were lost and are asked for again",
            "the actors were done with their prompts, and not all samples came",
            "see why an actor gave up its work: `RUN/logs/actor-*.jsonl`; nothing else is needed",
            False,
        )


def odd_rows(e: Evidence) -> Iterator[Finding]:
    """Rows of the data that cannot be asked or trained on: they come again in the next epoch, once they are mended."""
    odd = [letter for letter in e.letters if letter.topic.startswith(ROWS)]
    for what, found in (
        ("asked", [letter for letter in odd if letter.key.isdigit()]),
        ("trained on", [letter for letter in odd if not letter.key.isdigit()]),
    ):
        if found:
            last = found[-1]
            yield Finding(
                f"{len({(o.topic, o.offset) for o in found})} rows of [{last.topic}] cannot be {what}",
                f"row {last.offset}: {last.error[:200]}",
                f"mend the row in its file; the next epoch reads it again (at once: `headrace broker dlq replay {e.run.directory}`), "
                "and the others go on",
                False,
            )


def dead_letters(e: Evidence) -> Iterator[Finding]:
    told = (ROWS, e.run.topics.steps)  # by other notices
    recent = [x for x in e.letters if e.now - x.created < RECENT_SECONDS and not x.topic.startswith(told)]
    if recent:
        yield Finding(
            f"{len(recent)} records were buried in the last {RECENT_SECONDS / 60:.0f} minutes",
            f"the last one from {recent[-1].topic}: {recent[-1].error[:200]}",
            f"`headrace broker dlq list {e.run.directory}`",
            False,
        )


RULES: tuple[Rule, ...] = (credits_gone, flat_groups)
NOTICES: tuple[Rule, ...] = (set_aside, lost_samples, odd_rows, dead_letters)
