"""Checks benchmarks: which rows are trained on, how old the rows are, and whether their rewarders can judge them."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

from headrace.preflight.findings import Finding, error, note, share, warning
from headrace.preflight.rows import ENDLESS, MOST, SECONDS, SHOWN, distinct
from headrace.preflight.subject import Subject, read
from learner.data.contamination import Benchmarked, Contamination, looked_through
from learner.data.selection import is_fresh


def contaminated(subject: Subject) -> Iterator[Finding]:
    """Training rows that share a sequence of words with a benchmark's question."""
    config = subject.whole.learner
    against: dict[int, Benchmarked] = {}
    done = set()
    for use in distinct(subject):
        source = subject.source(use.source, use.purpose == "documents")
        table = config.data[use.source].select
        if use.purpose == "held out" or use.source in done or source is None or source.size == 0:
            continue
        if use.source in config.benchmarks():
            continue  # ``settings.held_out`` reports it
        done.add(use.source)
        if table.ngram not in against:
            against[table.ngram] = Benchmarked(_asked(subject), table.ngram)
        most = min(MOST, source.size if source.size is not None else ENDLESS)
        rows = read(source, range(most), use.purpose == "documents", SECONDS)
        found = looked_through(use.source, iter(rows.good.items()), against[table.ngram])
        yield from _contamination(found, table.decontaminate, source.size)


def _contamination(found: Contamination, left_out: bool, size: int | None) -> Iterator[Finding]:
    where = f"[data.{found.source}]"
    if left_out and size is None:
        yield error(
            where, "select.decontaminate = true, and it has no end: its rows cannot be looked through", "take it out"
        )
    if not found.hits:
        return
    first, count = found.hits[0], share(len(found.hits), found.rows)
    places = ", ".join(f"[data.{name}] ({n})" for name, n in found.by_benchmark().items())
    what = f"{count} of its rows share {found.ngram} words in a row, or all of a short question, with {places}, row {first.row} first: {first.shared[:SHOWN]!r}"
    if left_out:
        yield note(where, f"{what}; they are left out (RUN/contamination.json)")
    else:
        cure = (
            "set select = { decontaminate = true }, which leaves them out; headrace contamination FILE lists them all"
        )
        yield warning(where, what, cure)


def _asked(subject: Subject) -> dict[str, list[tuple[int, Any]]]:
    """The readable rows of each benchmark that its evaluations ask, at most ``MOST``."""
    found = {}
    for use in distinct(subject):
        source = subject.source(use.source, False) if use.purpose == "held out" else None
        if source is not None:
            size = source.size if source.size is not None else MOST
            rows = read(source, range(min(size, use.asked or size, MOST)), False, SECONDS)
            found[use.source] = list(rows.good.items())
    return found


def dated(subject: Subject) -> Iterator[Finding]:
    """Benchmarks with rows that were published before the model's cut-off."""
    cutoff = subject.whole.run.cutoff
    for use in distinct(subject):
        rows = subject.rows(use) if cutoff and use.purpose == "held out" else None
        if rows is None or not rows.good or subject.whole.learner.data[use.source].select.fresh == "only":
            continue
        day = datetime.date.fromisoformat(cutoff)
        known = {n: row for n, row in rows.good.items() if row.metadata.get("date")}
        old = [n for n, row in known.items() if not is_fresh(row, day)]
        if old:
            what = f"{share(len(old), len(rows.good))} of the rows that were looked at were published before [run] cutoff = {cutoff}, row {old[0]} first"
            marked = subject.whole.learner.data[use.source].select.fresh == "mark"
            cure = 'set select = { fresh = "only" }, or "mark" to have the others\' figures apart'
            yield (
                note(f"[data.{use.source}]", f"{what}; they are marked")
                if marked
                else warning(f"[data.{use.source}]", what, cure)
            )


def judged_by(subject: Subject) -> Iterator[Finding]:
    """Benchmarks whose rows need another rewarder than the one that judges them."""
    for use in distinct(subject):
        source = subject.source(use.source, False) if use.purpose == "held out" else None
        while source is not None and not hasattr(source, "judged_by") and hasattr(source, "source"):
            source = source.source
        wanted, table = getattr(source, "judged_by", ()), subject.whole.rewarders.get(use.judge)
        if wanted and table is not None and table.use.startswith("rewarders.") and table.use not in wanted:
            yield warning(
                use.where,
                f"[data.{use.source}] is judged by {use.judge!r} ({table.use}), which does not read what its rows carry",
                f"name a rewarder with use = {' or '.join(map(repr, wanted))}",
            )
