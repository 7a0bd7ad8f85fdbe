"""From a prompt to tokens, from tokens to an answer, and from a completion to a trajectory: what all engines share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from actors.engine import Completion
from broker.errors import EngineError
from broker.messages import IntArray, Prompt, Segment, Trajectory, VersionSpan


def prompt_tokens(tokenizer: Any, prompt: Prompt) -> IntArray:
    """int32 ``[P]``: the conversation in the model's chat template, up to where the assistant speaks.

    A model without a template takes a single user turn as plain text. Raises EngineError if the prompt does not fit that.
    """
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
    if tokenizer.chat_template:
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs of the model's author and raise what they like
            raise EngineError(f"the chat template refuses prompt {prompt.group_id}: {error}") from error
    elif len(turns) == 1:
        text = turns[0]["content"]
    else:
        raise EngineError(f"prompt {prompt.group_id} has {len(turns)} turns, but the tokenizer has no chat template")
    return np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)


def check_prompt(tokens: IntArray, context: int, vocabulary: int, answer: int = 1) -> None:
    """Raises EngineError where a prompt leaves no room for ``answer`` tokens, or holds one that the model does not have."""
    if len(tokens) == 0 or len(tokens) + answer > context:
        raise EngineError(f"a prompt of {len(tokens)} tokens does not fit a context of {context} tokens")
    if int(tokens.max()) >= vocabulary or int(tokens.min()) < 0:
        raise EngineError(f"token {int(tokens.max())} is outside the vocabulary of {vocabulary}")


def answer_text(tokenizer: Any, tokens: list[int], ends: AbstractSet[int], stops: Sequence[str]) -> str:
    """The answer as it is read: without its end token, and up to the first stop string."""
    if tokens and tokens[-1] in ends:
        tokens = tokens[:-1]
    text = str(tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=False))
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def end_tokens(path: str, config: Any, tokenizer: Any) -> set[int]:
    """The token ids that end a response: of the generation config, the config, and the tokenizer."""
    from transformers import GenerationConfig

    found: set[int] = set()
    sources = [config, tokenizer]
    if (Path(path) / "generation_config.json").exists():
        sources.append(GenerationConfig.from_pretrained(path))
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    if not found:
        raise EngineError(f"{path} names no end token; set eos_token_id in its generation_config.json")
    return found


def trajectory_of(prompt: Prompt, tokens: IntArray, done: Completion, engine: str, actor: str) -> Trajectory:
    """One sample with all that its readers need. Raises MessageError if the engine gave something impossible."""
    start, end = len(tokens), len(tokens) + len(done.tokens)
    return Trajectory(
        group_id=prompt.group_id,
        index=done.index,
        group_size=prompt.group_size,
        messages=prompt.messages,
        answer=prompt.answer,
        kind=prompt.kind,
        metadata=prompt.metadata,
        rewards=prompt.rewards,
        purpose=prompt.purpose,
        text=done.text,
        tokens=np.concatenate((tokens, done.tokens)),
        logprobs=np.concatenate((np.zeros(start, np.float32), np.minimum(done.logprobs, 0.0))),
        segments=(Segment("prompt", 0, start, False), Segment("assistant", start, end, True)),
        versions=tuple(VersionSpan(span.version, span.start + start) for span in done.versions),
        finish_reason=done.finish_reason,
        sampling=prompt.sampling,
        engine=engine,
        actor=actor,
        created=time.time(),
        started=done.started,
    )
