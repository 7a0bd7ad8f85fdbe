"""How a conversation with its reply is written for a model that judges it: in the model's own chat template, if it has one.

A reward model is trained on exactly what it is asked about later, so both sides write it here. Text that reads as a control token of
the model is broken up by a character without width (``BREAK``); otherwise a reply could end its own turn and continue as the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from broker.chat import Chat
from broker.errors import ChatError
from broker.prompts import ChatMessage

BREAK = "\u200b"


def conversation(messages: Sequence[ChatMessage], reply: str, tokenizer: Any = None) -> str:
    """The text of the conversation; without a chat template, paragraphs that begin with the role. Raises ChatError where the template
    refuses it."""
    turns = [*messages, ChatMessage("assistant", reply)]
    if tokenizer is not None:
        turns = [ChatMessage(turn.role, _chat(tokenizer).disarmed(turn, BREAK)) for turn in turns]
    if getattr(tokenizer, "chat_template", None):
        rows = [{"role": role, "content": content} for role, content in turns]
        try:
            return str(tokenizer.apply_chat_template(rows, tokenize=False))
        except Exception as error:  # templates are programs of the model's author and raise what they like
            raise ChatError(f"the chat template refuses roles {[t.role for t in turns]}: {error}") from error
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in turns)


@lru_cache(maxsize=4)
def _chat(tokenizer: Any) -> Chat:
    """Caches a tokenizer's control tokens, which are costly to find."""
    return Chat(tokenizer)


def conversation_tokens(messages: Sequence[ChatMessage], reply: str, tokenizer: Any, longest: int) -> list[int]:
    """Token ids of the conversation; of more than ``longest``, the last ones, which hold the reply."""
    special = not getattr(tokenizer, "chat_template", None)  # a template writes them itself
    ids = list(tokenizer(conversation(messages, reply, tokenizer), add_special_tokens=special)["input_ids"])
    return ids[-longest:]
