"""Recognises units and words after a value, and converts between units."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise

from rewarders.answers.numbers import number
from rewarders.answers.words import NUMBERS, number_in_words

F = Fraction
# dimension -> (names of a unit, its size in the dimension's base unit)
_TABLE: dict[str, list[tuple[str, Fraction]]] = {
    "length": [
        ("m meter metre", F(1)), ("km kilometer kilometre", F(1000)), ("cm centimeter centimetre", F(1, 100)), ("mm millimeter millimetre", F(1, 1000)),
        ("um micrometer", F(1, 10**6)), ("nm nanometer nanometre", F(1, 10**9)), ("in inch inches", F(254, 10000)), ("ft foot feet", F(3048, 10000)),
        ("yd yard", F(9144, 10000)), ("mi mile", F(1609344, 1000)),
    ],
    "mass": [("kg kilogram", F(1000)), ("g gram", F(1)), ("mg milligram", F(1, 1000)), ("t ton tonne", F(10**6)), ("lb pound", F(45359237, 100000)), ("oz ounce", F(28349523125, 10**9))],
    "time": [("s sec second", F(1)), ("ms millisecond", F(1, 1000)), ("min minute", F(60)), ("h hr hour", F(3600)), ("day", F(86400)), ("week", F(604800))],
    "year": [("yr year", F(1)), ("month", F(1, 12))],
    "volume": [("L l liter litre", F(1)), ("mL ml milliliter millilitre", F(1, 1000)), ("gal gallon", F(3785411784, 10**9))],
    "money": [("dollar USD", F(1)), ("cent", F(1, 100))], "angle": [("degree deg circ", F(1))], "force": [("N newton", F(1)), ("kN", F(1000))],
    "energy": [("J joule", F(1)), ("kJ", F(1000)), ("cal", F(4184, 1000)), ("kcal", F(4184)), ("eV", F(1602176634, 10**28))],
    "power": [("W watt", F(1)), ("kW", F(1000)), ("MW", F(10**6))], "voltage": [("V volt", F(1)), ("kV", F(1000)), ("mV", F(1, 1000))],
    "current": [("A amp ampere", F(1)), ("mA", F(1, 1000))], "resistance": [("ohm Omega", F(1))], "frequency": [("Hz hertz", F(1)), ("kHz", F(1000)), ("MHz", F(10**6))],
    "pressure": [("Pa pascal", F(1)), ("kPa", F(1000)), ("atm", F(101325))], "amount": [("mol mole", F(1))], "temperature": [("K kelvin", F(1))],
    "celsius": [("C celsius", F(1))], "fahrenheit": [("F fahrenheit", F(1))], "speed": [("mph", F(44704, 100000)), ("kph kmh", F(1000, 3600))],
    "radian": [("rad radian", F(1))], "data": [("bit", F(1)), ("byte", F(8))], "euro": [("euro EUR", F(1))],
}  # fmt: skip
UNITS: dict[str, tuple[str, Fraction]] = {}
for _kind, _rows in _TABLE.items():
    for _names, _factor in _rows:
        for _name in _names.split():
            UNITS[_name] = (_kind, _factor)
            if len(_name) > 2:
                UNITS[_name + "s"] = (_kind, _factor)
SYNONYMS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}
WRAPPED = re.compile(r"\\(?:text|mathrm|mbox|hbox|textrm|textbf|textit|textnormal|operatorname|unit)\s*\{([^{}]*)\}")
TAIL = re.compile(
    r"(?:\\(?:text|mathrm|mbox|hbox|textrm|textbf|textit|textnormal|operatorname|unit)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d|\{?\\circ\}?))?[\s/]*(?:\\cdot\s*)?)+$"
)
PLAIN = re.compile(
    r"(?<=[\d)}%])(\s*)((?:[A-Za-z]+)(?:\s*\^\s*\{?-?\d\}?)?(?:[\s/-]+(?:[A-Za-z]+)(?:\s*\^\s*\{?-?\d\}?)?)*)$"
)
DEGREES = re.compile(r"\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*(?:\\(?:text|mathrm)\s*\{)?\s*(C|F)\s*\}?$")
MODULUS = re.compile(r"[\s(]*(?:\\pmod|\\bmod|\\mod|\bmod)\s*\{?\s*(\d+)\s*\}?\)?$")
ORDINAL = re.compile(r"(?<=\d)\s*(?:\^\s*\{?\s*)?(?:\\(?:text|mathrm)\s*\{\s*)?(?:st|nd|rd|th)(?:\s*\})*$")
MATHS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "lg",
        "exp",
        "pi",
        "sqrt",
        "theta",
        "alpha",
        "beta",
        "gamma",
        "or",
        "and",
        "mod",
        "if",
        "else",
        "for",
        "choose",
        "over",
        "inf",
        "infinity",
    ]
)
HEDGES = frozenset(
    [
        "or",
        "and",
        "not",
        "if",
        "else",
        "maybe",
        "but",
        "otherwise",
        "when",
        "unless",
        "either",
        "possibly",
        "perhaps",
        "approximately",
        "about",
        "is",
        "are",
        "than",
    ]
) | frozenset(word for word in NUMBERS if word.isalpha())
OPERATIONS = frozenset(["plus", "minus", "factorial", "divided", "multiplied", "root", "power", "modulo"])
LETTERS = frozenset(["T", "H", "S", "M", "D", "u"])
"""Units of one letter that are read only in text commands: elsewhere they are variables."""
DENIALS = frozenset(["wrong", "incorrect", "false", "no", "never", "negative"])
"""Words that deny the value if they are the last: 5 wrong, but 5 wrong answers."""
FRACTION = re.compile(
    r"(?:quarter|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth|billionth)s?(?: of .*)?",
    re.IGNORECASE,
)
"""Words that make a fraction of the number before them, unless they say which one: 3 quarters, but 3 third graders."""
MAGNITUDES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "lakh": 10**5, "crore": 10**7,
}  # fmt: skip
MAGNITUDE = re.compile(
    r"(\\(?:text|mathrm|mbox|hbox|textrm|textbf|textit|textnormal)\s*\{\s*)?(?<![A-Za-z\\])("
    + "|".join(MAGNITUDES)
    + r")s?\b(?!-)",
    re.IGNORECASE,
)
INITIALS = re.compile(r"\b[A-Za-z]\.\s?[A-Za-z]\b")
UNIT_TEXT = re.compile(
    r"(?:[A-Za-zµΩ'’/.,\s()*·²³{}^-]|\\cdot|\\circ|\\,|~|\^\s*(?:\{\s*)?-?\d|(?<=[A-Za-z])[23](?![\d.]))*"
)


def split(text: str) -> tuple[str, str] | None:
    """The value and the unit or words after it; None if there are none."""
    degrees = DEGREES.search(text)
    if degrees and degrees.start() > 0:
        return text[: degrees.start()].strip(), degrees.group(1)
    modulus = MODULUS.search(text)
    if modulus and modulus.start() > 0:
        return text[: modulus.start()].strip(), f"mod {modulus.group(1)}"
    wrapped = TAIL.search(text)
    if wrapped and wrapped.start() > 0:
        unit = WRAPPED.sub(r" \1 ", wrapped.group()).strip()
        return (text[: wrapped.start()].strip().removesuffix("\\cdot").strip(), tidy(unit)) if is_unit(unit) else None
    ordinal = ORDINAL.search(text)
    if ordinal:
        return text[: ordinal.start()].strip(), "th"
    words = PLAIN.search(text)
    if words and plausible(words.group(2), bool(words.group(1))):
        return text[: words.start()].strip(), tidy(words.group(2))
    return None


def is_unit(words: str) -> bool:
    """Whether the words in a text command are a unit or say what is counted, and leave the value before them as it is."""
    found = re.findall(r"[A-Za-z]+", INITIALS.sub(" ", words))
    variables = [word for word in found if len(word) == 1 and word not in UNITS and word not in LETTERS]
    if variables and (variables != ["a"] or len(found) == 1):
        return False
    return bool(UNIT_TEXT.fullmatch(words) and re.search("[A-Za-z]", words)) and not _changes_the_value(found)


def plausible(words: str, blank: bool) -> bool:
    """Whether plain letters after a value are a unit or words rather than variables; ``blank``: one precedes them."""
    found = re.findall(r"[A-Za-z]+", words)
    if any(word in MATHS for word in found) or _changes_the_value(found):
        return False
    known = all(word in UNITS or word in ("per", "square", "cubic", "sq") for word in found)
    named = blank and len(found[0]) > 2 and len(found) <= 4 and not any(map(_is_product, found))
    return (known and (blank or len(found[0]) > 1)) or named


def _changes_the_value(words: list[str]) -> bool:
    """Whether words after a value make it another one (million, squared), or give a second one, or deny it."""
    folded = [word.casefold() for word in words]
    if not folded:
        return False
    meant = set(folded) & (HEDGES | OPERATIONS) or {w.removesuffix("s") for w in folded} & set(MAGNITUDES)
    functions = any(word in MATHS and word not in UNITS and word != "for" for word in words)
    operates = folded[0] in ("squared", "cubed") or folded[-1] in DENIALS or FRACTION.fullmatch(" ".join(folded))
    return bool(meant or functions or operates)


def _is_product(word: str) -> bool:
    """Whether letters are rather a product of variables: they ascend, and two of them are neighbours (abc, xyz)."""
    places = [ord(letter) for letter in word.casefold()]
    steps = [after - before for before, after in pairwise(places)]
    return word not in UNITS and len(word) > 2 and min(steps) > 0 and 1 in steps


def scaled(text: str) -> str:
    """``3 million people`` as ``3000000 people``: a number and the magnitude behind it in digits; else the same text."""
    for _ in range(4):
        found = MAGNITUDE.search(text)
        head = text[: found.start()].strip() if found else ""
        value = number(number_in_words(head) or head)
        if found is None or value is None or head.endswith("%"):
            return text
        opened, rest = found.group(1) or "", text[found.end() :].strip()
        if re.match(r"(?:\d|and\b|" + "|".join(NUMBERS) + r")", rest, re.IGNORECASE):
            return text
        value *= MAGNITUDES[found.group(2).casefold()]
        digits = str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        text = f"{digits} {rest[1:].strip() if opened and rest.startswith('}') else opened + rest}".strip()
    return text


def tidy(unit: str) -> str:
    unit = re.sub(r"\\cdot|\\,|~|\*|\.(?!\d)", " ", unit).replace("\\", " ")
    return " ".join(unit.split())


def measure(unit: str) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    """The dimensions with their powers, and the factor to base units; None if a word is not a unit."""
    factor = Fraction(1)
    powers: dict[str, int] = {}
    sign, power_of_next = 1, 1
    for word, power, slash in re.findall(r"([A-Za-z]+)\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?|(/)", unit):
        if slash or word == "per":
            sign = -1
            continue
        if word in SYNONYMS:
            power_of_next = int(SYNONYMS[word])
            continue
        kind = UNITS.get(word) or UNITS.get(word.lower() if len(word) > 2 else "")
        if kind is None:
            return None
        times = sign * int(power or 1) * power_of_next
        powers[kind[0]] = powers.get(kind[0], 0) + times
        factor *= kind[1] ** times
        power_of_next = 1
    known = {k: p for k, p in powers.items() if p}
    if known.get("speed"):
        known = {**known, "length": known.get("length", 0) + 1, "time": known.get("time", 0) - 1}
        known.pop("speed")
    if known.get("volume"):
        count = known.pop("volume")
        known["length"] = known.get("length", 0) + 3 * count
        factor *= Fraction(1, 1000) ** count
    return tuple(sorted(known.items())), factor


def conversion(answer: str, reference: str) -> Fraction | None:
    """The factor from unit ``answer`` to unit ``reference``: 1 if one is missing, None if they do not match."""
    if answer == reference or not answer or not reference:
        return Fraction(1)
    a, b = measure(answer), measure(reference)
    if a is None or b is None:
        return Fraction(1) if same_words(answer, reference) else None
    return a[1] / b[1] if a[0] == b[0] else None


def same_words(a: str, b: str) -> bool:
    """Whether two phrases count the same thing: apples and apple, or one begins or ends with the other (red apples and
    apples, years old and years)."""
    left, right = (" ".join(w.rstrip("s") for w in text.casefold().split()) for text in (a, b))
    return left == right or any(a.startswith(f"{b} ") or a.endswith(f" {b}") for a, b in ((left, right), (right, left)))
