r"""Parses a normalised answer into a tree of tuples: LaTeX as people write it, and plain text such as ``sqrt(2)/2``.

A node is ``(kind, ...)``: num (Fraction, is_decimal), sym (name), const (name), add (nodes), mul (nodes),
pow (base, exponent), call (function, arguments), pm (sign, node), deg (node), pct (node), group (open, close, items),
list (separators, items), set (items), build (variable, condition), rel (operators, members),
setop (operator, left, right), matrix (rows), ratio (nodes), based (digits, base),
bigop (sum or prod, variable, low, high, body). Depth and length are bounded; nothing is evaluated.
"""

from __future__ import annotations

from fractions import Fraction

from rewarders.answers.lexer import Unreadable, tokens
from rewarders.answers.literals import MINUS, Node, based, negated, number
from rewarders.answers.names import FUNCTIONS, SYMBOLS, plain
from rewarders.answers.operands import OPENERS, Operands

MAX_DEPTH = 48
RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\lt": "<",
    "\\gt": ">", "\\in": "in",
}  # fmt: skip
SEPARATORS = {",": ",", ";": ",", "\\lor": "or", "\\land": "and"}
SETOPS = {"\\cup": "cup", "\\cap": "cap", "\\setminus": "minus"}


def parse(text: str) -> Node:
    """The tree of a normalised text. Raises Unreadable."""
    if not text:
        raise Unreadable("empty")
    reader = _Reader(tokens(text))
    node = reader.listing()
    if reader.at != len(reader.tokens):
        raise Unreadable(f"{reader.tokens[reader.at].text!r} is not expected")
    return node


class _Reader(Operands):
    def listing(self) -> Node:
        r"""Statements separated by commas, semicolons, ``\lor`` or ``\land``."""
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
        node = {"-": lambda: negated(first), "\\pm": lambda: ("pm", 1, first), "\\mp": lambda: ("pm", -1, first)}.get(
            sign, lambda: first
        )()
        terms = [node]
        while sign := self.take("+", "-", "\\pm", "\\mp"):
            term = negated(self.product()) if self.take("-") else self.product()
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
        """Whether the next token begins a factor that is multiplied without an operator."""
        kind, text = self.kind, self.text
        if kind in ("num", "repeat"):
            return before[0] in ("pow", "call", "group") and self.tokens[self.at - 1].text in ("}", ")", "]")
        if kind in ("name", "word", "begin"):
            return True
        if text == "|":
            return self.bar and not self.bars
        return text in ("(", "[", "{") or (
            kind == "cmd" and (plain(text) in SYMBOLS or plain(text) in FUNCTIONS or text in OPENERS)
        )

    def factor(self) -> Node:
        node = self.postfix(self.mixed() or self.primary())
        return node

    def mixed(self) -> Node | None:
        r"""A mixed number: ``1\frac12`` or ``1 1/2``; None if there is none here."""
        if self.kind != "num" or not self.text.isdigit():
            return None
        start = self.at
        whole = Fraction(number(self.text))
        self.at += 1
        if self.text == "\\frac":
            part = self.primary()
            if (
                part[0] == "mul"
                and all(p[0] == "num" for p in (part[1][0], part[1][1][1]))
                and self.text not in ("^", "!")
            ):
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
        if self.take("\\circ") or (
            self.text == "{" and self.peek(1) == "\\circ" and self.peek(2) == "}" and self.skip(3)
        ):
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
