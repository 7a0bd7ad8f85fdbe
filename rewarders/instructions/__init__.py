"""Rule reward for instructions that a program can check: IFEval (arXiv 2311.07911). What each instruction asks for is in ``checks.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from broker.errors import MessageError, RunFileError
from broker.messages import Trajectory
from broker.spelling import nearest
from rewarders.instructions.checks import CHECKS
from rewarders.instructions.given import Given
from rewarders.rewarder import Reward
from rewarders.text import after_thinking, answer_span

REWARDS = ("all", "fraction")


@dataclass(frozen=True)
class Instructions:
    """1 if the response follows every instruction of ``metadata["instructions"]``, else 0; abstains where there are none.

    With ``reward = "fraction"`` the share that it follows. ``loose`` counts an instruction as followed where the response without its first
    line, its last line, both, or its asterisks follows it (the paper's loose accuracy; strict is the default). What is judged follows the last thought,
    within answer tags if there is one pair. Raises MessageError for an instruction that is not known, or lacks an argument.
    """

    bounded: ClassVar[bool] = True
    reward: str = "all"
    loose: bool = False

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise RunFileError(f"reward = {self.reward!r} must be one of {', '.join(map(repr, REWARDS))}")

    def __call__(self, sample: Trajectory) -> Reward | None:
        asked = sample.metadata.get("instructions")
        if not asked:
            return None
        if not isinstance(asked, list):
            raise MessageError(
                f"metadata['instructions'] is a {type(asked).__name__}; it must be a list of {{id, with}}"
            )
        checks = [_check(item) for item in asked]
        said = (answer_span(after_thinking(sample.text)) or "").strip()
        if not said:
            return Reward(0.0, "no answer behind the thought")
        tried = list(_loosely(said)) if self.loose else [said]
        broken = [name for name, follows in checks if not any(text.strip() and follows(text) for text in tried)]
        value = float(not broken) if self.reward == "all" else 1 - len(broken) / len(checks)
        return Reward(
            value,
            f"{len(checks) - len(broken)} of {len(checks)} followed" + (f", not {', '.join(broken)}" if broken else ""),
        )


def _check(item: Any) -> tuple[str, Callable[[str], bool]]:
    """The name of an instruction, and whether a text follows it. Raises MessageError."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
        raise MessageError(f"metadata['instructions'] holds {str(item)[:80]!r}; each must be {{id, with}}")
    name = item["id"]
    if name not in CHECKS:
        raise MessageError(f"instruction {name!r} is not known{nearest(name, list(CHECKS))}")
    given, check = Given(name, item.get("with") or {}), CHECKS[name]
    return name, lambda text: check(text, given)


def _loosely(said: str) -> Iterator[str]:
    """The response and its seven loose forms."""
    lines = said.split("\n")
    forms = (lines, lines[1:], lines[:-1], lines[1:-1])
    for form in forms:
        text = "\n".join(form).strip()
        yield text
        yield text.replace("*", "")
