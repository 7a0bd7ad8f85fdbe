"""Makes a rewarder of ``module:Class`` and its options, and the handler of a judging process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory, decode
from rewarders.rewarder import GroupRewarder, Reward, Rewarder, reward_of_verdict


def load_rewarder(use: str, options: dict[str, Any], base: Path) -> Rewarder:
    """A rewarder of single samples. Raises RunFileError if it cannot be found, is no rewarder, or has no such option."""
    rewarder = load_any(use, options, base)
    if is_group_rewarder(rewarder):
        raise RunFileError(f"{use} judges whole groups; it cannot be called with one sample")
    return rewarder  # type: ignore[return-value]


def load_any(use: str, options: dict[str, Any], base: Path) -> Rewarder | GroupRewarder:
    """A rewarder of samples or of groups. Raises RunFileError as ``load_rewarder`` does."""
    rewarder: Any = plugins.build(use, options, base, "[rewarders]")
    if not callable(getattr(rewarder, "judge", None) if is_group_rewarder(rewarder) else rewarder):
        raise RunFileError(f"{use} makes nothing that can be called with a sample")
    return rewarder


def is_group_rewarder(rewarder: object) -> bool:
    return bool(getattr(rewarder, "per_group", False))


def judge_factory(options: dict[str, Any]) -> Any:
    """The handler of a judging process: trajectory bytes -> a packed Reward, or None for an abstention."""
    rewarder = load_rewarder(options["use"], options["options"], Path(options["base"]))

    def judge(payload: bytes) -> dict[str, Any] | None:
        sample = decode(payload)
        assert isinstance(sample, Trajectory)
        reward = reward_of_verdict(rewarder(sample))
        return None if reward is None else checked(reward, sample).pack()

    return judge


def checked(reward: Reward, sample: Trajectory) -> Reward:
    """``reward``, if it fits the sample. Raises MessageError."""
    if reward.logprobs and len(reward.logprobs) != 4 * sample.response_tokens:
        raise MessageError(
            f"{len(reward.logprobs) // 4} log-probabilities for {sample.response_tokens} trainable tokens; give one for each"
        )
    if any(end > len(sample.tokens) for _, end, _ in reward.spans):
        raise MessageError(f"spans {reward.spans} go beyond the sample's {len(sample.tokens)} tokens")
    return reward
