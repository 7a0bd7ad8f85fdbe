"""How a conversation with its reply is written for a model that judges it: in the model's own chat template, if it has one.

A reward model is trained on exactly what it is asked about later, so both sides write it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.prompts import ChatMessage


def conversation(messages: Sequence[ChatMessage], reply: str, tokenizer: Any = None) -> str:
    """The text of the conversation; without a chat template, paragraphs that begin with the role."""
    turns = [*messages, ChatMessage("assistant", reply)]
    if getattr(tokenizer, "chat_template", None):
        rows = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.apply_chat_template(rows, tokenize=False))
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in turns)


def conversation_tokens(messages: Sequence[ChatMessage], reply: str, tokenizer: Any, longest: int) -> list[int]:
    """Token ids of the conversation, at most ``longest``: of a longer one the end, which holds the reply."""
    special = not getattr(tokenizer, "chat_template", None)  # a template writes them itself
    ids = list(tokenizer(conversation(messages, reply, tokenizer), add_special_tokens=special)["input_ids"])
    return ids[-longest:]
