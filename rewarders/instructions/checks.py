"""What each of IFEval's 25 instructions asks for (arXiv 2311.07911, table 1): a function of the response and of the instruction's arguments.

All take linear time. Words are runs of letters and digits; sentences end with ``.``, ``!`` or ``?`` before a
blank, or with a full stop of Chinese; initials and common abbreviations end none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from rewarders.instructions.given import Given
from rewarders.instructions.languages import is_in

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’)\]]{0,3}\s+|(?<=[。！？])|\n{2,}")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|vs|etc|e\.g|i\.e|Inc|Ltd|Co|No|Fig|Ph\.D)|\b[A-Z])\.$")
_PLACEHOLDER = re.compile(r"\[[^\[\]]{1,500}\]")
_BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-)[ \t]*\S.*$", re.MULTILINE)
_SINGLE, _DOUBLE = re.compile(r"(?<!\*)\*(?!\*)([^\n*]{1,2000})\*(?!\*)"), re.compile(r"\*\*([^\n*]{1,2000})\*\*")
_TITLE = re.compile(r"<<([^\n<>]{1,2000})>>")
_FENCE, _TAG = "```", re.compile(r"(?:json)?\s", re.IGNORECASE)
CONSTRAINED = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
PARAGRAPHS, RESPONSES = re.compile(r"\s?\*\*\*\s?"), "******"


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of ``text``, none of them empty."""
    found: list[str] = []
    for piece in _SENTENCE.split(text):
        piece = piece.strip()
        if found and _ABBREVIATION.search(found[-1]) and piece:
            found[-1] = f"{found[-1]} {piece}"
        elif _WORD.search(piece):
            found.append(piece)
    return found


def _occurrences(text: str, word: str) -> int:
    """How often ``word`` (or a sequence of words) occurs in ``text``, ignoring case."""
    return len(re.findall(rf"(?<!\w){re.escape(word.strip())}(?!\w)", text, re.IGNORECASE))


def existence(text: str, given: Given) -> bool:
    return all(_occurrences(text, word) for word in given.texts("keywords"))


def frequency(text: str, given: Given) -> bool:
    return given.holds(_occurrences(text, given.text("keyword")), "frequency", "relation")


def forbidden_words(text: str, given: Given) -> bool:
    return not any(_occurrences(text, word) for word in given.texts("forbidden_words"))


def letter_frequency(text: str, given: Given) -> bool:
    return given.holds(text.lower().count(given.text("letter").lower()), "let_frequency", "let_relation")


def response_language(text: str, given: Given) -> bool:
    return is_in(text, given.text("language"))


def number_sentences(text: str, given: Given) -> bool:
    return given.holds(len(sentences(text)), "num_sentences", "relation")


def number_words(text: str, given: Given) -> bool:
    return given.holds(len(words(text)), "num_words", "relation")


def number_paragraphs(text: str, given: Given) -> bool:
    """Paragraphs are divided by ``***``; none between two marks may be empty."""
    parts = [part.strip() for part in PARAGRAPHS.split(text)]
    while parts and not parts[0]:
        parts.pop(0)
    while parts and not parts[-1]:
        parts.pop()
    return all(parts) and len(parts) == given.number("num_paragraphs")


def nth_paragraph_first_word(text: str, given: Given) -> bool:
    """Paragraphs are divided by an empty line; there are exactly so many, and the n-th begins with this word."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    place = given.number("nth_paragraph")
    if len(parts) != given.number("num_paragraphs") or not 1 <= place <= len(parts):
        return False
    first = parts[place - 1].split()[0].strip("\"'“”‘’*_([").rstrip(".,!?;:\"'“”‘’*_)]")
    return first.lower() == given.text("first_word").strip().lower()


def number_placeholders(text: str, given: Given) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= given.number("num_placeholders")


def postscript(text: str, given: Given) -> bool:
    """A line that begins with the marker or contains it: ``P.S.`` also as ``PS`` or ``P. S.``."""
    letters = [c for c in given.text("postscript_marker").lower() if c.isalnum()]
    marker = r"\.?\s?".join(map(re.escape, letters)) + r"(?:[.:]|\b(?![.:]))"
    return bool(re.search(rf"(?:^|\s){marker}\s*\S", text.lower()))


def number_bullet_lists(text: str, given: Given) -> bool:
    return len(_BULLET.findall(text)) == given.number("num_bullets")


def constrained_response(text: str, given: Given) -> bool:
    return any(option in text.lower() for option in CONSTRAINED)


def number_highlighted_sections(text: str, given: Given) -> bool:
    found = [*_DOUBLE.findall(text), *_SINGLE.findall(text)]
    return sum(bool(part.strip()) for part in found) >= given.number("num_highlights")


def multiple_sections(text: str, given: Given) -> bool:
    """Sections begin with the mark and a number (``SECTION 1``)."""
    mark = re.escape(given.text("section_spliter").strip())
    return len(re.findall(rf"(?<!\w){mark}\s?\d+", text)) >= given.number("num_sections")


def json_format(text: str, given: Given) -> bool:
    """The whole response is JSON, alone or in one block of code."""
    text = text.strip()
    if len(text) > 2 * len(_FENCE) and text.startswith(_FENCE) and text.endswith(_FENCE):
        text = text[len(_FENCE) : -len(_FENCE)]
        tag = _TAG.match(text)
        text = text[tag.end() :] if tag else text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str, given: Given) -> bool:
    return any(found.strip() for found in _TITLE.findall(text))


def two_responses(text: str, given: Given) -> bool:
    parts = [part.strip() for part in text.split(RESPONSES)]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeat_prompt(text: str, given: Given) -> bool:
    wanted = given.text("prompt_to_repeat").strip().lower()
    return text.strip().lower().startswith(wanted)


def end_checker(text: str, given: Given) -> bool:
    return text.strip().strip('"').lower().endswith(given.text("end_phrase").strip().lower())


def quotation(text: str, given: Given) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def capital_word_frequency(text: str, given: Given) -> bool:
    return given.holds(sum(word.isupper() for word in _TOKEN.findall(text)), "capital_frequency", "capital_relation")


def english_capital(text: str, given: Given) -> bool:
    return text.isupper() and is_in(text, "en")


def english_lowercase(text: str, given: Given) -> bool:
    return text.islower() and is_in(text, "en")


def no_comma(text: str, given: Given) -> bool:
    return "," not in text


Check = Callable[[str, Given], bool]
CHECKS: dict[str, Check] = {
    "keywords:existence": existence,
    "keywords:frequency": frequency,
    "keywords:forbidden_words": forbidden_words,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
"""Every instruction of IFEval by its name in the data set."""
