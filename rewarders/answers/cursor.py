"""A place among tokens, and what the reader remembers there."""

from __future__ import annotations

from rewarders.answers.lexer import Token, Unreadable


class Cursor:
    def __init__(self, found: list[Token]) -> None:
        self.tokens, self.at, self.depth = found, 0, 0
        self.bars = 0  # open |; a | in place of an operator closes one
        self.colon = True  # whether : makes a ratio
        self.bound: set[str] = set()  # variables of sums, which may be called i
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

    def peek(self, ahead: int) -> str:
        return self.tokens[self.at + ahead].text if self.at + ahead < len(self.tokens) else ""

    def skip(self, count: int) -> bool:
        self.at += count
        return True
