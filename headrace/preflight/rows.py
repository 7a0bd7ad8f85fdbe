"""Checks rows of the data: readable, with question and answer, not repeated, and not both held out and trained on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from broker.errors import DataAway, DataError, HeadraceError
from headrace.preflight.findings import Finding, error, note, share, warning
from headrace.preflight.subject import ROWS, Subject, Use, read, spread
from learner.data.registry import open_rows
from learner.data.source import Document, PromptRow
from learner.stages.stage import Stage

MOST = 20_000
"""How many rows of a source are compared with other sources at most."""
ENDLESS = 2_000
"""The same for an endless source."""
SECONDS = 4.0
"""How long reading one source for a comparison may take."""
SHOWN = 120


def readable(subject: Subject) -> Iterator[Finding]:
    """Sources that cannot be opened or are empty, and rows that cannot be read."""
    told = set()
    for use in distinct(subject):
        where = f"[data.{use.source}]"
        rows = subject.rows(use)
        if rows is None and use.source in subject.elsewhere:
            if use.source not in told:
                told.add(use.source)
                yield _elsewhere(where, subject, use.source)
        elif rows is None:
            yield error(where, subject.refused[use.source].removeprefix(where).strip(), "mend it, or its table")
        elif rows.size == 0:
            yield error(where, "has no rows", "name a source that has some")
        elif rows.odd:
            number, why = next(iter(rows.odd.items()))
            what = f"{share(len(rows.odd), rows.count)} of the rows that were looked at cannot be read, row {number} first: {why}"
            if not rows.good or (use.purpose == "documents" and len(rows.odd) > most_odd(use.stage) * rows.count):
                yield error(where, what, "mend the rows, or name their columns: columns = { prompt = ... }")
            else:
                done = "trained on" if use.purpose == "documents" else "asked"
                yield warning(where, what, f"mend them; each becomes a dead letter, and the others are {done}")


def most_odd(stage: Stage) -> float:
    """The share of rows, in [0, 1], that a stage may leave out; 0 if it has no ``max_odd``."""
    return float(getattr(stage, "max_odd", 0.0))


def columns(subject: Subject) -> Iterator[Finding]:
    """Rows that a stage which reads columns of its own cannot read."""
    config = subject.whole.learner
    for stage in config.stages:
        parse: Any = getattr(stage, "row", None)
        for name in stage.sources().values() if stage.reads_rows and parse is not None else ():
            if name not in config.data:
                continue
            where = f"[data.{name}]"
            try:
                rows = open_rows(name, config.data[name], subject.whole.file)
                looked = spread(len(rows), ROWS)
            except DataAway:
                continue
            except HeadraceError as fault:
                yield error(where, str(fault).removeprefix(where).strip(), "mend it, or its table")
                continue
            odd: dict[int, str] = {}
            for number in looked:
                try:
                    parse(rows, number)
                except Exception as fault:  # the plug-in boundary: a source may be third-party code
                    odd[number] = str(fault) if isinstance(fault, DataError) else f"{type(fault).__name__}: {fault}"
            if odd:
                number, why = next(iter(odd.items()))
                what = f"[[stage]] {stage.name} cannot read {share(len(odd), len(looked))} of its rows, row {number} first: {why}"
                if len(odd) > most_odd(stage) * len(looked):
                    yield error(where, what, "mend the rows, or name their columns: columns = { prompt = ... }")
                else:
                    yield warning(where, what, "mend them; each becomes a dead letter, and the others are read")


def _elsewhere(where: str, subject: Subject, source: str) -> Finding:
    """A finding for data that cannot be checked on this machine."""
    path = subject.whole.learner.data[source].path
    return warning(
        where,
        f"{subject.refused[source].removeprefix('data ')}: its rows are not looked at",
        f"bring the directory, or fetch the set where the run starts (hf download --repo-type dataset {path}), and plan again there",
    )


def answers(subject: Subject) -> Iterator[Finding]:
    """Rows without an answer for a rewarder to compare with, and rows without a question."""
    for use in distinct(subject):
        rows = subject.rows(use)
        if rows is None or use.purpose == "documents" or not rows.good:
            continue
        where = f"[data.{use.source}]"
        without = [n for n, row in rows.good.items() if not (row.answer or "").strip()]
        if without:
            yield warning(
                where,
                f"{share(len(without), len(rows.good))} of the rows have no answer, row {without[0]} first",
                "name the column (columns = { answer = ... }), or leave it where no rewarder compares",
            )
        empty = [n for n, row in rows.good.items() if not any(m.content.strip() for m in row.messages)]
        if empty:
            yield warning(
                where,
                f"{share(len(empty), len(rows.good))} of the rows ask nothing, row {empty[0]} first",
                "remove them",
            )


def control_tokens(subject: Subject) -> Iterator[Finding]:
    """Text in the data that looks like a control token of the tokenizer."""
    tokenizer = subject.tokenizer
    if tokenizer is None:
        return
    special = [t for t in map(str, tokenizer.all_special_tokens) if len(t) > 2]
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = sorted({*special, *(str(t) for t in added.values() if getattr(t, "special", False) and len(str(t)) > 2)})
    for use in distinct(subject):
        rows = subject.rows(use)
        if rows is None:
            continue
        hits = {
            n: found for n, row in rows.good.items() if (found := _first(special, [m.content for m in row.messages]))
        }
        where = f"[data.{use.source}]"
        if hits:
            number, token = next(iter(hits.items()))
            yield note(
                where,
                f"{share(len(hits), len(rows.good))} of the rows hold control tokens in their text, row {number} first ({token}): they are "
                "written as text, and open or end no turn",
            )
        spans = {n: found for n, row in rows.good.items() if (found := _first(special, _raw(row)))}
        if spans:
            number, token = next(iter(spans.items()))
            yield note(
                where,
                f"{share(len(spans), len(rows.good))} of the raw documents hold control tokens, row {number} first ({token}): they are "
                "trained as such",
            )


def repeated(subject: Subject) -> Iterator[Finding]:
    """Questions that occur twice in a source, and held-out questions that are trained on."""
    asked: dict[str, list[str]] = {}
    trained: dict[str, list[str]] = {}
    for use in distinct(subject):
        source = subject.source(use.source, use.purpose == "documents")
        if source is None or source.size == 0:
            continue
        most = min(MOST, source.size if source.size is not None else ENDLESS, use.asked or MOST)
        rows = read(source, range(most), use.purpose == "documents", SECONDS)
        texts = [text for row in rows.good.values() for text in _questions(row)]
        (asked if use.purpose == "held out" else trained)[use.source] = texts
        twice = len(texts) - len(set(texts))
        if twice and source.size is not None and use.purpose != "documents":
            yield warning(
                f"[data.{use.source}]",
                f"{share(twice, len(texts))} of its questions stand in it before",
                "remove them, or leave them where they are meant to count more",
            )
    for name, texts in asked.items():
        known = {other: set(texts) & set(seen) for other, seen in trained.items() if other != name}
        where = [other for other, both in known.items() if both]
        if where:
            places = ", ".join(f"[data.{other}]" for other in where)
            both = set().union(*known.values())
            yield warning(
                f"[data.{name}]",
                f"{share(len(both), len(set(texts)))} of its held-out questions are trained on in {places} "
                f"(compared with {sum(len(trained[other]) for other in where)} questions there)",
                "take them out of what is trained; what is measured on them is memory",
            )


def distinct(subject: Subject) -> Iterator[Use]:
    """The uses, but only the first for each source and purpose."""
    seen = set()
    for use in subject.uses:
        key = (use.source, use.purpose)
        if key not in seen:
            seen.add(key)
            yield use


def _questions(row: PromptRow | Document) -> list[str]:
    """The questions of a row, with case and spacing normalised."""
    if isinstance(row, Document) and not row.messages:
        texts = [span.text for span in row.spans if not span.trained]
    elif isinstance(row, Document):
        texts = [m.content for m in row.messages if m.role == "user"]
    else:
        texts = ["\n".join(m.content for m in row.messages if m.role != "system")]
    return [" ".join(text.casefold().split()) for text in texts]


def _raw(row: Any) -> list[str]:
    return [span.text for span in row.spans] if isinstance(row, Document) else []


def _first(tokens: list[str], texts: list[str]) -> str:
    return next((token for token in tokens if any(token in text for text in texts)), "")
