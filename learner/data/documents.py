"""Tokenizes supervised documents, and marks which tokens are trained on and which count for the accuracy of a tag."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.chat import Chat
from broker.errors import ChatError, DataError
from broker.messages import IntArray
from learner.data.source import Document


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A document of T tokens: ``tokens`` int32 [T]; ``trained`` bool [T]; ``tagged`` bool [T], the trained tokens with
    the wanted tag.
    """

    tokens: IntArray
    trained: np.ndarray
    tagged: np.ndarray


class DocumentTokenizer:
    """Tokenizes documents, conversations by the chat template with its ``options``.

    ``tag`` is the tag whose trained tokens are ``tagged``; empty: all trained tokens are.
    """

    def __init__(self, tokenizer: Any, tag: str = "", options: Mapping[str, Any] | None = None) -> None:
        self._chat, self._tag, self._tokenizer = Chat(tokenizer, options), tag, tokenizer
        self._chats: dict[str, Chat] = {}

    def tokenize(self, document: Document) -> Tokenized:
        """Raises DataError if the document is empty, or if the chat template or the tokenizer rejects its text."""
        try:
            return self._tokenize(document)
        except DataError as error:
            raise DataError(f"{document.where}: {error}" if document.where else str(error)) from error
        except Exception as error:  # half of a surrogate pair, say; tokenizers raise errors of any type
            said = f"the text cannot be written in tokens: {type(error).__name__}: {str(error)[:200]}"
            raise DataError(f"{document.where}: {said}" if document.where else said) from error

    def _tokenize(self, document: Document) -> Tokenized:
        tokens: list[int] = []
        trained: list[bool] = []
        tagged: list[bool] = []
        for ids, is_trained, tag in self._pieces(document):
            tokens += ids
            trained += [is_trained] * len(ids)
            tagged += [is_trained and (not self._tag or tag == self._tag)] * len(ids)
        if not tokens:
            raise DataError("a document without text")
        return Tokenized(np.array(tokens, np.int32), np.array(trained), np.array(tagged))

    def _pieces(self, document: Document) -> list[tuple[list[int], bool, str]]:
        if not document.messages:
            return [(self._chat.encode(span.text), span.trained, span.tag) for span in document.spans]
        try:
            pieces = self._chat_of(document).document(document.messages, document.trained)
            return [(ids, trained, document.tag) for ids, trained in pieces]
        except ChatError as error:
            raise DataError(str(error)) from error

    def _chat_of(self, document: Document) -> Chat:
        """The chat template with the document's own options, if it has any."""
        if document.template is None:
            return self._chat
        key = json.dumps(document.template, sort_keys=True, default=repr)
        if key not in self._chats:
            self._chats[key] = Chat(self._tokenizer, document.template)
        return self._chats[key]
