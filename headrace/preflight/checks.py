"""The list of all checks, cheap ones first, because a time limit cuts off the last ones.

To add a check, write a function and list it here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from headrace.preflight import benchmarks, lengths, model, plugged, rows, settings
from headrace.preflight.findings import Finding
from headrace.preflight.subject import Subject

Check = Callable[[Subject], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    settings.sampling,
    settings.stages,
    settings.trainings,
    settings.rewards,
    settings.numbers,
    settings.held_out,
    plugged.callables,
    rows.readable,
    rows.columns,
    settings.questions,
    rows.answers,
    model.files,
    model.beginnings,
    model.students,
    model.vocabulary,
    model.context,
    lengths.templates,
    lengths.prompts,
    lengths.documents,
    rows.control_tokens,
    rows.repeated,
    benchmarks.contaminated,
    benchmarks.dated,
    benchmarks.judged_by,
    plugged.made,
)


def name_of(check: Check) -> str:
    """The name of a check, like ``lengths.prompts``."""
    return f"{check.__module__.rpartition('.')[2]}.{check.__name__}"
