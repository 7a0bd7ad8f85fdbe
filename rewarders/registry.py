"""Makes a rewarder of ``module:Class`` and its options, and the handler of a judging process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from broker import plugins
from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory, decode
from rewarders.rewarder import Reward, Rewarder


def load_rewarder(use: str, options: dict[str, Any], base: Path) -> Rewarder:
    """Raises RunFileError if it cannot be found, is no rewarder, or has no such option."""
    rewarder: Rewarder = plugins.build(use, options, base, "[rewarders]")
    if not callable(rewarder):
        raise RunFileError(f"{use} makes nothing that can be called with a sample")
    return rewarder


def judge_factory(options: dict[str, Any]) -> Any:
    """The handler of a judging process: trajectory bytes -> [value or None, why]."""
    rewarder = load_rewarder(options["use"], options["options"], Path(options["base"]))
    if (prepare := getattr(rewarder, "prepare", None)) is not None:
        prepare()

    def judge(payload: bytes) -> list[Any]:
        sample = decode(payload)
        assert isinstance(sample, Trajectory)
        verdict = rewarder(sample)
        if verdict is None:
            return [None, ""]
        if isinstance(verdict, int | float):
            verdict = Reward(float(verdict))
        if not isinstance(verdict, Reward):
            raise MessageError(f"returned {type(verdict).__name__}; return a number, Reward(value, why) or None")
        return [float(verdict.value), str(verdict.why)[:500]]

    return judge
