"""Rule reward for mathematics: is the final answer equal to the reference?

Linear scans find the answer. Text, numbers, words, and a reader of LaTeX whose cost is bounded beforehand decide nearly all; what it does not
know goes to math-verify in a warm process that the kernel stops. What the *answer* does to a judge makes it wrong, with the cause
(``timeout``, ``killed``); what befalls the judge itself is raised.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from broker.errors import RunFileError
from broker.faults import Failed
from broker.messages import Trajectory
from rewarders.answers.compare import PERCENT, Rules
from rewarders.answers.judge import judge
from rewarders.answers.numbers import number
from rewarders.answers.readings import MAX_REFERENCE, Answer, UnreadableReference, canonical_text, read, read_reference
from rewarders.answers.scalars import RELATIVE
from rewarders.answers.surface import INVISIBLE, normal
from rewarders.answers.warm import Ended, Warm
from rewarders.answers.words import is_phrase
from rewarders.rewarder import Reward
from rewarders.text import final_answers, is_clean

BOXES = ("agree", "last", "first")
UNITS = ("optional", "required", "none")
MAX_PLAIN = 1024
MAX_KNOWN = 4096


@dataclass(frozen=True)
class MathAccuracy:
    r"""1 if the final answer equals ``sample.answer`` or another of ``sample.metadata["answers"]``, else 0; abstains without a reference.

    ``boxed``: only a ``\boxed{}`` counts; otherwise a short text in answer tags, behind ``####``, or the whole short response does too.
    ``boxes``: several that differ are no answer (``agree``), unless together they are the list that the reference is; or the ``last``, the
    ``first`` counts. ``percent``: 50% is 0.5, and 50 where the reference has the percent sign (``value``), or 50 always (``either``).
    ``units``: may be left out but not be others (``optional``), must be there where the reference has them (``required``), or are not read
    (``none``). ``tolerance``: how far a decimal may be from an irrational value, relative. ``cpu_seconds`` and
    ``memory_mb`` bound the symbolic comparison: what exceeds them is wrong. ``timeout`` (of the clock) is for a machine that is too busy, which
    raises Failed. Raises UnreadableReference, and HeadraceError where the judge fails.
    """

    bounded: ClassVar[bool] = True
    boxed: bool = True
    boxes: str = "agree"
    percent: str = "value"
    units: str = "optional"
    tolerance: float = RELATIVE
    timeout: float = 1.8
    cpu_seconds: float = 0.3
    memory_mb: int = 1024
    _known: dict[str, bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _symbolic: list[Warm] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, allowed in (("boxes", BOXES), ("percent", PERCENT), ("units", UNITS)):
            if getattr(self, name) not in allowed:
                raise RunFileError(f"{name} = {getattr(self, name)!r} must be one of {', '.join(map(repr, allowed))}")

    def warm_up(self) -> None:
        """Start the symbolic comparison before the first sample needs it."""
        self._warm().start()

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.answer is None:
            return None
        first = self._against(sample, sample.answer)
        if first.value != 1.0:
            others = sample.metadata.get("answers", ())
            for other in others[1:] if isinstance(others, list) else ():
                if (verdict := self._against(sample, str(other))).value == 1.0:
                    return verdict
        return first

    def _against(self, sample: Trajectory, answer: str) -> Reward:
        reference = self.reference(answer)
        found = final_answers(sample.text, self.boxed, self.boxes == "agree")
        if not found:
            return Reward(0.0, "no final answer")
        answers = [self._read(text) for text in found]
        if len({canonical_text(a) for a in answers}) > 1 and self.boxes == "agree":
            together = self._read(", ".join(found))
            if self._verdict(together, reference).value != 1.0 or len(found) < 2:
                return Reward(0.0, f"{len(found)} boxes that differ: {', '.join(found)[:60]!r}")
            return Reward(1.0, f"{', '.join(found)[:60]!r} together are {answer[:60]!r}", canonical_text(reference))
        return self._verdict(answers[0 if self.boxes == "first" else -1], reference)

    def extract(self, text: str) -> str | None:
        """The final answer of a response; None if it gives none, or several that differ."""
        found = final_answers(text, self.boxed, self.boxes == "agree")
        if not found or (self.boxes == "agree" and len({canonical_text(self._read(f)) for f in found}) > 1):
            return None
        return found[0 if self.boxes == "first" else -1]

    def equal(self, found: str, reference: str) -> bool:
        """Whether two answers are the same. Raises UnreadableReference, and HeadraceError where the judge fails."""
        return self._verdict(self._read(found), self.reference(reference)).value == 1.0

    def reference(self, text: str) -> Answer:
        """The reference as it is read. Raises UnreadableReference, which names it."""
        answer = (
            read_reference(text.translate(INVISIBLE), self.units != "none")
            if len(text) <= MAX_REFERENCE
            else Answer("")
        )
        legible = answer.text and is_clean(text.translate(INVISIBLE))
        if legible and (answer.readable or is_phrase(answer.text) or self._knows(answer)):
            return answer
        raise UnreadableReference(
            f"the reference {text[:200]!r} cannot be read ({answer.fault or 'empty'}); correct the data set's answer"
        )

    def _knows(self, reference: Answer) -> bool:
        """Whether the symbolic comparison can read what is not understood here; asked once for each reference."""
        if reference.text not in self._known:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            try:
                self._known[reference.text] = bool(self._warm().ask({"reference": reference.text}))
            except Ended as ended:
                why = f"whether the reference {reference.text[:200]!r} can be read is not known: {ended}"
                raise Failed("error", why) from ended
        return self._known[reference.text]

    def _read(self, text: str) -> Answer:
        text = text.translate(INVISIBLE)
        if len(text) > MAX_PLAIN or not is_clean(text):
            return Answer("", fault="too long" if len(text) > MAX_PLAIN else "control characters")
        return read(text, self.units != "none")

    def _verdict(self, answer: Answer, reference: Answer) -> Reward:
        finding = judge(answer, reference, Rules(self.percent, self.tolerance), self.units)
        cause, why, right = "", finding.why, finding.right
        if right is None:
            try:
                right = bool(self._warm().ask({"answer": answer.text, "reference": reference.text}))
            except Ended as ended:
                if ended.by_machine:  # a kind that is not tried again, and never becomes a wrong answer
                    raise Failed("error", f"the machine is too busy to compare answers: {ended}") from ended
                right, cause, why = False, ended.cause, str(ended)
        told = f"{answer.text[:60]!r} {'is' if right else 'is not'} {reference.text[:60]!r}{': ' + why if why else ''}"
        return Reward(float(right), told, canonical_text(reference if right else answer), cause)

    def _warm(self) -> Warm:
        if not self._symbolic:
            self._symbolic.append(
                Warm(
                    "rewarders.answers.symbolic:factory",
                    cpu_seconds=self.cpu_seconds,
                    timeout=self.timeout,
                    memory_mb=self.memory_mb,
                )
            )
        return self._symbolic[0]


__all__ = ["MathAccuracy", "UnreadableReference", "normal", "number"]
