r"""Reads a normalised answer into a tree of tuples: LaTeX as people write it, and plain ``sqrt(2)/2`` beside it.

A node is ``(kind, ...)``: num (Fraction, is_decimal), sym, add, mul, pow, call, pm, deg, pct, group (open, close, items), list (separators,
items), set, rel (operators, members), setop, matrix, ratio, based (digits, base), bigop, abs. Depth and length are bounded; nothing is evaluated.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from rewarders.answers.lexer import Token, Unreadable, tokens
from rewarders.answers.names import CONSTANTS, FUNCTIONS, SYMBOLS, plain

Node = tuple[Any, ...]
MAX_DEPTH = 48
MAX_DIGITS = 1000
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\lt": "<",
    "\\gt": ">", "\\in": "in",
}  # fmt: skip
SEPARATORS = {",": ",", ";": ",", "\\lor": "or", "\\land": "and"}
SETOPS = {"\\cup": "cup", "\\cap": "cap", "\\setminus": "minus"}
CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",)}
ONE, MINUS = ("num", Fraction(1), False), ("num", Fraction(-1), False)
BIG = {"\\sum": "sum", "\\prod": "prod"}


def parse(text: str) -> Node:
    """The tree of a normalised text. Raises Unreadable."""
    if not text:
        raise Unreadable("empty")
    reader = _Reader(tokens(text))
    node = reader.listing()
    if reader.at != len(reader.tokens):
        raise Unreadable(f"{reader.tokens[reader.at].text!r} is not expected")
    return node


class _Reader:
    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.at, self.depth = found, 0, 0
        self.bars = 0  # open |; a | in place of an operator closes one
        self.colon = True  # whether : makes a ratio
        self.bar = True  # whether | may open in place of an operator

    @property
    def text(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        """The next token's text, if it is one of ``wanted``; otherwise an empty text."""
        text = self.text
        if text and text in wanted:
            self.at += 1
            return text
        return ""

    def need(self, *wanted: str) -> str:
        got = self.take(*wanted)
        if not got:
            raise Unreadable(f"{' or '.join(wanted)} is missing before {self.text!r}")
        return got

    def listing(self) -> Node:
        """Statements between commas, semicolons, or, and."""
        items, separators = [self.statement()], []
        while self.text in SEPARATORS:
            separator = SEPARATORS[self.take(*SEPARATORS)]
            if separator == "," and self.text in ("\\lor", "\\land"):
                separator = SEPARATORS[self.take("\\lor", "\\land")]
            separators.append(separator)
            items.append(self.statement())
        return ("list", tuple(separators), tuple(items)) if separators else items[0]

    def statement(self) -> Node:
        members, operators = [self.combined()], []
        while self.text in RELATIONS:
            operators.append(RELATIONS[self.take(*RELATIONS)])
            members.append(self.combined())
        return ("rel", tuple(operators), tuple(members)) if operators else members[0]

    def combined(self) -> Node:
        left = self.sum()
        if self.colon and self.text == ":":
            items = [left]
            while self.take(":"):
                items.append(self.sum())
            return ("ratio", tuple(items))
        while self.text in SETOPS:
            left = ("setop", SETOPS[self.take(*SETOPS)], left, self.sum())
        return left

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("nested too deep")
        sign = self.take("+", "-", "\\pm", "\\mp")
        first = self.product()
        node = {"-": lambda: negated(first), "\\pm": lambda: ("pm", 1, first), "\\mp": lambda: ("pm", -1, first)}.get(sign, lambda: first)()
        terms = [node]
        while sign := self.take("+", "-", "\\pm", "\\mp"):
            term = self.product()
            terms.append({"+": term, "-": negated(term), "\\pm": ("pm", 1, term), "\\mp": ("pm", -1, term)}[sign])
        self.depth -= 1
        return terms[0] if len(terms) == 1 else ("add", tuple(terms))

    def product(self) -> Node:
        factors = [self.factor()]
        while True:
            if self.take("*", "\\cdot"):
                factors.append(self.signed())
            elif self.take("/", "\\div"):
                factors.append(("pow", self.signed(), MINUS))
            elif self.starts(factors[-1]):
                factors.append(self.factor())
            else:
                return factors[0] if len(factors) == 1 else ("mul", tuple(factors))

    def signed(self) -> Node:
        sign = self.take("+", "-")
        return negated(self.factor()) if sign == "-" else self.factor()

    def starts(self, before: Node) -> bool:
        """Whether the next token begins a factor that is multiplied without a sign."""
        kind, text = self.kind, self.text
        if kind in ("num", "repeat"):
            return before[0] in ("pow", "call", "group") and self.tokens[self.at - 1].text in ("}", ")", "]")
        if kind in ("name", "word", "begin"):
            return True
        if text == "|":
            return self.bar and not self.bars
        return text in ("(", "[", "{") or (kind == "cmd" and (plain(text) in SYMBOLS or plain(text) in FUNCTIONS or text in OPENERS))

    def factor(self) -> Node:
        node = self.mixed() or self.postfix(self.primary())
        return node

    def mixed(self) -> Node | None:
        r"""``1\frac12`` and ``1 1/2``: a whole number and a fraction of whole numbers behind it."""
        if self.kind != "num" or not self.text.isdigit():
            return None
        start = self.at
        whole = Fraction(number(self.text))
        self.at += 1
        if self.text == "\\frac":
            part = self.primary()
            if part[0] == "mul" and all(p[0] == "num" for p in (part[1][0], part[1][1][1])) and self.text not in ("^", "!"):
                return ("num", whole + part[1][0][1] / part[1][1][1][1], False) if part[1][1][1][1] else None
        elif self.kind == "num" and self.text.isdigit() and self.tokens[self.at].blank:
            top = number(self.text)
            self.at += 1
            if self.take("/") and self.kind == "num" and self.text.isdigit() and number(self.text):
                bottom = number(self.text)
                self.at += 1
                return ("num", whole + Fraction(top, bottom), False)
        self.at = start
        return None

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("^", "**"):
                node = self.raised(node)
            elif self.take("!"):
                if self.text == "!":
                    raise Unreadable("a double factorial")
                node = ("call", "factorial", (node,))
            elif self.take("%", "\\%"):
                node = ("pct", node)
            elif self.text == "_" and node[0] in ("num", "group") and self.take("_"):
                node = based(node, self.subscript())
            else:
                return node

    def raised(self, base: Node) -> Node:
        if self.take("\\circ") or (self.text == "{" and self.peek(1) == "\\circ" and self.peek(2) == "}" and self.skip(3)):
            return ("deg", base)
        if self.take("\\prime", "'") or self.take("*"):
            raise Unreadable("a mark in place of an exponent")
        return ("pow", base, self.exponent())

    def exponent(self) -> Node:
        if self.text == "{":
            node = self.primary()
        else:
            sign = self.take("+", "-")
            node = self.primary()
            node = negated(node) if sign == "-" else node
        if self.take("^", "**"):
            return ("pow", node, self.exponent())
        return node

    def peek(self, ahead: int) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def skip(self, count: int) -> bool:
        self.at += count
        return True

    def primary(self) -> Node:
        kind, text = self.kind, self.text
        if not text:
            raise Unreadable("it ends too early")
        if kind in _BY_KIND:
            return _BY_KIND[kind](self)
        if text in CLOSERS:
            return self.bracketed()
        if text == "|":
            return self.absolute()
        opener = OPENERS.get(text)
        if opener is not None:
            self.at += 1
            return opener(self)
        name = plain(text)
        if kind == "cmd" and name in FUNCTIONS:
            return self.call(FUNCTIONS[name])
        if kind == "cmd" and name in SYMBOLS:
            self.at += 1
            return self.symbol(SYMBOLS[name])
        raise Unreadable(f"{text!r} is not understood")

    def literal(self) -> Node:
        text = self.text
        self.at += 1
        return ("num", number(text), "." in text)

    def repeating(self) -> Node:
        text = self.text
        self.at += 1
        return ("num", repeating(text), False)

    def named(self) -> Node:
        name = self.text
        if name in FUNCTIONS and not (self.peek(1) == "" and len(name) == 1):
            return self.call(FUNCTIONS[name])
        self.at += 1
        return self.symbol(SYMBOLS.get(name, name))

    def word(self) -> Node:
        inner = self.text[self.text.index("{") + 1 : -1].strip()
        command = self.text[: self.text.index("{")].strip()
        if inner in FUNCTIONS:
            return self.call(FUNCTIONS[inner])
        self.at += 1
        if command == "\\mathbb":
            return ("sym", "Reals" if inner == "R" else f"bb_{inner}")
        if command in ("\\text", "\\mbox", "\\hbox", "\\textbf", "\\textit", "\\textrm", "\\textnormal"):
            if inner.isdigit() and len(inner) < MAX_DIGITS:
                return ("num", Fraction(inner), False)
            if len(inner) != 1:
                raise Unreadable(f"words: {inner!r}")
        mark = command if command in ("\\vec", "\\hat", "\\overline", "\\bar", "\\dot", "\\mathcal") else ""
        if not inner.replace(" ", "").replace("\\", "").isalnum():
            raise Unreadable(f"{self.tokens[self.at - 1].text!r} is not understood")
        return self.symbol(SYMBOLS.get(inner, inner) if not mark else f"{mark}{inner}")

    def symbol(self, name: str) -> Node:
        while self.text in ("_", "'"):
            name += "'" if self.take("'") else "_" + (self.take("_") and self.subscript())
        return ("const", name) if name in CONSTANTS else ("sym", name)

    def subscript(self) -> str:
        """What stands behind ``_``, as text."""
        if not self.take("{"):
            text = self.text
            self.at += 1
            return text.lstrip("\\")
        parts, depth = [], 1
        while depth:
            text = self.text
            if not text:
                raise Unreadable("a subscript does not end")
            self.at += 1
            depth += (text == "{") - (text == "}")
            parts.append(text[text.index("{") + 1 : -1] if self.tokens[self.at - 1].kind == "word" else text)
        return "".join(parts[:-1]).replace("\\", "")

    def group(self) -> Node:
        """Of LaTeX: ``{...}``; the argument of a command that needs no braces is one digit, letter or command."""
        if self.text == "{":
            return self.bracketed()
        if self.kind == "num" and len(self.text) > 1 and self.text.isdigit():
            first, rest = self.text[0], self.text[1:]
            self.tokens[self.at] = Token("num", rest, False)
            return ("num", Fraction(first), False)
        return self.primary()

    def bracketed(self) -> Node:
        opening = self.need(*CLOSERS)
        if opening == "\\{" and self.take("\\}"):
            return ("set", ())
        saved = self.bars, self.colon, self.bar
        self.bars, self.colon, self.bar = 0, opening != "\\{", opening != "\\{"
        inner = self.listing()
        if opening == "{" and self.take("\\choose"):
            inner = ("call", "binomial", (inner, self.listing()))
        if opening == "\\{" and self.take("|", ":"):
            inner = built(inner, self.listing())
        closing = self.need(*CLOSERS[opening])
        self.bars, self.colon, self.bar = saved
        items = inner[2] if inner[0] == "list" and set(inner[1]) == {","} else (inner,)
        if opening == "\\{":
            return inner if inner[0] == "build" else ("set", items)
        if len(items) == 1:
            if (opening, closing) not in (("(", ")"), ("[", "]"), ("{", "}")):
                raise Unreadable("brackets of two kinds")
            return ("group", opening, closing, items) if opening == "(" and self.text == "_" else inner
        return ("set", items) if opening == "{" else ("group", opening, closing, items)

    def absolute(self) -> Node:
        self.need("|")
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        self.need("|")
        return ("call", "abs", (inner,))

    def call(self, name: str) -> Node:
        r"""A function with its argument: ``\sin^2 2x``, ``\log_2 16``, ``\ln(x)``, ``\sin^{-1} x``."""
        self.at += 1
        base = power = None
        for _ in range(2):
            if self.take("_"):
                base = self.group()
            elif self.take("^"):
                power = self.exponent()
        argument = self.argument()
        arguments = argument[3] if argument[0] == "group" else (argument,)
        if power == MINUS and "arc" + name in FUNCTIONS:
            name, power = FUNCTIONS["arc" + name], None
        node: Node = ("call", name, arguments if base is None else (*arguments, base))
        return node if power is None else ("pow", node, power)

    def argument(self) -> Node:
        if self.text in ("(", "[", "{") or self.text == "|":
            return self.primary()
        sign = self.take("-")
        factors = [self.factor()]
        while (self.starts(factors[-1]) and plain(self.text) not in FUNCTIONS and self.text not in ("(", "[", "|")) or (
            self.text == "/" and factors[-1] == ("const", "pi")
        ):
            factors.append(("pow", self.factor(), MINUS) if self.take("/") else self.factor())
        node: Node = factors[0] if len(factors) == 1 else ("mul", tuple(factors))
        return negated(node) if sign else node

    def fraction(self) -> Node:
        top, bottom = self.group(), self.group()
        return ("mul", (top, ("pow", bottom, MINUS)))

    def root(self) -> Node:
        degree: Node = ("num", Fraction(2), False)
        if self.take("["):
            degree = self.sum()
            self.need("]")
        return ("call", "root", (self.group(), degree))

    def binomial(self) -> Node:
        return ("call", "binomial", (self.group(), self.group()))

    def rounded(self, closing: str, name: str) -> Node:
        inner = self.sum()
        self.need(closing)
        return ("call", name, (inner,))

    def big(self, name: str) -> Node:
        r"""``\sum_{k=1}^{10} k^2``: its body is the product that follows."""
        self.need("_")
        self.need("{")
        variable = self.primary()
        self.need("=")
        low = self.sum()
        self.need("}")
        self.need("^")
        high = self.group()
        if variable[0] != "sym":
            raise Unreadable("a sum over no variable")
        return ("bigop", name, variable[1], low, high, self.product())

    def matrix(self) -> Node:
        name = self.text[self.text.index("{") + 1 : self.text.index("}")].rstrip("*")
        if name not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "array", "smallmatrix", "Bmatrix"):
            raise Unreadable(f"environment {name!r}")
        self.at += 1
        rows: list[tuple[Node, ...]] = []
        row = [self.sum()]
        while True:
            if self.take("&"):
                row.append(self.sum())
                continue
            rows.append(tuple(row))
            if self.take("\\\\") and self.kind != "end":
                row = [self.sum()]
                continue
            break
        if self.kind != "end" or len({len(r) for r in rows}) != 1:
            raise Unreadable("rows of a matrix that do not match")
        self.at += 1
        return ("call", "det", (("matrix", tuple(rows)),)) if name == "vmatrix" else ("matrix", tuple(rows))


OPENERS = {
    "\\frac": _Reader.fraction, "\\sqrt": _Reader.root, "\\binom": _Reader.binomial, "\\emptyset": lambda _: ("set", ()),
    "\\lfloor": lambda r: r.rounded("\\rfloor", "floor"), "\\lceil": lambda r: r.rounded("\\rceil", "ceil"),
    "\\sum": lambda r: r.big("sum"), "\\prod": lambda r: r.big("prod"),
}  # fmt: skip
_BY_KIND = {"num": _Reader.literal, "repeat": _Reader.repeating, "name": _Reader.named, "word": _Reader.word, "begin": _Reader.matrix}


def negated(node: Node) -> Node:
    return ("num", -node[1], node[2]) if node[0] == "num" else ("mul", (MINUS, node))


def number(text: str) -> Fraction:
    """Raises Unreadable for what is too long or has too large an exponent."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5 or (exponent and abs(int(exponent)) > 2000):
        raise Unreadable("too many digits")
    return Fraction(text)


def repeating(text: str) -> Fraction:
    r"""``0.\overline{6}``, ``0.1(6)``, ``0.333...`` as a fraction."""
    for mark in ("\\overline", "\\bar", "\\dot", "("):
        if mark in text:
            fixed, _, cycle = text.partition(mark)
            cycle = cycle.strip(" {}()")
            break
    else:
        fixed = text.rstrip(".…\\ldotsc ")
        cycle = fixed[-1]
        fixed = fixed[:-3]
    fixed = fixed if "." in fixed else fixed + "."
    places = len(fixed) - fixed.index(".") - 1
    if len(text) > 100:
        raise Unreadable("too many digits")
    start = Fraction("0" + fixed + "0" if fixed.startswith(".") else fixed + "0")
    return start + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10**places)


def based(node: Node, base: str) -> Node:
    """Digits in a written base: never equal to a number without it."""
    inner = node[3][0] if node[0] == "group" else node
    if inner[0] != "num" or inner[2]:
        raise Unreadable("a subscript of no digits")
    words = {"two": "2", "eight": "8", "ten": "10", "sixteen": "16", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "nine": "9"}
    return ("based", str(inner[1]), words.get(base, base))


def built(left: Node, condition: Node) -> Node:
    r"""``\{x \mid x > 2\}`` and ``\{x \in R \mid x > 2\}``: the condition on x."""
    variable = left[2][0] if left[0] == "rel" and left[1] == ("in",) else left
    if variable[0] != "sym":
        raise Unreadable("a set that is built over no variable")
    return ("build", variable[1], condition)
