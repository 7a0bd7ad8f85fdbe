"""Compares answers symbolically with math-verify, where ``parse`` cannot. Runs only in a process of its own."""

from __future__ import annotations

import cmath
import logging
import re
from collections.abc import Callable
from typing import Any

RELATIVE = 1e-8
BASE = re.compile(r"\d\s*\)?\s*_\s*\{?\s*(\w+)")


def factory() -> Callable[[dict[str, Any]], bool]:
    """The handler of requests ``{"answer", "reference"}``: whether the two are equal; without an answer, whether the
    reference can be read.

    math-verify's own time-outs are off, because the process has a deadline.
    """
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that its time-outs are off
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    extraction = [LatexExtractionConfig(normalization_config=normalization)]

    def read(text: str) -> list[Any]:
        found = parse(
            f"${text}$",
            extraction_config=extraction,
            fallback_mode="no_fallback",
            parsing_timeout=0,
            raise_on_error=False,
        )
        return [tree for tree in found if not isinstance(tree, str)]

    def judge(request: dict[str, Any]) -> bool:
        answer, reference = request.get("answer"), request["reference"]
        right = read(reference)
        if answer is None or not right:
            return bool(right)
        if answer.count("=") > reference.count("=") + 1:  # 1=2=3=4 would contain every answer
            return False
        if collection(answer) != collection(reference) or subscripted(answer) != subscripted(reference):
            return False
        left = read(answer)
        if not left:
            return False
        same = verify(
            right, left, strict=True, float_rounding=12, numeric_precision=30, timeout_seconds=0, raise_on_error=False
        )
        return bool(same) or close(left[0], right[0])

    judge(
        {"answer": "\\frac{x^2-1}{x-1}", "reference": "x+1"}
    )  # so that what the first comparison loads is loaded before the fork
    return judge


def collection(text: str) -> tuple[int, str]:
    """The number of commas at the top level, and the brackets around them: [5,5] is not 5, (1,2] is not [1,2)."""
    depth = commas = 0
    for c in text:
        depth += c in "([{"
        depth -= c in ")]}"
        commas += c == "," and depth <= 1
    ends = (text[:1] + text[-1:]) if commas and text[:1] in "([" else ""
    return commas, ends


def subscripted(text: str) -> list[str]:
    """The bases of the numbers in the text: 10_2 is not 10."""
    return BASE.findall(text)


def close(left: Any, right: Any) -> bool:
    """Whether two numbers, not both integers, differ only by rounding: by at most RELATIVE of the larger."""
    try:
        a, b = complex(left.evalf(30)), complex(right.evalf(30))
    except (TypeError, ValueError, AttributeError):
        return False
    if not (cmath.isfinite(a) and cmath.isfinite(b)):  # relative to infinity, any difference would be small enough
        return False
    return abs(a - b) <= RELATIVE * max(abs(a), abs(b)) and not (left.is_Integer and right.is_Integer)
