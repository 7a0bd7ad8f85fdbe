"""Whether a reader sees anything: what looks empty is empty, whatever characters or markup it is made of. All in linear time."""

from __future__ import annotations

import html
import re
import unicodedata

BLANKS = frozenset("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\ufffc\ufffd~")
"""Letters and signs by their category that show nothing; in LaTeX ``~`` is a space."""
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,20}\s{0,8}/?>")
_SPACING = re.compile(
    r"\\(?:[,;:!> ]|(?:q?quad|hfill|thinspace|displaystyle|textstyle|limits|relax|null|empty|left|right)(?![A-Za-z])"
    r"|[hv]space\*?\{[^{}]{0,99}\}|[hv]?phantom\{[^{}]{0,999}\}"
    r"|(?:text|textbf|textit|textrm|mbox|hbox|mathrm|mathbf|mathit|operatorname)(?=\s{0,9}\{))"
)
_ENTITY = re.compile(r"&#?\w{1,12};")


def bare(text: str) -> str:
    """``text`` without comments, tags and spacing commands, and with its character references read."""
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return _SPACING.sub(" ", _TAG.sub(" ", _COMMENT.sub(" ", text)))


def has_words(text: str) -> bool:
    """Whether ``text`` shows a letter or a digit."""
    return _shows(text, "LN")


def has_content(text: str) -> bool:
    """Whether ``text`` shows a letter, a digit or a symbol: an answer may be ``+`` or an empty set, but no punctuation alone."""
    return _shows(text, "LNS")


def _shows(text: str, categories: str) -> bool:
    return any(c not in BLANKS and unicodedata.category(c)[0] in categories for c in bare(text))
