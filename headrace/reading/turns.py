"""An episode turn by turn: who said what, in how many tokens, whether they are trained, and how long it took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from broker.messages import ChatMessage, Reply, Segment, Trajectory
from monitoring.view import clean_text


@dataclass(frozen=True, slots=True)
class Spoken:
    """One stretch of an episode's tokens: the prompt with what its environment opened it with, a reply, or what was said to one.

    ``versions`` sampled a reply from ``started`` to ``ended`` (seconds since the epoch, 0 where they are not known); it is worth ``value`` by
    itself if its environment said so. ``seconds`` is what the environment took to say the others.
    """

    role: str
    text: str
    tokens: int
    trained: bool
    versions: tuple[int, ...] = ()
    started: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    value: float | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON can say it, without what is not known."""
        fields = {
            "versions": list(self.versions), "started": self.started, "ended": self.ended, "seconds": self.seconds, "value": self.value,
        }  # fmt: skip
        known = {name: value for name, value in fields.items() if value or (value == 0 and name == "value")}
        return {"role": self.role, "text": self.text, "tokens": self.tokens, "trained": self.trained, **known}


def spoken(sample: Trajectory) -> list[Spoken]:
    """The stretches of an episode; none of a single answer. Older records have no times."""
    if not sample.environment:
        return []
    replies = sample.replies or _guessed(sample.turns)
    trained = [s for s in sample.segments if s.trainable]
    if len(trained) != len(replies):  # a program that speaks for itself has written it
        return [Spoken(s.role, "", s.end - s.start, s.trainable) for s in sample.segments]
    return list(_told(sample, replies))


def _guessed(turns: Sequence[ChatMessage]) -> tuple[Reply, ...]:
    return tuple(Reply(place, 0.0, 0.0) for place, turn in enumerate(turns) if turn.role == "assistant")


def _told(sample: Trajectory, replies: Sequence[Reply]) -> Iterator[Spoken]:
    number, at, seconds = 0, 0, sample.opening
    for segment in sample.segments:
        tokens = segment.end - segment.start
        if not segment.trainable:
            end = replies[number].turn if number < len(replies) else len(sample.turns)
            said = sample.turns[at:end]
            role = segment.role if at or not said else f"{segment.role}, {said[-1].role}"
            yield Spoken(role, "\n".join(m.content for m in said), tokens, False, seconds=seconds)
            continue
        reply = replies[number]
        at, seconds, number = reply.turn + 1, reply.seconds, number + 1
        yield Spoken(
            segment.role, sample.turns[reply.turn].content, tokens, True, _versions(sample, segment), reply.started, reply.ended,
            value=reply.value,
        )  # fmt: skip


def _versions(sample: Trajectory, segment: Segment) -> tuple[int, ...]:
    """Those that sampled the tokens of a segment, in order."""
    before = [v.version for v in sample.versions if v.start <= segment.start]
    within = [v.version for v in sample.versions if segment.start < v.start < segment.end]
    return tuple(before[-1:] + within)


def ending(sample: Trajectory) -> str:
    """How an episode ended, in a line."""
    worth = "no outcome" if sample.outcome is None else f"outcome {sample.outcome:.4g}"
    last = sample.replies[-1].seconds if sample.replies else 0.0
    took = f", said after {last:.3g} s" if last else ""
    return f"{worth}{took}, ended by {sample.finish_reason}" + (
        f": {clean_text(sample.why, 200)}" if sample.why else ""
    )


def facts(turn: dict[str, Any]) -> str:
    """What is known of a turn (as ``plain`` has it) beside its text."""
    found = [f"{turn['tokens']} tokens" + (" trained" if turn["trained"] else "")]
    if turn.get("versions"):
        found.append("version " + "+".join(map(str, turn["versions"])))
    if turn.get("ended", 0.0) > turn.get("started", 0.0) > 0:
        found.append(f"sampled in {turn['ended'] - turn['started']:.3g} s")
    if turn.get("seconds"):
        found.append(f"said after {turn['seconds']:.3g} s")
    if turn.get("value") is not None:
        found.append(f"worth {turn['value']:.4g}")
    return ", ".join(found)
