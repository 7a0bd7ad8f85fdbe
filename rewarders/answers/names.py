"""Names with a meaning: functions and their spellings, constants, symbols."""

from __future__ import annotations

_SPELLINGS = {
    "sin": "sin", "cos": "cos", "tan": "tan tg", "cot": "cot ctg", "sec": "sec", "csc": "csc cosec", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "arcsin": "arcsin asin", "arccos": "arccos acos", "arctan": "arctan atan arctg", "arccot": "arccot", "arcsinh": "arcsinh asinh",
    "arccosh": "arccosh acosh", "arctanh": "arctanh atanh", "ln": "ln", "log": "log", "lg": "lg", "exp": "exp", "abs": "abs", "floor": "floor",
    "ceil": "ceil", "max": "max", "min": "min", "gcd": "gcd", "lcm": "lcm", "root": "sqrt", "cbrt": "cbrt", "Re": "Re", "Im": "Im",
}  # fmt: skip
FUNCTIONS = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}
"""Spelling (without the backslash) -> function. ``operands`` parses ``\\sqrt``; plain ``sqrt(...)`` calls ``root``."""

CONSTANTS = {"pi", "e", "i", "infty"}
SYMBOLS = {
    **{name: name for name in ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "pi", "infty", "Reals", "hbar", "imath", "jmath"]},
    "infinity": "infty", "inf": "infty", "oo": "infty",
}  # fmt: skip


def plain(text: str) -> str:
    return text.lstrip("\\")
