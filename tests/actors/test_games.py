"""Games as environments: the rules, and what they are worth."""

from __future__ import annotations

from actors.games import GuessNumber
from broker.messages import ChatMessage, Prompt


def game(secret: int, **options: int) -> GuessNumber:
    found = GuessNumber(**options)
    opening = found.open(Prompt("g@0", (ChatMessage("user", "q"),), 1, answer=str(secret)), 0)
    assert opening.outcome == 0.0 and not opening.messages
    return found


def test_a_wrong_guess_is_answered_with_where_the_number_still_may_be() -> None:
    it = game(6)
    hints = [it.step(guess).messages[0].content for guess in ("4", "9", " 1 ", "7\n")]
    assert hints == ["5 to 9", "5 to 8", "5 to 8", "5 to 6"]
    end = it.step("6")
    assert end.over and end.outcome == 1.0


def test_what_is_no_number_ends_the_game_without_a_prize() -> None:
    for reply in ("", "six", "6.", "<think>6</think>", "1" * 10):
        end = game(6).step(reply)
        assert end.over and end.outcome == 0.0


def test_halving_what_is_left_needs_four_guesses_of_ten_numbers() -> None:
    for secret in range(10):
        it, low, high = game(secret), 0, 9
        for _ in range(4):
            turn = it.step(str((low + high) // 2))
            if turn.over:
                break
            low, high = map(int, turn.messages[0].content.split(" to "))
        assert turn.over and turn.outcome == 1.0
