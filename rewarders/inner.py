"""A rewarder inside another one: made from a table of options and called with a whole group, whichever kind it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from rewarders.beside import place
from rewarders.registry import is_group_rewarder, load_any
from rewarders.rewarder import Reward, reward_of_verdict


class Inner:
    """The rewarder that ``table`` describes: ``"module:Class"``, or a map with ``use`` and the class's options.

    ``file.py:Class`` is relative to the run file's directory. Raises RunFileError for the same mistakes as the run
    file's own tables.
    """

    def __init__(self, table: str | Mapping[str, Any]) -> None:
        options = {"use": table} if isinstance(table, str) else dict(table)
        use = options.pop("use", "")
        if not use:
            raise RunFileError(
                f"a rewarder inside of another is {table!r}; write module:Class, or a table with use = 'module:Class'"
            )
        self.use: str = use
        self._rewarder: Any = load_any(use, options, place())

    def judge(self, samples: Sequence[Trajectory]) -> list[Reward | None]:
        """A verdict on each sample. Raises what the rewarder raises, and MessageError where it gives too few verdicts."""
        if not is_group_rewarder(self._rewarder):
            return [reward_of_verdict(self._rewarder(sample)) for sample in samples]
        verdicts = [reward_of_verdict(verdict) for verdict in self._rewarder.judge(samples)]
        if len(verdicts) != len(samples):
            raise MessageError(f"{self.use} gave {len(verdicts)} verdicts on {len(samples)} samples; give one for each")
        return verdicts


def pass_rate(verdicts: Sequence[Reward | None], threshold: float) -> float | None:
    """The share of the judged samples whose value is at least ``threshold``; None where none was judged."""
    judged = [verdict.value >= threshold for verdict in verdicts if verdict is not None]
    return sum(judged) / len(judged) if judged else None
