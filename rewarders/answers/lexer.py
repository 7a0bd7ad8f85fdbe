"""Splits a mathematical text into tokens: numbers, names, commands, signs. Linear time, at most ``MAX_TOKENS``."""

from __future__ import annotations

import re
from typing import NamedTuple

from broker.errors import HeadraceError

MAX_TOKENS = 700
NAMES = ["arcsinh", "arccosh", "arctanh", "arcsin", "arccos", "arctan", "asin", "acos", "atan", "sqrt", "cbrt", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "lg", "exp", "abs", "floor", "ceil", "max", "min", "gcd", "lcm", "infinity", "infty", "inf", "oo", "pi", "theta", "alpha", "beta", "gamma", "lambda", "sigma", "omega", "phi", "mu"]  # fmt: skip
TOKEN = re.compile(
    r"(?P<blank>\s+)"
    r"|(?P<begin>\\begin\s*\{(?:[a-zA-Z]+\*?)\}(?:\s*\{[lcr|\s]*\})?)|(?P<end>\\end\s*\{(?:[a-zA-Z]+\*?)\})"
    r"|(?P<word>\\(?:text|textbf|textit|textrm|mathrm|mbox|hbox|textnormal|operatorname\*?|mathbf|mathbb|mathcal|vec|hat|overline|bar|boldsymbol|bm|dot)\s*\{[^{}]*\})"
    r"|(?P<repeat>(?:\d+\.\d*|\.)\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d)|\d+\.\d*\(\d+\)(?!\d)|\d*\.\d*(?P<again>\d)(?P=again)(?P=again)\s?(?:\.\.\.|\\ldots|\\dots|\\cdots|…))"
    r"|(?P<num>\d+(?:\.\d*)?(?:[eE][+-]?\d+(?![\d.^]))?|\.\d+(?:[eE][+-]?\d+(?![\d.^]))?)"
    r"|(?P<cmd>\\[A-Za-z]+|\\\\|\\[{}%$|&#_])"
    r"|(?P<name>(?:" + "|".join(NAMES) + r")(?![a-zA-Z])|[A-Za-z])"
    r"|(?P<op>\*\*|<=|>=|!=|==|[-+*/^_=<>(){}\[\],;:|!'&%])"
)  # fmt: skip


class Unreadable(HeadraceError):
    """The text is not mathematics that this parser understands."""


class Token(NamedTuple):
    kind: str
    text: str
    blank: bool
    """Whether a blank precedes it."""


def tokens(text: str) -> list[Token]:
    """The tokens of ``text``. Raises Unreadable for an unknown sign or too long a text."""
    found: list[Token] = []
    at, blank = 0, False
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None or len(found) >= MAX_TOKENS:
            raise Unreadable(f"{text[at : at + 20]!r} is not understood" if match is None else "too long")
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "blank":
            blank = True
            continue
        found.append(Token(kind, match.group(), blank))
        blank = False
    return found
