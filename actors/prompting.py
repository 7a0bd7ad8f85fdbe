"""From a prompt to tokens, and from tokens to an answer: what all engines share."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np

from broker.chat import Chat, Chats, Rendered
from broker.errors import ChatError, EngineError
from broker.messages import IntArray, Prompt


def render(chats: Chats, prompt: Prompt) -> Rendered:
    """The prompt's conversation in the model's chat template. Raises EngineError if it does not fit that."""
    try:
        return chats.of(prompt.template).prompt(prompt.messages)
    except ChatError as error:
        raise EngineError(f"prompt {prompt.group_id}: {error}") from error


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


def end_tokens(path: str, config: Any, tokenizer: Any) -> frozenset[int]:
    """The token ids that end a response: of the chat template, the generation config, the config, and the tokenizer."""
    try:
        found = set(Chat(tokenizer).ends)
    except ChatError:  # each prompt says it again
        found = set()
    found |= configured_ends(path, config) | _ids(getattr(tokenizer, "eos_token_id", None))
    if not found:
        raise EngineError(f"{path} names no end token; set eos_token_id in its generation_config.json")
    return frozenset(found)


def configured_ends(path: str, config: Any) -> set[int]:
    """Those that the model's own files name, so that every engine knows them."""
    from transformers import GenerationConfig

    found = _ids(getattr(config, "eos_token_id", None))
    if (Path(path) / "generation_config.json").exists():
        found |= _ids(GenerationConfig.from_pretrained(path).eos_token_id)
    return found


def _ids(value: int | Sequence[int] | None) -> set[int]:
    return {value} if isinstance(value, int) else set(value or ())


def array(ids: Sequence[int]) -> IntArray:
    return np.asarray(ids, dtype=np.int32)
