"""From a prompt to tokens and from a completion to a trajectory."""

from __future__ import annotations

import time
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
