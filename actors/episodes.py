"""Episodes: one sample under way, from its prompt to a trajectory. A prompt without environment is an episode of one turn.

Tokens in, tokens out: what was sampled is kept as it was drawn and never tokenised again; what an environment says, and what the chat
template writes between two replies, is appended untrained. Log-probabilities, version spans and the mask run over the whole episode.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from actors.engine import Completion, Request
from actors.environment import Turn
from actors.prompting import array
from broker.chat import Chats, Rendered
from broker.messages import ChatMessage, FloatArray, IntArray, Prompt, Reply, Sampling, Segment, Trajectory, VersionSpan


@dataclass(slots=True)
class Episode:
    """Sample ``index`` of ``prompt``. ``tokens`` int32 ``[T]`` is all that was said so far; ``opened`` what the prompt opened."""

    prompt: Prompt
    index: int
    tokens: IntArray
    opened: str = ""
    logprobs: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    segments: list[Segment] = field(default_factory=list)
    versions: list[VersionSpan] = field(default_factory=list)
    turns: list[ChatMessage] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    opening: float = 0.0
    text: str = ""
    finish_reason: str = ""
    outcome: float | None = None
    why: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    started: float = 0.0
    ended: bool = False
    """Whether the last reply has the token that ends a turn."""
    aborts: int = 0
    """How often an update of the weights has ended the turn that is under way."""
    said: Turn | None = None
    """What was said last."""
    session: str = ""
    first: tuple[ChatMessage, ...] = ()
    """With a session: what was said before the first reply."""

    @classmethod
    def begin(
        cls, prompt: Prompt, index: int, rendered: Rendered, opening: Turn | None = None, seconds: float = 0.0
    ) -> Episode:
        """An episode whose prompt is ``rendered``: the prompt's messages, and those that an environment opened with, in ``seconds``."""
        said, tools = ((), ()) if opening is None else (opening.messages, opening.tools)
        tokens = array(rendered.ids)
        episode = cls(
            prompt, index, tokens, rendered.opened, np.zeros(len(tokens), np.float32), turns=list(said), tools=tools
        )
        episode.segments.append(Segment("prompt", 0, len(tokens), False))
        episode.opening, episode.said = seconds, opening
        if opening is not None:
            episode.outcome, episode.why = opening.outcome, opening.why
            if opening.asked is not None:
                episode.session, episode.first = opening.asked.session, opening.messages
        return episode

    @property
    def id(self) -> tuple[str, int]:
        return self.prompt.group_id, self.index

    def hear(self, done: Completion, ends: frozenset[int] = frozenset()) -> str:
        """Append a reply; returns it as it is read, behind what the prompt opened."""
        start, count = len(self.tokens), len(done.tokens)
        self.tokens = np.concatenate((self.tokens, done.tokens))
        self.logprobs = np.concatenate((self.logprobs, np.minimum(done.logprobs, 0.0)))
        self.segments.append(Segment("assistant", start, start + count, True))
        for span in done.versions:
            if not self.versions or self.versions[-1].version != span.version:
                self.versions.append(VersionSpan(span.version, span.start + start))
        self.text = self.opened + done.text
        self.turns.append(ChatMessage("assistant", self.text))
        self.replies.append(Reply(len(self.turns) - 1, done.started, time.time()))
        self.aborts = 0
        self.finish_reason = done.finish_reason
        self.started = self.started or done.started
        self.ended = count > 0 and int(done.tokens[-1]) in ends
        return self.text

    def answered(self, turn: Turn, seconds: float) -> None:
        """The environment has heard the last reply, and said ``turn`` to it after ``seconds``."""
        self.replies[-1] = self.replies[-1]._replace(seconds=seconds, value=turn.value)
        if turn.outcome is not None:
            self.outcome = turn.outcome
        self.why = turn.why or self.why

    def say(self, turn: Turn, rendered: Rendered) -> Request | None:
        """Append what the environment says, and ask for the next reply; None where no further token may follow."""
        role = turn.messages[-1].role if turn.messages else "user"
        start, end = len(self.tokens), len(self.tokens) + len(rendered.ids)
        self.said = turn
        if self._room(end) < 1:
            return None
        self.tokens = np.concatenate((self.tokens, array(rendered.ids)))
        self.logprobs = np.concatenate((self.logprobs, np.zeros(end - start, np.float32)))
        self.segments.append(Segment(role, start, end, False))
        self.turns += turn.messages
        self.opened = rendered.opened
        return self.request()

    def unsay(self, turn: Turn) -> None:
        """Take back what was said last: the engine has no room for an answer to it."""
        last = self.segments.pop()
        self.tokens, self.logprobs = self.tokens[: last.start], self.logprobs[: last.start]
        del self.turns[len(self.turns) - len(turn.messages) :]

    def _room(self, length: int) -> int:
        """How many tokens of a reply may follow behind ``length``."""
        sampling = self.prompt.sampling
        return min(sampling.max_new_tokens, sampling.max_total - length if sampling.max_total else sampling.max_new_tokens)  # fmt: skip

    def request(self, keep: bool = False) -> Request:
        """What the engine is asked for now. ``keep``: weights that arrive must not end it."""
        own, asked = self.prompt.sampling, None if self.said is None else self.said.asked
        room = max(1, self._room(len(self.tokens)))
        if asked is not None:
            room = min(room, asked.limit or room)
        sampling = replace(own, max_new_tokens=room, stop=own.stop if asked is None else (*own.stop, *asked.stop))
        sampling = own if sampling == own else sampling
        return Request(*self.id[:1], (self.index,), self.tokens, sampling, self.prompt.min_version, keep)

    def trajectory(self, engine: str, actor: str) -> Trajectory:
        """The sample with all that its readers need. Raises MessageError if the engine gave something impossible."""
        prompt = self.prompt
        return Trajectory(
            group_id=prompt.group_id,
            index=self.index,
            group_size=prompt.group_size,
            messages=prompt.messages,
            answer=prompt.answer,
            kind=prompt.kind,
            metadata=prompt.metadata,
            rewards=prompt.rewards,
            purpose=prompt.purpose,
            text=self.text,
            tokens=self.tokens,
            logprobs=self.logprobs,
            segments=tuple(self.segments),
            versions=tuple(self.versions),
            finish_reason=self.finish_reason,
            sampling=prompt.sampling,
            engine=engine,
            actor=actor,
            created=time.time(),
            started=self.started,
            environment=prompt.environment,
            turns=tuple(self.turns) if prompt.environment else (),
            outcome=self.outcome,
            collection=prompt.collection,
            session=self.session,
            replies=tuple(self.replies) if prompt.environment else (),
            opening=self.opening,
            why=self.why,
        )


def opening(chats: Chats, prompt: Prompt, turn: Turn) -> Rendered:
    """The prompt with what the environment says first, and its tools, in the chat template. Raises ChatError."""
    options = {**prompt.template, "tools": [dict(t) for t in turn.tools]} if turn.tools else prompt.template
    return chats.of(options).prompt(turn.messages if turn.asked else [*prompt.messages, *turn.messages])


def between(chats: Chats, episode: Episode, said: Sequence[ChatMessage]) -> Rendered:
    """The tokens between the episode's last reply and the next one. Raises ChatError."""
    prompt = episode.prompt
    options = {**prompt.template, "tools": [dict(t) for t in episode.tools]} if episode.tools else prompt.template
    before = episode.first if episode.session else prompt.messages
    return chats.of(options).continuation(before, said, episode.ended)


def together(episodes: Sequence[Episode]) -> list[Request]:
    """What the engine is asked for by episodes of one prompt that begin: those that say and want the same share a request."""
    alike: dict[tuple[bytes, Sampling], list[Request]] = {}
    for episode in episodes:
        request = episode.request()
        alike.setdefault((request.tokens.tobytes(), request.sampling), []).append(request)
    return [replace(several[0], indices=tuple(i for r in several for i in r.indices)) for several in alike.values()]
