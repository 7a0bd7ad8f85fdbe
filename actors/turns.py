"""An episode turn by turn, so that it can go on elsewhere: what a reply has added to it, and the episode that such turns add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from actors.environment import Turn
from actors.episodes import Episode
from broker.messages import ChatMessage, Prompt, Reply, Segment, VersionSpan


class Mark(NamedTuple):
    """How far an episode had come: tokens, segments, version spans and messages."""

    tokens: int = 0
    segments: int = 0
    versions: int = 0
    turns: int = 0

    @classmethod
    def of(cls, episode: Episode) -> Mark:
        return cls(len(episode.tokens), len(episode.segments), len(episode.versions), len(episode.turns))


def since(episode: Episode, mark: Mark) -> dict[str, Any]:
    """What was added behind ``mark`` up to the reply that has just come, as msgpack can carry it."""
    return {
        "tokens": episode.tokens[mark.tokens :].astype("<i4").tobytes(),
        "logprobs": episode.logprobs[mark.tokens :].astype("<f4").tobytes(),
        "segments": [list(s) for s in episode.segments[mark.segments :]],
        "versions": [list(v) for v in episode.versions[mark.versions :]],
        "turns": [list(m) for m in episode.turns[mark.turns :]],
        "tools": [dict(t) for t in episode.tools] if not mark.tokens else [],
        "opened": episode.opened, "text": episode.text, "finish": episode.finish_reason, "ended": episode.ended,
        "session": episode.session, "started": episode.started, "reply": list(episode.replies[-1]),
    }  # fmt: skip


def length(turn: Mapping[str, Any]) -> Mark:
    """How much a turn has added."""
    return Mark(len(turn["tokens"]) // 4, len(turn["segments"]), len(turn["versions"]), len(turn["turns"]))


def resumed(prompt: Prompt, index: int, earlier: Sequence[Mapping[str, Any]]) -> Episode:
    """The episode that ``earlier`` turns add up to: token for token what was sampled."""
    first, last = earlier[0], earlier[-1]
    joined = {
        key: np.concatenate([np.frombuffer(t[key], kind) for t in earlier])
        for key, kind in (("tokens", "<i4"), ("logprobs", "<f4"))
    }
    opening = tuple(ChatMessage(*m) for m in first["turns"][:-1])
    episode = Episode(
        prompt, index, joined["tokens"].astype(np.int32), last["opened"], joined["logprobs"].astype(np.float32)
    )
    episode.segments = [Segment(*s) for t in earlier for s in t["segments"]]
    episode.versions = [VersionSpan(*v) for t in earlier for v in t["versions"]]
    episode.turns = [ChatMessage(*m) for t in earlier for m in t["turns"]]
    episode.tools = tuple(first["tools"])
    episode.replies, episode.text = [Reply(*t["reply"]) for t in earlier], last["text"]
    episode.finish_reason, episode.ended, episode.started = last["finish"], last["ended"], first["started"]
    episode.session, episode.first, episode.said = first["session"], opening, Turn(opening)
    return episode  # fmt: skip
