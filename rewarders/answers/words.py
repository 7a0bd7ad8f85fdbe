"""Answers in words. They are compared as text, never as products of symbols, where anagrams would be equal."""

from __future__ import annotations

import re

WORDS = re.compile(r"[^\W\d_]+(?:[ '’/,.-]+[^\W\d_]+)*[.!]?")
CHOICE = re.compile(r"\(?\s*([A-Za-z])\s*[).:]?")
LETTERS = frozenset("ABCDEFGHIJ")
SHORT = frozenset(
    [
        "no",
        "on",
        "so",
        "is",
        "it",
        "to",
        "of",
        "or",
        "an",
        "at",
        "be",
        "by",
        "do",
        "go",
        "he",
        "if",
        "in",
        "me",
        "my",
        "up",
        "us",
        "we",
        "ok",
        "hi",
        "am",
        "as",
        "oh",
    ]
)
MATHS = frozenset(
    [
        "pi",
        "inf",
        "infinity",
        "infty",
        "oo",
        "sin",
        "cos",
        "tan",
        "log",
        "ln",
        "exp",
        "sqrt",
        "theta",
        "alpha",
        "beta",
        "gamma",
        "lambda",
        "phi",
        "sigma",
        "omega",
        "mu",
    ]
)
TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mbox|hbox|textnormal|mathbf)\s*\{([^{}]*)\}")
SAME = {
    "no solution": "∅", "no solutions": "∅", "no real solution": "∅", "no real solutions": "∅", "none": "∅", "empty set": "∅", "the empty set": "∅",
    "\\emptyset": "∅", "\\{\\}": "∅", "\\{ \\}": "∅", "dne": "does not exist", "infinity": "\\infty", "true": "true", "t": "t", "infinitely many solutions": "infinitely many",
    "even function": "even", "odd function": "odd",
}  # fmt: skip
NUMBERS = {
    word: number for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"])
} | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90, "hundred": 100, "one hundred": 100, "half": "1/2", "one half": "1/2",
     "one-half": "1/2", "one third": "1/3", "one-third": "1/3", "one quarter": "1/4", "one-quarter": "1/4", "two thirds": "2/3", "two-thirds": "2/3", "three quarters": "3/4"}  # fmt: skip
DOTS = re.compile(r"\.\.\.|\\[lcvd]?dots|…")
GAP = re.compile(r"(?<=\d)[\s{}$]+(?=\d)|([\s{}$]+)")
BLANKS = re.compile(r"(?<=\d)\s+(?=\d)|(\s+)")
ARTICLE = re.compile(r"^(?:the|an?) ")


def is_words(text: str) -> bool:
    """Whether a normalised text is words: three letters or more, or a SHORT word; ``ab`` is a product, ``x`` a name."""
    if not WORDS.fullmatch(text):
        return False
    letters = text.rstrip(".!")
    if all(len(part) == 1 for part in re.split(r"[ '’/,.-]+", letters)):
        return False
    return letters.casefold() not in MATHS and (len(letters) > 2 or letters.casefold() in SHORT)


def without_wrappers(text: str) -> str:
    r"""The text with each ``\text{...}`` and the like replaced by its content."""
    return " ".join(TEXT.sub(r" \1 ", text).split())


def folded(text: str) -> str:
    """The words in one spelling: case, stops at the ends, a leading article and hyphens do not matter."""
    plain = without_wrappers(text).casefold().strip(" .!\"'")
    plain = ARTICLE.sub("", plain)
    plain = re.sub(r"(?<=\d)\s?([ap])\.?\s?m\b", r" \1m", plain)
    return SAME.get(plain, " ".join(plain.replace("-", " ").split()))


def number_in_words(text: str) -> str | None:
    """``twelve``, ``twenty-one`` or ``one half`` in digits; None for anything else."""
    plain = text.casefold().strip(" .")
    if plain in NUMBERS:
        return str(NUMBERS[plain])
    tens, _, ones = plain.replace(" ", "-").partition("-")
    a, b = NUMBERS.get(tens), NUMBERS.get(ones)
    return (
        str(a + b)
        if isinstance(a, int) and isinstance(b, int) and a % 10 == 0 and 20 <= a < 100 and 0 < b < 10
        else None
    )


def choice(text: str) -> str | None:
    """The letter of an option (``B``, ``(B)``, ``b.``), a capital if it is one of LETTERS; None for anything else."""
    found = CHOICE.fullmatch(text)
    if not found:
        return None
    letter = found.group(1)
    return letter.upper() if letter.upper() in LETTERS else letter


def close_up(text: str, gap: re.Pattern[str] = BLANKS) -> str:
    """A text without blanks, except that digits stay apart."""
    return gap.sub(lambda found: "" if found.group(1) else " ", text)


def loose(text: str) -> str:
    """A text closed up; if it has words, also without text commands, braces and dollars, in lower case."""
    if re.search(r"[A-Za-z]{3}", without_commands(text)):
        return close_up(without_wrappers(text), GAP).casefold()
    return close_up(text)


def without_commands(text: str) -> str:
    return re.sub(r"\\(?!text|mathrm|mbox)[A-Za-z]+", " ", text)


def is_phrase(text: str) -> bool:
    """Whether the text contains words of a language, or an ellipsis."""
    return bool(DOTS.search(text)) or bool(
        re.search(r"(?<![\\A-Za-z])[A-Za-z]{3,}", without_commands(without_wrappers(text)))
    )
