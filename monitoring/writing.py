"""Measures how a response is written: reflective words as in DeepSeek-R1 (arXiv 2501.12948), words by script,
repetition, prose.

Everything takes linear time. Counts for the report look only at the first ``CHARACTERS``. In scripts without spaces
between words, each character counts as a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping

WORDS = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
CHARACTERS = 20_000
PIECE = 8
SCRIPTS = {
    "Latin": "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u1e00-\u1eff]+",
    "Han": "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]",
    "Kana": "[\u3041-\u3096\u30a1-\u30fa]",
    "Hangul": "[\u1100-\u11ff\uac00-\ud7a3]+",
    "Cyrillic": "[\u0400-\u052f]+",
    "Arabic": "[\u0620-\u064a\u0671-\u06d3\u06fa-\u06ff]+",
    "Devanagari": "[\u0900-\u0963]+",
    "Hebrew": "[\u05d0-\u05ea]+",
    "Greek": "[\u0370-\u03ff\u1f00-\u1fff]+",
    "Thai": "[\u0e01-\u0e3a\u0e40-\u0e4e]",
    "other": r"[^\W\d_]",
}
_REFLECTIVE = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
_SCRIPT = re.compile("|".join(f"(?P<{name}>{letters})" for name, letters in SCRIPTS.items()))
_TERM = re.compile("|".join(SCRIPTS.values()) + r"|\d+|[^\w\s]")
FENCES = {"```": "```", "~~~": "~~~"}
FORMULAS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_ENVIRONMENT = re.compile(
    r"\\(begin|end)\{(?:equation|align|aligned|alignat|gather|gathered|multline|split|cases|array|[bpvBV]?matrix)\*?\}"
)
_SPOKEN = re.compile(r"\\(?:text|textbf|textit|mbox|mathrm)\s*\{([^{}]{0,2000})\}")
_INLINE = re.compile(r"\$([^$\n]{1,300})\$")
_CODE = re.compile(r"`[^`\n]{1,300}`")
_NOISE = re.compile(
    r"https?://\S+|</?[A-Za-z][A-Za-z0-9]{0,20}\s*/?>|\\[A-Za-z]{1,40}"  # URLs, tags, commands outside formulas
    r"|(?<!\w)(?:[\w.-]{1,80}[/\\]){2,20}[\w.-]{0,80}"  # file paths
)


def reflective_words(text: str) -> set[str]:
    """Which of ``WORDS`` occur in ``text``, ignoring case."""
    return set(reflective_counts(text))


def reflective_counts(text: str) -> Counter[str]:
    """How often each of ``WORDS`` occurs in ``text``, ignoring case (the count of R1's figure 9)."""
    return Counter(word.lower() for word in _REFLECTIVE.findall(text[:CHARACTERS]))


def scripts(text: str) -> Counter[str]:
    """The number of words of each script."""
    return Counter(script for script, _ in script_words(text[:CHARACTERS]))


def script_words(text: str) -> list[tuple[str, str]]:
    """All words of ``text`` in order, each with its script."""
    return [(found.lastgroup or "", found[0]) for found in _SCRIPT.finditer(text)]


def terms(text: str) -> list[str]:
    """The parts of ``text`` in order and in lower case: words of any script, numbers, and single other characters."""
    return [found[0].lower() for found in _TERM.finditer(text)]


def repeated_ngrams(text: str, n: int) -> tuple[int, int]:
    """The number of ``n``-grams of terms in ``text`` that equal an earlier one, and the number of all. Takes O(``n`` *
    length of the text).

    Terms are cut into pieces of ``PIECE`` characters, so that repetition within one very long word counts too.
    """
    pieces = [term[i : i + PIECE] for term in terms(text) for i in range(0, len(term), PIECE)]
    total = max(0, len(pieces) - n + 1)
    return total - len({tuple(pieces[i : i + n]) for i in range(total)}), total


def prose(text: str) -> str:
    """``text`` without code, formulas, tags, URLs and paths; words in a formula's ``\\text{}`` are kept.

    An unclosed code block extends to the end of the text; an unclosed formula mark is ignored.
    """
    text = _CODE.sub(" ", _without(text, FENCES, lambda code: " ", lambda rest: ""))
    text = _ENVIRONMENT.sub(lambda found: "\\[" if found[1] == "begin" else "\\]", text)
    text = _without(text, FORMULAS, _spoken, lambda rest: None)
    text = _INLINE.sub(lambda found: _spoken(found[1]), text)
    return _NOISE.sub(" ", _SPOKEN.sub(r" \1 ", text))


def _spoken(formula: str) -> str:
    """The plain words of a formula: the contents of its ``\\text{}`` and similar commands."""
    return f" {' '.join(_SPOKEN.findall(formula))} "


def _without(
    text: str, pairs: Mapping[str, str], put: Callable[[str], str], unclosed: Callable[[str], str | None]
) -> str:
    """``text`` with each part between an opening and its closing mark (``pairs``) replaced by ``put(part)``.

    After an unclosed mark, the rest of the text is replaced by ``unclosed(rest)``; if that is None, the mark is
    ignored.
    """
    alive = dict(pairs)
    out: list[str] = []
    at = 0
    while alive and (found := re.compile("|".join(map(re.escape, alive))).search(text, at)) is not None:
        begin, closing = found.end(), alive[found[0]]
        end = text.find(closing, begin)
        if end >= 0:
            out += [text[at : found.start()], put(text[begin:end])]
            at = end + len(closing)
        elif (rest := unclosed(text[begin:])) is not None:
            return "".join([*out, text[at : found.start()], rest])
        else:  # no later mark of this kind is closed either, so search for each kind in vain only once
            del alive[found[0]]
    return "".join(out) + text[at:]


def foreign_share(text: str) -> float:
    """The share of the words of ``text``, in [0, 1], that are not in its most frequent script; 0 without words.

    Looks at the first ``CHARACTERS``. Code, formulas, tags and single Latin or Greek letters, which often are
    variables, do not count. Kana and Han are one script.
    """
    found = Counter(
        "Han" if script == "Kana" else script
        for script, word in script_words(prose(text[:CHARACTERS]))
        if not (len(word) == 1 and script in ("Latin", "Greek"))
    )
    return 1 - max(found.values()) / found.total() if found else 0.0
