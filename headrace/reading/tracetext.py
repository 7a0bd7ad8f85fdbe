"""A sample of a trace in words: on one line, and an episode with a line a turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headrace.reading.turns import facts
from monitoring.view import clean_text


def sample_line(sample: dict[str, Any]) -> str:
    """One sample of a trace: its position, what sampled it, how it was judged and why, and its text."""
    partition, offset = sample["position"]
    head = f"#{sample['index']:<3} trajectories[{partition}] {offset}"
    votes = "  ".join(vote_text(vote) for vote in sample["votes"])
    if "unreadable" in sample:
        return f"{head}  unreadable: {one_line(sample['unreadable'], 200)}  {votes}"
    versions = "+".join(str(version) for version, _ in sample["versions"])
    return (
        f"{head}  version {versions}  staleness {sample['staleness']}  {sample['tokens']} tokens  "
        f"{reward_text(sample['reward'])}  {votes}  {one_line(sample['text'], 80)}"
    )


def turn_lines(sample: dict[str, Any]) -> Iterator[str]:
    """An episode, a line a turn; nothing of a single answer."""
    for turn in sample.get("turns", ()):
        yield f"{clean_text(turn['role'], 20):<16} {facts(turn)}  {one_line(turn['text'], 100)}"
    if "ending" in sample:
        yield f"{clean_text(sample['environment'], 40)}: {one_line(sample['ending'], 200)}"


def reward_text(reward: float | None) -> str:
    return "unjudged" if reward is None else f"reward {reward:.3g}"


def vote_text(vote: dict[str, Any]) -> str:
    if "unreadable" in vote:
        return f"{vote['rewarder']}=unreadable"
    given = f"{vote['value']:.3g}" if vote["outcome"] == "value" else vote["outcome"]
    return f"{vote['rewarder']}={given}" + (f" ({one_line(vote['why'], 60)})" if vote["why"] else "")


def one_line(text: str, limit: int) -> str:
    return clean_text(text, limit).replace("\n", " ")
