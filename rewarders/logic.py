"""The scorers of reasoning-gym's tasks, guarded: runs in a process of its own only (``rewarders.answers.zygote``).

Some scorers evaluate the answer as Python (``eval``, sympy's ``parse_expr``): they only get texts that cannot do
anything but compute. Some raise on odd answers, and one accepts any text as an answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

Scorer = Callable[[str, dict[str, Any]], float]
FORMULA = re.compile(
    r"(?:[\d\s+\-*/^(),]|\.(?![A-Za-z_])|\b[A-Za-z]\b|\b(?:sin|cos|tan|sec|csc|cot|sinh|cosh|tanh|asin|acos|atan|exp|log|ln|sqrt|Abs|abs|pi)\b)*"
)
LITERAL = re.compile(r"(?:(?!__)[\w\s\[\],'\"+\-]|\.(?![A-Za-z_]))*")
EVALUATED = {
    **dict.fromkeys(("simple_integration", "intermediate_integration", "polynomial_multiplication", "countdown", "puzzle24"), FORMULA),
    **dict.fromkeys(("string_insertion", "spiral_matrix", "binary_matrix", "n_queens"), LITERAL),
}  # fmt: skip
"""Tasks whose scorers run the answer, and what an answer may be made of: no calls by name but of mathematics, no attributes, no strings to run."""
BOMB = re.compile(r"(?:\*\*|\^)\s*\(?\s*[-+]?\d{4,}|(?:\*\*|\^)\s*\(*\s*[\w.]{1,40}\s*(?:\*\*|\^)|\d{400,}")
"""Power towers and huge exponents, in what would be evaluated."""
NUMERIC = re.compile(r"[\d\s.+\-*/ijeE()]+")
NO_NUMBER = re.compile(r"(?<![A-Za-z])(?:nan|inf|infinity)(?![A-Za-hk-z])", re.IGNORECASE)
"""Some scorers find NaN as near to the answer as can be."""
TRUTH = ("game_of_life_halting",)
"""Tasks whose scorer takes every text but the empty one for True."""


def factory() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The handler: ``{"load": task}`` makes a scorer ready; ``{"task", "answer", "entry", "tuples"}`` -> ``{"score"}``, ``{"refused"}``, ``{"broken"}``."""
    import reasoning_gym

    scorers: dict[str, Scorer] = {}

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("load") or request["task"]
        if name not in scorers:
            scorers[name] = reasoning_gym.get_score_answer_fn(name)
        if "load" in request:
            return {}
        return scored(name, scorers[name], request["answer"], with_tuples(request["entry"], request["tuples"]))

    return handle


def scored(name: str, scorer: Scorer, answer: str, entry: dict[str, Any]) -> dict[str, Any]:
    """``score``; ``refused`` (with the reason) if the answer is unsafe or makes the scorer fail; ``broken`` if the
    scorer fails on the entry's own answer, too.
    """
    allowed = EVALUATED.get(name)
    if allowed is not None and not allowed.fullmatch(answer):
        return {"refused": "the scorer would run it as code"}
    if allowed is FORMULA and BOMB.search(answer):
        return {"refused": "it is too large to evaluate"}
    if NO_NUMBER.search(answer) and NUMERIC.fullmatch(str(entry.get("answer"))):
        return {"refused": "it is no number"}
    if name in TRUTH:
        return {"score": float(answer.strip().casefold() == str(entry["answer"]).casefold())}
    try:
        return {"score": bounded(scorer(answer, entry))}
    except MemoryError:
        raise
    except Exception as error:  # code of another project, which may raise anything
        told = f"{type(error).__name__}: {error}"[:200]
    try:
        own = entry["answer"]
        bounded(scorer(own if own is None else str(own), entry))  # type: ignore[arg-type]
    except MemoryError:
        raise
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"[:200]}
    return {"refused": told}


def bounded(score: Any) -> float:
    """The score clipped to [0, 1]. Raises ValueError if it is not a number."""
    value = float(score)
    if not math.isfinite(value):
        raise ValueError(f"the score is {value}")
    return min(1.0, max(0.0, value))


def with_tuples(entry: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """The entry as its task made it: lists under ``keys`` of its metadata, which JSON made of tuples, become tuples
    again.
    """
    again = {key: _tuples(entry["metadata"][key]) for key in keys}
    return {**entry, "metadata": {**entry["metadata"], **again}} if again else entry


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value
