"""Checks lengths in tokens, by the real tokenizer and template, against the limits of the engine and the model."""

from __future__ import annotations

from collections.abc import Iterator

from broker.errors import ChatError, DataError
from headrace.preflight.findings import Finding, error, note, share, warning
from headrace.preflight.model import limits
from headrace.preflight.rows import distinct, most_odd
from headrace.preflight.subject import Subject, Use
from learner.data.documents import DocumentTokenizer


def prompts(subject: Subject) -> Iterator[Finding]:
    """Prompts that the template refuses, that do not fit the context, or that leave too little room for an answer; and
    prompts whose answers may exceed the model's limits.
    """
    if subject.tokenizer is None:
        return
    context = subject.whole.actors.context_length
    for use in _prompted(subject):
        lengths, refused = _prompt_lengths(subject, use)
        where = f"[data.{use.source}]"
        if refused:
            number, why = next(iter(refused.items()))
            what = f"{share(len(refused), len(refused) + len(lengths))} of its prompts are refused, row {number} first: {why}"
            cure = "mend the rows, or the template's options ([data.NAME] chat)"
            yield warning(where, what, cure) if lengths else error(where, what, cure)
        if not lengths or use.sampling is None or (new := use.sampling.max_new_tokens) >= context:
            continue
        longest = max(lengths)
        outside = sum(length + 1 > context for length in lengths)
        short = sum(length + new > context for length in lengths)
        place = f"[actors] context_length = {context}"
        if outside:
            what = (
                f"{share(outside, len(lengths))} of its prompts do not fit {place} (the longest has {longest} tokens)"
            )
            cure = f"raise context_length to {longest + new}, or shorten the prompts"
            yield (
                error(where, what, cure)
                if outside == len(lengths)
                else warning(where, f"{what}: each becomes a dead letter", cure)
            )
        if short > outside:
            yield warning(
                where,
                f"{share(short - outside, len(lengths))} of its prompts leave less than max_new_tokens = {new} of {place}: their answers are cut there",
                f"raise context_length to {longest + new}, or lower max_new_tokens",
            )
        whole = min(context, longest + new)
        for limit in limits(subject.config, use.training is not None):
            if whole > limit.tokens:
                what = f"{use.where}: a prompt of {longest} and {new} new tokens are longer than the {limit.name} of {limit.tokens} tokens: {limit.why}"
                yield limit.finding(where, what, f"lower max_new_tokens or [actors] context_length to {limit.tokens}")


def _prompted(subject: Subject) -> Iterator[Use]:
    """The uses of prompts; only the first of those with equal source, answer length and purpose (trained or not)."""
    seen = set()
    for use in subject.uses:
        key = (use.source, use.sampling and use.sampling.max_new_tokens, use.training is not None)
        if use.purpose != "documents" and key not in seen:
            seen.add(key)
            yield use


def _prompt_lengths(subject: Subject, use: Use) -> tuple[list[int], dict[int, str]]:
    rows = subject.rows(use)
    lengths: list[int] = []
    refused: dict[int, str] = {}
    for number, row in (rows.good if rows is not None else {}).items():
        try:
            lengths.append(len(subject.chat(use.source).prompt(row.messages).ids))
        except ChatError as fault:
            refused[number] = str(fault)
    return lengths, refused


def documents(subject: Subject) -> Iterator[Finding]:
    """Documents that cannot be tokenized, are too long for the stage or the model, train no token, or lack the stage's
    ``until_tag``.
    """
    if subject.tokenizer is None:
        return
    for use in distinct(subject):
        rows = subject.rows(use) if use.purpose == "documents" else None
        if rows is None:
            continue
        options = subject.whole.learner.data[use.source].chat
        words = DocumentTokenizer(subject.tokenizer, getattr(use.stage, "until_tag", ""), options)
        where, lengths, untrained = f"[data.{use.source}]", [0], 0
        most = getattr(use.stage, "max_tokens", 0)
        refused: dict[int, str] = {}
        tagged = False
        for number, row in rows.good.items():
            try:
                found = words.tokenize(row)
            except DataError as fault:
                refused[number] = str(fault)
                continue
            if most and len(found.tokens) > most:
                refused[number] = f"it has {len(found.tokens)} tokens, and max_tokens is {most}"
                continue
            lengths.append(len(found.tokens))
            untrained += not found.trained.any()
            tagged |= bool(found.tagged.any())
        if refused:
            number, why = next(iter(refused.items()))
            what = f"{share(len(refused), len(rows.good))} of its documents are refused, row {number} first: {why}"
            if most_odd(use.stage) * rows.count < len(refused) + len(rows.odd):
                more = f"{what}; {use.where} bears a share of {most_odd(use.stage):g} (max_odd)"
                yield error(where, more, "mend the documents or the template")
            else:
                yield warning(where, f"{what}: each becomes a dead letter", "mend the documents or the template")
        if untrained:
            yield warning(
                where, f"{share(untrained, len(rows.good))} of its documents train no token", "give each a reply"
            )
        if (tag := getattr(use.stage, "until_tag", "")) and rows.good and not tagged and not refused:
            yield error(
                use.where, f"until_tag = {tag!r}: no document of [data.{use.source}] has it", "name a tag of the source"
            )
        for limit in limits(subject.config, True):
            long = sum(length > limit.tokens for length in lengths)
            if long:
                what = f"{share(long, len(rows.good))} of its documents (up to {max(lengths)} tokens) are longer than the {limit.name} of {limit.tokens} tokens: {limit.why}"
                few = long + len(refused) + len(rows.odd) <= most_odd(use.stage) * rows.count
                yield warning(where, what, "shorten them") if few else limit.finding(where, what, "shorten them")


def templates(subject: Subject) -> Iterator[Finding]:
    """What a user should know about the chat template, with the options of each source."""
    if subject.tokenizer is None:
        return
    if not subject.tokenizer.chat_template:
        yield note("[run] model", "the tokenizer has no chat template: a prompt is its plain text")
        return
    told: set[str] = set()
    for source in dict.fromkeys(use.source for use in subject.uses):
        try:
            found = subject.chat(source).findings()
        except ChatError as fault:
            found = []
            if str(fault) not in told:
                yield error(
                    f"[data.{source}]", str(fault), "take another template, or other options ([data.NAME] chat)"
                )
                told.add(str(fault))
        for sentence in found:
            if sentence not in told:
                told.add(sentence)
                yield note("[run] model", sentence)
