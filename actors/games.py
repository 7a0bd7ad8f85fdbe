"""Small games as environments, on which a small model shows what episodes teach."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from actors.environment import Turn, over, say
from broker.messages import Prompt

NUMBER = re.compile(r"\s*(\d{1,6})\s*")


@dataclass
class GuessNumber:
    """The prompt's answer is a number from ``low`` to ``high``; a wrong guess is answered with where it still may be.

    The right number ends the episode with outcome 1, anything that is not a number with 0. Halving the remaining range takes
    log2(high - low + 1) guesses, rounded up at the next power of two.
    """

    low: int = 0
    high: int = 9
    _secret: int = field(default=0, init=False)
    _left: tuple[int, int] = field(default=(0, 0), init=False)

    def open(self, prompt: Prompt, index: int) -> Turn:
        self._secret, self._left = int(prompt.answer or ""), (self.low, self.high)
        return Turn(outcome=0.0)

    def step(self, reply: str) -> Turn:
        guess = NUMBER.fullmatch(reply)
        if guess is None:
            return over(0.0, "no number")
        number, (low, high) = int(guess.group(1)), self._left
        if number == self._secret:
            return over(1.0)
        if number < self._secret:
            low = max(low, number + 1)
        else:
            high = min(high, number - 1)
        self._left = (low, high)
        return say(f"{low} to {high}", outcome=0.0)
