"""Turns conversations into tokens: the only place where messages, replies and documents meet a model's chat template.

The text of messages never becomes control tokens. A reply is always encoded as given, whatever the template does to earlier ones, and
text added by the template is never trained on. A template is a program of the model's author; its errors are reported in its own words.

Limits: if a template has a mark that is no single token of the model (``[INST]`` of Llama 2), text cannot be told from the mark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from broker.errors import ChatError
from broker.prompts import ChatMessage

MARKS = tuple(chr(0xFDD0 + i) for i in range(32))
"""Unicode noncharacters, for internal use: one that no message contains is inserted into text that would make control tokens."""
GIVEN = ("tools", "documents")
"""Template options that hold foreign text, which must not make control tokens either."""
PROBE = "Wq7reply7qW"
TAG = re.compile(r"<([A-Za-z_]+)>")
ROLE = re.compile(r"[A-Za-z0-9_-]+")
CHATS = 64  # sets of options that are kept ready
THOUGHTS = ("think", "thinking", "thought", "reasoning", "reason")


class Rendered(NamedTuple):
    """The token ids of a prompt, and the text ``opened`` for the reply, such as ``<think>``, which counts as part of the reply when it is judged."""

    ids: list[int]
    opened: str


class Piece(NamedTuple):
    """A part of a document: ``trained`` pieces are replies of the assistant, with the token that ends the turn."""

    ids: list[int]
    trained: bool


class Chat:
    """A tokenizer's chat template with ``options`` for it (``enable_thinking``, ``tools``, ...).

    ``tokenizer`` is one of transformers. Without a template, only a single user message is accepted, as plain text. All methods raise ChatError.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer, self._options = tokenizer, dict(options or {})
        self._given = json.dumps([self._options.get(name) for name in GIVEN], ensure_ascii=False, default=str)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self.encode: Callable[[str], list[int]] = (
            (lambda text: list(backend.encode(text, add_special_tokens=False).ids))
            if backend is not None
            else (lambda text: list(tokenizer.encode(text, add_special_tokens=False)))
        )

    # -- prompts -------------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[ChatMessage]) -> Rendered:
        """The prompt: the conversation up to the assistant's reply."""
        mark = self._mark(messages)
        if not self._tokenizer.chat_template:
            if len(messages) != 1:
                raise ChatError(f"a conversation of {len(messages)} messages, but the tokenizer has no chat template")
            return Rendered(self._ids(self._guard(messages[0], mark), mark), "")
        text = self._render(messages, True, mark)
        return Rendered(self._ids(text, mark), self._opened(text))

    def continuation(self, messages: Sequence[ChatMessage], said: Sequence[ChatMessage], ended: bool) -> Rendered:
        """The tokens between a reply to ``messages`` and the next reply, with the messages ``said`` in between.

        ``ended`` tells whether the reply already has the token that ends a turn. The reply itself is not needed: what was sampled is never
        tokenised again.
        """
        if not self._tokenizer.chat_template:
            raise ChatError("an episode of several turns needs a chat template, and the tokenizer has none")
        mark, probe = self._mark([*messages, *said]), PROBE
        while any(probe in m.content for m in (*messages, *said)):
            probe += PROBE[-1]
        text = self._render([*messages, ChatMessage("assistant", probe), *said], True, mark)
        if probe not in text:
            raise ChatError("the chat template drops the reply before another message; it cannot hold an episode")
        between = text[text.rindex(probe) + len(probe) :]
        if ended and between.startswith(self._end.text):
            between = between[len(self._end.text) :]
        return Rendered(self._ids(between, mark), self._opened(between))

    def disarmed(self, message: ChatMessage, mark: str) -> str:
        """The text of a message with ``mark`` inserted into everything that reads as a control token, for callers that apply the template
        themselves."""
        return self._guard(message, mark)

    @property
    def ends(self) -> frozenset[int]:
        """The token ids that the template writes to end a reply; may be empty."""
        return frozenset(() if self._end.token is None else (self._end.token,))

    # -- documents -----------------------------------------------------------------------------------------------------

    def document(self, messages: Sequence[ChatMessage], trained: Sequence[bool] = ()) -> list[Piece]:
        """A conversation in pieces, of which only the assistant's replies are trained, each with its end token. ``trained`` has a flag for
        each message, whether a reply there is trained (empty: every reply).

        Replies are encoded as given. Raises ChatError for a reply that does not begin with what the prompt opens for it, and for an earlier
        one that the template rewrites once another message follows: it would be trained in a context that no prompt ever has.
        """
        if not self._tokenizer.chat_template:
            raise ChatError("the tokenizer has no chat template; give documents as text")
        mark = self._mark(messages)
        pieces: list[tuple[str, bool]] = []
        done, rest, before = "", "", None
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = self._render(messages[:i], True, mark)
            if not prompt.startswith(done):
                raise ChatError(self._rewritten(before))
            written = self._guard(message, mark)
            whole = self._render(messages[: i + 1], False, mark)
            tail = self._end.tail
            if not whole.endswith(written + tail) and whole.endswith(written.strip() + tail):
                written = written.strip()  # as the template does
            added = whole[len(prompt) : len(whole) - len(written + tail)] if whole.startswith(prompt) else ""
            if not whole.endswith(written + tail):
                added = ""
            written = self._behind_opened(written, self._opened(prompt))
            pieces += [(prompt[len(done) :] + added, False), (written + self._end.text, not trained or trained[i])]
            done, rest = prompt + added + written + self._end.text, tail[len(self._end.text) :]
            before = message
        pieces.append((rest, False))
        return [Piece(self._ids(text, mark), trained) for text, trained in pieces if text]

    def findings(self) -> list[str]:
        """Warnings about this template for the user before a run, one sentence each."""
        found = []
        question, reply = ChatMessage("user", "Zq"), f"<think>\nW1\n</think>\n\n{PROBE}"
        opened = self._opened(self._render([question], True))
        if opened:
            found.append(f"the template opens {opened.strip()!r}: replies are judged as beginning with it")
        if reply not in self._render([question, ChatMessage("assistant", reply), question], True):
            found.append(
                "the template drops or changes thoughts of earlier replies: train documents with one reply each"
            )
        plain = self._render([question, ChatMessage("assistant", PROBE)], False)
        if "</think>" in plain:
            found.append("the template puts an empty thought before plain replies: it is not trained")
        if self._end.token is None:
            found.append("the template ends a reply with no token of its own")
        elif self._end.token != getattr(self._tokenizer, "eos_token_id", None):
            found.append(f"the template ends replies with {self._end.text!r}, which is not the tokenizer's eos token")
        return found

    def _rewritten(self, reply: ChatMessage | None) -> str:
        start = "" if reply is None else reply.content[:40]
        return (
            f"the chat template rewrites earlier turns: it drops or changes the reply {start!r} once another message follows. "
            "Make each reply the last one of a document of its own, or give it without what the template drops (a thought)"
        )

    @staticmethod
    def _behind_opened(written: str, opened: str) -> str:
        """A reply without the text that the prompt already opened for it."""
        if not opened or written.startswith(opened):
            return written[len(opened) :]
        if written.startswith(opened.strip()):
            return written[len(opened.strip()) :].lstrip("\n")
        raise ChatError(
            f"the chat template opens {opened.strip()!r}, and the reply {written[:40]!r} does not begin with it: it would be trained as an "
            "unfinished thought. Give replies with their thought, or switch it off (template = { enable_thinking = false }, if there is one)"
        )

    # -- the template --------------------------------------------------------------------------------------------------

    def _render(self, messages: Sequence[ChatMessage], generation: bool, mark: str = MARKS[0]) -> str:
        turns = [{"role": m.role, "content": self._guard(m, mark)} for m in messages]
        given = {name: self._guarded(self._options[name], mark) for name in GIVEN if name in self._options}
        return self._template(turns, generation, given)

    def _guarded(self, value: Any, mark: str) -> Any:
        """The value of an option, with its texts guarded like those of messages."""
        if isinstance(value, str):
            return self._guard(ChatMessage("tool", value), mark)
        if isinstance(value, Mapping):
            return {self._guarded(key, mark): self._guarded(inner, mark) for key, inner in value.items()}
        return [self._guarded(inner, mark) for inner in value] if isinstance(value, list | tuple) else value

    def _template(self, turns: list[dict[str, str]], generation: bool, given: Mapping[str, Any] | None = None) -> str:
        options = {**self._options, **(given or {})}
        try:
            return str(
                self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation, **options)
            )
        except Exception as error:  # templates are programs of the model's author and raise what they like
            raise ChatError(f"the chat template refuses roles {[t['role'] for t in turns]}: {error}") from error

    def _opened(self, text: str) -> str:
        """The end of a prompt, beginning with a tag that it leaves open, such as ``<think>``."""
        at = text.rfind(PROBE) + 1
        for tag in TAG.finditer(text, at):
            name, closing = tag.group(1), f"</{tag.group(1)}>"
            known = name in THOUGHTS or closing in self._added
            behind = text[tag.end() :]
            if known and tag.group() not in self._control["assistant"] and not behind.strip():
                return text[tag.start() :]
        return ""

    @cached_property
    def _end(self) -> End:
        """What the template writes after a reply."""
        if not self._tokenizer.chat_template:
            return End("", "", None)
        text = self._render([ChatMessage("user", "Zq"), ChatMessage("assistant", PROBE)], False)
        if PROBE not in text:
            raise ChatError("the chat template drops the assistant's reply")
        tail = text[text.rindex(PROBE) + len(PROBE) :]
        places = [(tail.index(token), -len(token), token) for token in self._added if token in tail]
        if not places:
            return End(tail, tail, None)
        at, _, token = min(places)
        return End(tail[: at + len(token)], tail, self._added[token])

    # -- control tokens ------------------------------------------------------------------------------------------------

    @cached_property
    def _added(self) -> dict[str, int]:
        found = getattr(self._tokenizer, "added_tokens_decoder", {})
        return {str(token): number for number, token in found.items()}

    @cached_property
    def _control(self) -> dict[str, frozenset[str]]:
        """By role, the tokens that its text must not make. Special ones, and those that the template frames turns with; the assistant may
        write markup (``<think>`` with its ``</think>``), special or not."""
        decoder = getattr(self._tokenizer, "added_tokens_decoder", {})
        named = set(getattr(self._tokenizer, "all_special_tokens", ()))
        special = {str(t) for t in decoder.values() if getattr(t, "special", False)} | named
        markup = {t for t in self._added if TAG.fullmatch(t) and f"</{t[1:]}" in self._added}
        markup = {t for t in markup | {f"</{t[1:]}" for t in markup} if len(t) > 4} - named  # not <s> and </s>
        turns = [{"role": r, "content": "Zq"} for r in ("user", "assistant", "user")]
        try:
            frame = self._template(turns, False) if self._tokenizer.chat_template else ""
        except ChatError:
            frame = ""
        framing = {t for t in self._added if t in frame} - markup
        everyone = frozenset(t for t in special | framing if len(t) > 1)
        return {"": everyone, "assistant": everyone - markup}

    @cached_property
    def _finders(self) -> dict[str, re.Pattern[str] | None]:
        return {
            role: re.compile(f"(?=({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))}))") if tokens else None
            for role, tokens in self._control.items()
        }  # fmt: skip

    def _guard(self, message: ChatMessage, mark: str) -> str:
        """The text of a message with ``mark`` after the first character of everything that reads as a control token."""
        if not ROLE.fullmatch(message.role):
            raise ChatError(f"role {message.role!r} is no name; use user, assistant, system or tool")
        finder = self._finders["assistant" if message.role == "assistant" else ""]
        text = message.content
        if finder is None:
            return text
        for at in reversed([m.start() for m in finder.finditer(text)]):
            text = text[: at + 1] + mark + text[at + 1 :]
        return text

    def _mark(self, messages: Sequence[ChatMessage]) -> str:
        for mark in MARKS:
            if not any(mark in m.content for m in messages) and mark not in self._given:
                return mark
        raise ChatError("the messages hold all of the characters that Unicode keeps for the inner use of programs")

    def _ids(self, text: str, mark: str) -> list[int]:
        return [number for part in text.split(mark) if part for number in self.encode(part)]


class End(NamedTuple):
    """``text`` ends a reply, ``tail`` is all that the template writes behind the last one, ``token`` the id of the end."""

    text: str
    tail: str
    token: int | None


class Chats:
    """The ``Chat`` of one tokenizer for each set of options; those used last are kept, since agents may bring ever new tools."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, Chat] = {}

    def of(self, options: Mapping[str, Any] | None = None) -> Chat:
        key = json.dumps(options or {}, sort_keys=True, default=str)
        chat = self._known.pop(key) if key in self._known else Chat(self.tokenizer, options)
        self._known[key] = chat
        if len(self._known) > CHATS:
            del self._known[next(iter(self._known))]
        return chat
