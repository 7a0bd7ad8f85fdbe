"""The parser's position in its tokens, and the state that belongs to it."""

from __future__ import annotations

from rewarders.answers.lexer import Token, Unreadable


class Cursor:
    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.at, self.depth = found, 0, 0
        self.bars = 0  # number of open |; while there is one, a | in the place of an operator closes it
        self.colon = True  # whether : forms a ratio
        self.bound: set[str] = set()  # variables of the open sums: there even i is a variable
        self.bar = True  # whether | may open an absolute value in the place of an operator (not in set braces)

    @property
    def text(self) -> str:
        return self.tokens[self.at].text if self.at < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.at].kind if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        """Consume the next token if it is one of ``wanted``, and return its text; otherwise return an empty text."""
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

    def peek(self, ahead: int) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def skip(self, count: int) -> bool:
        self.at += count
        return True
