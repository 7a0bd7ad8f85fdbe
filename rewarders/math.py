"""Rule reward for mathematics: is the final answer equal to the reference? Hardened over math-verify.

Linear scans find the answer; identical text, numbers, words and choice letters are decided without any parser; only what is
left goes to math-verify, in a process of its own under a deadline and a memory bound. A failure there is an error, not a 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

import msgpack

from broker.isolation import Failed, Isolated
from broker.messages import Trajectory
from rewarders.rewarder import Reward
from rewarders.text import after_thinking, answer_span, is_clean, last_box

MAX_DIGITS = 400
TRANSLATION = str.maketrans(
    {**{chr(0xFF10 + i): str(i) for i in range(10)}, "−": "-", "–": "-", "－": "-", "＋": "+", "．": ".", "，": ",", "（": "(",
     "）": ")", "％": "%", "\u200b": "", "\u200c": "", "\u200d": "", "\ufeff": "", "\u2060": "", "\xa0": " ", "×": "\\times ", "÷": "/"}
)  # fmt: skip
VULGAR = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5", "⅙": "1/6",
          "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8"}  # fmt: skip
NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+")
FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{([+-]?\d+)\}\{([+-]?\d+)\}|\\[dt]?frac(\d)(\d)|([+-]?\d+)/(\d+))")
MIXED = re.compile(r"([+-]?\d+) (\d+)/(\d+)")
WORD = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")
CHOICE = re.compile(r"\(?([A-Za-z])[).]?")
WRAPPERS = ("\\text", "\\textbf", "\\mathrm", "\\mathbf", "\\mbox", "\\textit")
FORBIDDEN = re.compile(
    r"!|\^\s*\{?[^{}^]*\^|\^\s*\{?\s*[+-]?\d{4,}|\d{400,}|\d[eE][+-]?\d{4,}"
    r"|\\int|\\sum|\\prod|\\lim|factorial|__|\bimport\b|lambda"
)
"""What no answer needs and a parser can choke on: factorials, power towers, huge exponents, integrals, code."""


@dataclass(frozen=True)
class MathAccuracy:
    """1 if the final answer equals ``sample.answer``, else 0; abstains without a reference.

    ``boxed``: only a ``\\boxed{}`` counts; otherwise the last line of an answer in tags does too. ``timeout`` and
    ``memory_mb`` bound the symbolic comparison. Raises ``Failed`` where that ends without a verdict.
    """

    boxed: bool = True
    timeout: float = 5.0
    memory_mb: int = 1024
    _symbolic: list[Isolated] = field(default_factory=list, init=False, repr=False, compare=False)

    def __call__(self, sample: Trajectory) -> Reward | None:
        if sample.answer is None:
            return None
        found = self.extract(sample.text)
        if found is None:
            return Reward(0.0, "no final answer")
        right = self.equal(found, sample.answer)
        return Reward(float(right), f"{found[:60]!r} {'is' if right else 'is not'} {sample.answer[:60]!r}")

    def extract(self, text: str) -> str | None:
        """The final answer of a response; None if it gives none, or more than one."""
        span = answer_span(after_thinking(text))
        if span is None:
            return None
        box = last_box(span)
        if box is not None or self.boxed or span.count("\n") > 3 or len(span) > 1024:
            return box
        return span.strip() or None

    def equal(self, found: str, reference: str) -> bool:
        """Whether two answers are the same. Raises Failed where no verdict can be had."""
        boxed = last_box(reference) if "\\boxed" in reference else None
        a, b = normal(found), normal(boxed if boxed is not None else reference)
        if not a or not is_clean(a):
            return False
        if a == b:
            return True
        left, right = number(a), number(b)
        if left is not None and right is not None:
            return left == right
        if WORD.fullmatch(b) or WORD.fullmatch(a):
            return same_words(a, b)
        if FORBIDDEN.search(a) or len(a) > 1024:
            return False
        return self._compare(a, b)

    def _compare(self, found: str, reference: str) -> bool:
        if not self._symbolic:
            self._symbolic.append(
                Isolated("rewarders.symbolic:factory", {}, timeout=self.timeout, memory_mb=self.memory_mb)
            )
        payload: bytes = msgpack.packb([found, reference])
        _, answer = next(iter(self._symbolic[0].call([payload])))
        if isinstance(answer, Failed):
            raise answer
        return bool(answer)


def normal(text: str) -> str:
    """The text without what does not change its meaning: widths, zero-width characters, dollar signs, text wrappers, spaces."""
    text = text.translate(TRANSLATION)
    for sign, plain in VULGAR.items():
        text = re.sub(rf"(\d){sign}", rf"\1 {plain}", text).replace(sign, plain)
    text = text.strip().strip("$").strip()
    for noise in ("\\left", "\\right", "\\!", "\\,", "\\;", "\\ ", "\\displaystyle", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(noise, "")
    for wrapper in WRAPPERS:
        if text.startswith(wrapper + "{") and text.endswith("}") and text.count("{") == 1:
            text = text[len(wrapper) + 1 : -1]
    return " ".join(text.rstrip(".").split())


def number(text: str) -> Fraction | None:
    """The exact value of a plain number: integer, decimal, fraction, mixed number, percentage; None for anything else."""
    text = text.replace(" ", "") if not MIXED.fullmatch(text) else text
    if len(text) > MAX_DIGITS:
        return None
    if text.endswith(("\\%", "%")):
        inner = number(text.rstrip("%").rstrip("\\"))
        return None if inner is None else inner / 100
    if NUMBER.fullmatch(text):
        return Fraction(text.replace(",", ""))
    mixed = MIXED.fullmatch(text)
    if mixed:
        whole, top, bottom = (int(g) for g in mixed.groups())
        return (
            None
            if bottom == 0
            else whole + (Fraction(top, bottom) if not text.startswith("-") else -Fraction(top, bottom))
        )
    fraction = FRACTION.fullmatch(text)
    if fraction:
        sign, *parts = fraction.groups()
        top, bottom = (int(p) for p in parts if p is not None)
        return None if bottom == 0 else Fraction(top, bottom) * (-1 if sign == "-" else 1)
    return None


def same_words(a: str, b: str) -> bool:
    """Words and choice letters are compared as text: as symbols, anagrams would be equal."""
    left, right = CHOICE.fullmatch(a), CHOICE.fullmatch(b)
    if left and right:
        return left.group(1).upper() == right.group(1).upper()
    return a.casefold() == b.casefold()
