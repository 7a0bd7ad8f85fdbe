"""Checks plug-ins: whether rewarders can judge, and whether each plug-in can be made with its options.

``headrace.running.runfile.check`` has looked only at names of plug-ins and options, without running code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from broker import plugins
from broker.errors import HeadraceError
from headrace.preflight.findings import Finding, error
from headrace.preflight.subject import Subject

SECONDS = 10.0
"""No further plug-in is made after this time. The daemons allow more time for each."""


def callables(subject: Subject) -> Iterator[Finding]:
    """Rewarders that cannot judge: their source defines neither ``__call__`` nor ``judge``."""
    base = subject.whole.file.base
    for name, table in subject.whole.rewarders.items():
        if table.external:
            continue
        if not any(plugins.may_have(table.use, base, method) for method in ("__call__", "judge")):
            yield error(
                f"[rewarders.{name}]",
                f"use = {table.use!r} cannot be called with a sample",
                "give the class __call__(self, sample) -> Reward, or judge(self, samples) and per_group = True",
            )


def made(subject: Subject) -> Iterator[Finding]:
    """Make each plug-in with its options, so that its class can reject their values."""
    if not subject.thorough:
        return
    from actors.config import environment_tables
    from rewarders.registry import load_any

    whole, until = subject.whole, time.monotonic() + SECONDS
    base = whole.file.base
    same: set[str] = set()
    for name, table in whole.rewarders.items():
        if table.external or time.monotonic() > until:
            continue
        try:
            if getattr(load_any(table.use, table.options, base, table.flat), "same_for_group", False):
                same.add(name)
        except HeadraceError as fault:
            yield error(f"[rewarders.{name}]", str(fault), "mend the class or its options")
    yield from _nothing_to_compare(subject, same)
    for name, environment in environment_tables(whole.file).items():
        where = f"[environments.{name}]"
        if time.monotonic() > until:
            continue
        try:
            found = plugins.load(environment.use, base, where)
            if not callable(found):
                yield error(where, f"use = {environment.use!r} is no class", "name the class")
        except HeadraceError as fault:
            yield error(where, str(fault).removeprefix(where).strip(), "mend the file")


def _nothing_to_compare(subject: Subject, same: set[str]) -> Iterator[Finding]:
    """Trained mixes in which every rewarder gives all samples of a group the same value."""
    seen = set()
    for use in subject.uses:
        if use.training is None or use.training.objective.allows_single():
            continue
        for where, weights in use.mixes:
            counting = {name for name, weight in weights.items() if weight}
            if counting and counting <= same and (where, use.source) not in seen:
                seen.add((where, use.source))
                yield error(
                    where,
                    f"the mix of [data.{use.source}] is {', '.join(sorted(counting))} alone, which says the same of all samples of a group: "
                    "nothing can be learned from it",
                    "add a rewarder that tells them apart, or make this one a shadow",
                )
