"""A sample of a trace in words, on one line."""

from __future__ import annotations

from typing import Any

from monitoring.view import clean_text


def sample_line(sample: dict[str, Any]) -> str:
    """One sample of a trace: where it lies, what sampled it, how it was judged and why, and how it reads."""
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


def reward_text(reward: float | None) -> str:
    return "unjudged" if reward is None else f"reward {reward:.3g}"


def vote_text(vote: dict[str, Any]) -> str:
    if "unreadable" in vote:
        return f"{vote['rewarder']}=unreadable"
    given = f"{vote['value']:.3g}" if vote["outcome"] == "value" else vote["outcome"]
    return f"{vote['rewarder']}={given}" + (f" ({one_line(vote['why'], 60)})" if vote["why"] else "")


def one_line(text: str, limit: int) -> str:
    return clean_text(text, limit).replace("\n", " ")
