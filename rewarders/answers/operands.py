"""Parses operands: literals, names, brackets, functions with their arguments, roots, sums, matrices."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from rewarders.answers.cursor import Cursor
from rewarders.answers.lexer import Token, Unreadable
from rewarders.answers.literals import MAX_DIGITS, MINUS, Node, built, determinant, negated, number, repeating
from rewarders.answers.names import CONSTANTS, FUNCTIONS, SYMBOLS, plain

CLOSERS = {"(": (")", "]"), "[": ("]", ")"), "{": ("}",), "\\{": ("\\}",)}


class Operands(Cursor):
    """The operands' half of the parser; ``parse`` implements the other half, lists, sums and factors."""

    def listing(self) -> Node:
        raise NotImplementedError

    def sum(self) -> Node:
        raise NotImplementedError

    def product(self) -> Node:
        raise NotImplementedError

    def factor(self) -> Node:
        raise NotImplementedError

    def exponent(self) -> Node:
        raise NotImplementedError

    def starts(self, before: Node) -> bool:
        raise NotImplementedError

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
        return self.symbol(SYMBOLS.get(plain(inner), inner) if not mark else f"{mark}{inner}")

    def symbol(self, name: str) -> Node:
        while self.text in ("_", "'"):
            name += "'" if self.take("'") else "_" + (self.take("_") and self.subscript())
        return ("const", name) if name in CONSTANTS and name not in self.bound else ("sym", name)

    def subscript(self) -> str:
        """The subscript after ``_``, as text."""
        if not self.take("{"):
            text = self.text
            if not text:
                raise Unreadable("a subscript is missing")
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
        """The argument of a LaTeX command: ``{...}``, or without braces one digit, letter or command."""
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
        r"""``\sum_{k=1}^{10} k^2``; the body is the product that follows the bounds."""
        self.need("_")
        self.need("{")
        name_of_it = self.text
        self.bound.add(name_of_it)
        variable = self.primary()
        self.need("=")
        low = self.sum()
        self.need("}")
        self.need("^")
        high = self.group()
        if variable[0] != "sym":
            raise Unreadable("a sum over no variable")
        body = self.product()
        self.bound.discard(name_of_it)
        return ("bigop", name, variable[1], low, high, body)

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
        return determinant(tuple(rows)) if name == "vmatrix" else ("matrix", tuple(rows))


OPENERS: dict[str, Callable[[Operands], Node]] = {
    "\\frac": Operands.fraction, "\\sqrt": Operands.root, "\\binom": Operands.binomial, "\\emptyset": lambda _: ("set", ()),
    "\\lfloor": lambda r: r.rounded("\\rfloor", "floor"), "\\lceil": lambda r: r.rounded("\\rceil", "ceil"),
    "\\sum": lambda r: r.big("sum"), "\\prod": lambda r: r.big("prod"),
}  # fmt: skip
_BY_KIND: dict[str, Callable[[Operands], Node]] = {
    "num": Operands.literal,
    "repeat": Operands.repeating,
    "name": Operands.named,
    "word": Operands.word,
    "begin": Operands.matrix,
}
