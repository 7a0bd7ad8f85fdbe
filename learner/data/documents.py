"""Turns supervised documents into tokens: which are trained on, and which count for the accuracy of a tag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.errors import DataError
from broker.messages import ChatMessage, IntArray
from learner.data.source import Document


@dataclass(frozen=True, slots=True)
class Tokenized:
    """``tokens`` int32 [T], ``trained`` bool [T], ``tagged`` bool [T]: the trained tokens that carry the wanted tag."""

    tokens: IntArray
    trained: np.ndarray
    tagged: np.ndarray


class DocumentTokenizer:
    """Tokenizes documents; conversations go through the chat template, and only the assistant's turns are trained on."""

    def __init__(self, tokenizer: Any, tag: str = "") -> None:
        self._tokenizer, self._tag = tokenizer, tag
        self._encode = tokenizer.backend_tokenizer.encode if hasattr(tokenizer, "backend_tokenizer") else None

    def tokenize(self, document: Document) -> Tokenized:
        """Raises DataError if the document is empty or the tokenizer has no chat template for a conversation."""
        if document.messages:
            pieces = self._conversation(document.messages, document.tag)
        else:
            pieces = [(span.text, span.trained, span.tag) for span in document.spans]
        tokens: list[int] = []
        trained: list[bool] = []
        tagged: list[bool] = []
        for text, is_trained, tag in pieces:
            ids = self._ids(text)
            tokens += ids
            trained += [is_trained] * len(ids)
            tagged += [is_trained and (not self._tag or tag == self._tag)] * len(ids)
        if not tokens:
            raise DataError("a document without text")
        return Tokenized(np.array(tokens, np.int32), np.array(trained), np.array(tagged))

    def _ids(self, text: str) -> list[int]:
        if self._encode is not None:
            return list(self._encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _conversation(self, messages: tuple[ChatMessage, ...], tag: str) -> list[tuple[str, bool, str]]:
        """The rendered conversation cut at the ends of the assistant's turns. What the template writes behind a reply up to and
        including the end token belongs to the reply."""
        pieces: list[tuple[str, bool, str]] = []
        done = ""
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._render(messages[:i], True)
            after = self._render(messages[: i + 1], False)
            if not before.startswith(done) or not after.startswith(before):
                raise DataError("the chat template rewrites earlier turns; such conversations cannot be trained on")
            reply = after[len(before) :]
            end = self._tokenizer.eos_token or ""
            cut = reply.rfind(end) + len(end) if end and end in reply else len(reply)
            pieces.append((before[len(done) :], False, ""))
            pieces.append((reply[:cut], True, tag))
            pieces.append((reply[cut:], False, ""))
            done = after
        return [piece for piece in pieces if piece[0]]

    def _render(self, messages: tuple[ChatMessage, ...], generation: bool) -> str:
        if not self._tokenizer.chat_template:
            raise DataError("the tokenizer has no chat template; give documents as text")
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation))
