"""Gives an answer one spelling: character widths, Unicode signs, LaTeX spacing and sizing, wrappers, digit groups.

Every pass takes linear time. The result has the same meaning, in the spelling that ``parse`` reads.
"""

from __future__ import annotations

import re
import unicodedata

INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\xad\u2061\u2062\u2063\u2064"))
GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "chi",
            "psi",
            "omega",
            "Gamma",
            "Delta",
            "Theta",
            "Lambda",
            "Xi",
            "Pi",
            "Sigma",
            "Phi",
            "Psi",
            "Omega",
        ],
        strict=True,
    )
)
SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "‒": "-", "×": "\\cdot ", "·": "\\cdot ", "∙": "\\cdot ", "⋅": "\\cdot ", "∗": "*", "÷": "/",
    "⁄": "/", "∕": "/", "≤": "\\le ", "≥": "\\ge ", "⩽": "\\le ", "⩾": "\\ge ", "≠": "\\ne ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ",
    "∖": "\\setminus ", "∈": "\\in ", "∅": "\\emptyset ", "°": "^\\circ ", "º": "^\\circ ", "′": "'", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}",
    "±": "\\pm ", "∓": "\\mp ", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "ϕ": "\\phi ", "ϵ": "\\epsilon ",
    "∑": "\\sum ", "∏": "\\prod ", "“": '"', "”": '"', "‘": "'", "’": "'", "∨": "\\lor ", "∧": "\\land ", "∶": ":", "≈": "\\approx ", "≡": "=", "⟨": "(", "⟩": ")", "∠": "", "µ": "\\mu ",
    **{sign: f"\\{name} " for sign, name in GREEK.items()},
}  # fmt: skip
TRANSLATION = str.maketrans(SIGNS) | INVISIBLE
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙₖₓ", "0123456789nkx")
SUPER = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
SUB = re.compile(r"[₀₁₂₃₄₅₆₇₈₉ₙₖₓ]+")
VULGAR = re.compile("[¼-¾⅐-⅞]")
ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z])")
ALIASES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "times": "cdot", "ast": "cdot", "cdotp": "cdot",
    "leq": "le", "leqslant": "le", "geq": "ge", "geqslant": "ge", "neq": "ne", "lt": "lt", "gt": "gt", "lbrace": "{", "rbrace": "}",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "varnothing": "emptyset", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta",
    "backslash": "setminus", "arcsin": "arcsin", "wedge": "land", "vee": "lor", "colon": ":", "langle": "(", "rangle": ")", "equiv": "=", "simeq": "approx", "angle": "", "triangle": "", "measuredangle": "", "lbrack": "[", "rbrack": "]",
    "lparen": "(", "rparen": ")", "degree": "circ", "to": "to", "rightarrow": "to", "R": "Reals", "reals": "Reals", "rm": "", "bf": "", "it": "",
}  # fmt: skip
PLAIN_ALIASES = {"", "=", "|", ":", "[", "]", "(", ")"}
DROPPED = {
    "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl", "Biggr", "middle", "displaystyle",
    "textstyle", "scriptstyle", "limits", "nolimits", "quad", "qquad", "enspace", "thinspace", "medspace", "thickspace", "nobreakspace", "rm",
    "bf", "it", "mathopen", "mathclose", "hfill", "null", "allowbreak", "large", "Large", "normalsize", "small",
}  # fmt: skip
COMMAND = re.compile(r"\\\\|\\([A-Za-z]+)|\\([,;:!> ])|~")
WHOLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|hbox|boldsymbol|bm|underline|boxed|fbox|emph|ensuremath)\s*\{"
)
COLOR = re.compile(r"\\(?:color|textcolor)\s*\{[A-Za-z]+\}|\\(?:hspace|vspace|label|tag)\*?\s*\{[^{}]*\}")
GROUPED = re.compile(
    r"(?<![\d.])\d{1,3}(?:(?:\{,\}|,\s?\\!|\{\\,\}|\\,|\\ |\\;|\\:|~| |\u202f|\u2009|\xa0)\d{3})+(?![\d/]|\s*\\frac)"
)
SIGN = re.compile(r"\\(?:text|mathrm|mbox)\s*\{\s*([:,;<>=+/-])\s*\}")
STOP = re.compile(r"(?<![\\.])[.,;]$")
BOARD = re.compile(r"\\mathbb\s*([A-Z])(?![A-Za-z])")
SEPARATOR = re.compile(r"\D+")
CONJUNCTION = re.compile(
    r"\\(?:text|mathrm|mbox|textrm)\s*\{\s*,?\s*(or|and)\s*\}|(?<=[\s\d})\]])\s*\b(or|and)\b\s*(?=[\s\d\\{(\[A-Za-z-])"
)
MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def normal(text: str) -> str:
    """The normalised text. Each run of blanks becomes one."""
    text = unwrapped(unicode_plain(text))
    text = GROUPED.sub(lambda m: SEPARATOR.sub("", m.group()), text)
    text = SIGN.sub(r"\1", COLOR.sub("", text))
    text = CONJUNCTION.sub(lambda m: f" \\{'lor' if 'or' in (m.group(1), m.group(2)) else 'land'} ", text)
    text = BOARD.sub(r"\\mathbb{\1}", COMMAND.sub(_command, text))
    text = " ".join(text.split())
    return _ends(text)


def unicode_plain(text: str) -> str:
    """The text with Unicode signs replaced by ASCII and LaTeX."""
    if text.isascii():
        return text
    text = VULGAR.sub(_vulgar, text)
    text = SUPER.sub(lambda m: "^{" + m.group().translate(RAISED) + "}", text)
    text = SUB.sub(lambda m: "_{" + m.group().translate(LOWERED) + "}", text)
    text = ROOT.sub(r"\\sqrt{\1}", text).replace("√", "\\sqrt ").replace("∛", "\\sqrt[3]")
    return unicodedata.normalize("NFKC", text.translate(TRANSLATION)).translate(TRANSLATION)


def _vulgar(match: re.Match[str]) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", match.group()).partition("⁄")
    return f"\\frac{{{top}}}{{{bottom}}}"


def unwrapped(text: str) -> str:
    """The text without the dollar signs, maths delimiters, Markdown and LaTeX commands that enclose the whole of it."""
    text = text.strip()
    for _ in range(8):
        before = text
        text = STOP.sub("", text.strip()).strip()
        for start, end in (
            ("$$", "$$"),
            ("$", "$"),
            ("\\(", "\\)"),
            ("\\[", "\\]"),
            ("**", "**"),
            ("`", "`"),
            ('"', '"'),
        ):
            if (
                len(text) > len(start + end)
                and text.startswith(start)
                and text.endswith(end)
                and start not in text[len(start) : -len(end)]
            ):
                text = text[len(start) : -len(end)].strip()
        wrapper = WHOLE.match(text)
        if wrapper and text.endswith("}") and _closes_at_end(text, wrapper.end() - 1):
            text = text[wrapper.end() : -1].strip()
        if text == before:
            break
    return text


def _closes_at_end(text: str, at: int) -> bool:
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return place == len(text) - 1
    return False


def _command(match: re.Match[str]) -> str:
    name = match.group(1)
    if match.group() == "\\\\":
        return "\\\\"
    if name is None or name in DROPPED:
        return " "
    alias = ALIASES.get(name, name)
    return alias if alias in PLAIN_ALIASES else f"\\{alias}"


def _ends(text: str) -> str:
    r"""The text without a final stop or line break, currency signs at its ends, a leading ``\approx`` or lone ``=``."""
    for _ in range(4):
        before = text
        text = STOP.sub("", text.strip()).removesuffix("\\\\").strip()
        for sign in ("\\$", "$", "€", "£", "\\approx", "="):
            text = text.removeprefix(sign).strip() if sign != "=" or (text.count("=") == 1 and len(text) > 1) else text
        text = text.removesuffix("\\$").removesuffix("€").strip()
        if text == before:
            break
    return text
