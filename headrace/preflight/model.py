"""Checks the model by its files alone: vocabulary, end tokens, length of a sequence, and whether it can be packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broker.chat import Chat
from broker.errors import ChatError, RunFileError
from broker.messages import ChatMessage
from broker.spelling import nearest
from headrace.preflight.findings import Finding, error, warning
from headrace.preflight.subject import Subject
from headrace.running.runfile import check_path
from learner.model.positions import learned_positions, stretched_from, window_of
from learner.model.sizes import sizes_of, unlike

UNPACKED = ("gptj", "falcon", "bloom", "mpt", "mamba", "mamba2")
"""Model types whose attention or positions cannot be computed packed: learner/model/load.py gives the reasons."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A maximum of ``tokens`` for a sequence, and its reason ``why``; ``finding`` reports a longer sequence."""

    name: str
    tokens: int
    why: str
    finding: Callable[[str, str, str], Finding]


def limits(config: Any, trained: bool) -> Iterator[Limit]:
    """The limits on the length of a sequence; a model that is ``trained`` may have more of them."""
    if config is None:
        return
    if trained and (window := window_of(config)):
        yield Limit("model's sliding window", window, "packed training refuses it", error)
    if trained and (original := stretched_from(config)) is not None:
        yield Limit(
            "original context of its stretched positions", original,
            "beyond it, positions depend on what a sequence is packed with, and training refuses it", error,
        )  # fmt: skip
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and most > 0:
        yield (
            Limit("model's positions", most, "it was made for no more", warning)
            if learned_positions(config) is None
            else Limit("model's positions", most, "it has no more", error)
        )


def files(subject: Subject) -> Iterator[Finding]:
    """Missing files (configuration, tokenizer, weights if needed), and models that cannot be trained packed."""
    where = f"[run] model = {subject.whole.run.model!r}"
    config, tokenizer = subject.config, subject.tokenizer
    if subject.model_elsewhere:
        yield warning(
            where,
            "is not on this machine, and Hugging Face cannot be reached: neither its vocabulary, nor its template, nor any length was looked at",
            f"fetch it where the run starts (hf download {subject.whole.run.model}), and plan again there",
        )
        return
    if config is None:
        yield error(
            where, f"has no configuration: {subject.refused_config}", "name a directory or an id of Hugging Face"
        )
    if tokenizer is None:
        yield error(
            where, f"has no tokenizer: {subject.refused_tokenizer}", "put the tokenizer's files beside the model"
        )
    if config is None:
        return
    if config.model_type in UNPACKED:
        yield error(
            where,
            f"{config.model_type} cannot be trained packed: its attention or its positions are its own",
            "take another model",
        )
    stages, place = subject.whole.learner.stages, Path(subject.model)
    begins = stages[0].initial()
    if begins == "pretrained" and place.is_dir() and not any(place.glob("*.safetensors")):
        yield error(
            where, "has no weights (*.safetensors)", "begin with a stage of init = 'random', or bring the weights"
        )


def vocabulary(subject: Subject) -> Iterator[Finding]:
    """Tokens outside the model's vocabulary, and end tokens that are missing, outside it, or contradictory."""
    config, tokenizer = subject.config, subject.tokenizer
    if config is None or tokenizer is None:
        return
    where = f"[run] model = {subject.whole.run.model!r}"
    yield from _outside(tokenizer, config.vocab_size, where)
    try:
        ends = set(Chat(tokenizer).ends)
    except ChatError:  # ``lengths.templates`` reports it
        ends = set()
    named = _ids(getattr(config, "eos_token_id", None)) | _ids(tokenizer.eos_token_id) | _generation(subject.model)
    if not ends | named:
        yield error(where, "names no end token", "set eos_token_id in its generation_config.json")
    elif outside := {e for e in ends | named if e >= config.vocab_size}:
        yield error(
            where,
            f"end tokens {sorted(outside)} are outside the vocabulary of {config.vocab_size}",
            "mend eos_token_id",
        )
    elif ends and named and not ends & named:
        yield warning(
            where,
            f"its template ends replies with token {sorted(ends)}, its files name {sorted(named)}: both end an answer here, elsewhere only the latter",
            "add the template's end to eos_token_id in generation_config.json",
        )


def _outside(tokenizer: Any, size: int, where: str) -> Iterator[Finding]:
    """Tokens outside the model's vocabulary of ``size``. Only a warning if they are all added tokens that text and
    template do not produce: some models have a few unused ones (a placeholder for an image, say).
    """
    outside = {number for number in tokenizer.get_vocab().values() if number >= size}
    if not outside:
        return
    what = f"the tokenizer's token {max(outside)} is outside the model's vocabulary of {size}"
    cure = "take the tokenizer that belongs to the model, or resize its embeddings"
    try:
        framing = set(Chat(tokenizer).prompt([ChatMessage("user", "Zq")]).ids)
    except ChatError:
        framing = set()
    if outside <= set(tokenizer.added_tokens_decoder) - framing:
        yield warning(where, f"{what}; {len(outside)} such tokens are added ones, which text does not make", cure)
    else:
        yield error(where, what, cure)


def beginnings(subject: Subject) -> Iterator[Finding]:
    """Models that stages begin from and that are neither an earlier stage, a directory, nor an id."""
    file, stages = subject.whole.file, subject.whole.learner.stages
    for index, stage in enumerate(stages):
        earlier = [s.name for s in stages[:index]]
        if not stage.model or stage.model in earlier:
            continue
        where = f"[[stage]] {stage.name}"
        try:
            check_path(stage.model, where, "model", file)
        except RunFileError as fault:
            yield error(where, str(fault).removeprefix(where).strip(), "name an earlier stage, a directory, or an id")
            continue
        if "/" not in stage.model and not Path(stage.model).exists() and not file.resolve(stage.model).exists():
            yield warning(
                where,
                f"model = {stage.model!r} is no earlier stage and no directory: it is taken for an id of Hugging Face"
                f"{nearest(stage.model, earlier)}",
                "name an earlier stage, or a directory",
            )


def students(subject: Subject) -> Iterator[Finding]:
    """Models that stages begin from and that the run's engines cannot take over: they differ from the run's model in
    more than size, or only in size with engines that cannot change it.
    """
    own, whole = subject.config, subject.whole
    if own is None:
        return
    names = {stage.name for stage in whole.learner.stages}
    for stage in whole.learner.stages:
        if not stage.model or stage.model in names or (other := subject.config_of(stage.model)) is None:
            continue
        where = f"[[stage]] {stage.name} model = {stage.model!r}"
        if strange := unlike(own, other):
            yield error(
                where, f"{strange} differs from [run] model = {whole.run.model!r}, and the engines of a run take over other sizes alone",
                "train it in a run of its own, on what this one has made (path = 'RUN/artefacts/NAME.jsonl')",
            )  # fmt: skip
        elif whole.actors.engine != "local" and sizes_of(own) != sizes_of(other):
            yield error(
                where, f"is of another size than [run] model, which [actors] engine = {whole.actors.engine!r} cannot take over in a run",
                "train it in a run of its own, or set engine = 'local'",
            )  # fmt: skip


def context(subject: Subject) -> Iterator[Finding]:
    """An engine context that is longer than the model's positions."""
    most, given = getattr(subject.config, "max_position_embeddings", None), subject.whole.actors.context_length
    if isinstance(most, int) and 0 < most < given:
        yield warning(
            "[actors]",
            f"context_length = {given} is longer than the model's {most} positions",
            f"lower context_length to {most}",
        )


def _generation(model: str) -> set[int]:
    from transformers import GenerationConfig

    if not (Path(model) / "generation_config.json").exists():
        return set()
    return _ids(GenerationConfig.from_pretrained(model).eos_token_id)


def _ids(value: Any) -> set[int]:
    return {value} if isinstance(value, int) else set(value or ())
