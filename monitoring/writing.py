"""How a response is written: the reflective words of DeepSeek-R1 (arXiv 2501.12948), its words by script, and what of it is prose.

All of it takes linear time. What is counted for the report is looked at up to ``CHARACTERS``. Scripts that put no space between words
count each character as a word.
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
    r"https?://\S+|</?[A-Za-z][A-Za-z0-9]{0,20}\s*/?>|\\[A-Za-z]{1,40}"  # addresses, tags, commands outside of formulas
    r"|(?<!\w)(?:[\w.-]{1,80}[/\\]){2,20}[\w.-]{0,80}"  # paths of files
)


def reflective_words(text: str) -> set[str]:
    """Which of ``WORDS`` stand in ``text``, whatever their case."""
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
    """What ``text`` consists of, in order and in lower case: words of any script, numbers, single other signs."""
    return [found[0].lower() for found in _TERM.finditer(text)]


def repeated_ngrams(text: str, n: int) -> tuple[int, int]:
    """How many n-grams of the terms of ``text`` equal an earlier one, and how many there are. Linear in the text's length (times ``n``).

    A run of letters is cut every ``PIECE``, so that a word without an end repeats itself too.
    """
    pieces = [term[i : i + PIECE] for term in terms(text) for i in range(0, len(term), PIECE)]
    total = max(0, len(pieces) - n + 1)
    return total - len({tuple(pieces[i : i + n]) for i in range(total)}), total


def prose(text: str) -> str:
    """``text`` without code, formulas, tags and addresses; words inside of a formula's ``\\text{}`` stay.

    A block of code that is not closed ends with the text; a formula that is not closed is none.
    """
    text = _CODE.sub(" ", _without(text, FENCES, lambda code: " ", lambda rest: ""))
    text = _ENVIRONMENT.sub(lambda found: "\\[" if found[1] == "begin" else "\\]", text)
    text = _without(text, FORMULAS, _spoken, lambda rest: None)
    text = _INLINE.sub(lambda found: _spoken(found[1]), text)
    return _NOISE.sub(" ", _SPOKEN.sub(r" \1 ", text))


def _spoken(formula: str) -> str:
    """The words that a formula says in plain text."""
    return f" {' '.join(_SPOKEN.findall(formula))} "


def _without(
    text: str, pairs: Mapping[str, str], put: Callable[[str], str], unclosed: Callable[[str], str | None]
) -> str:
    """``text`` with each stretch between two marks replaced by ``put(stretch)``; the mark that comes first opens.

    Where a mark is not closed, ``unclosed(rest)`` takes the place of all that follows, or with None the mark means nothing.
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
        else:  # none of its kind is closed from here on: each kind is looked for in vain once
            del alive[found[0]]
    return "".join(out) + text[at:]


def foreign_share(text: str) -> float:
    """The share of the words of ``text`` that are of another script than most of them, in [0, 1]: 0 for one script alone, and without words.
    Code, formulas, tags and single Latin or Greek letters, which stand for numbers, do not count. Kana and Han are one script."""
    found = Counter(
        "Han" if script == "Kana" else script
        for script, word in script_words(prose(text[:CHARACTERS]))
        if not (len(word) == 1 and script in ("Latin", "Greek"))
    )
    return 1 - max(found.values()) / found.total() if found else 0.0
