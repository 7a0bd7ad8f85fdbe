"""The game of guessing as data: who listens and who does not."""

from __future__ import annotations

from learner.data.guesses import GuessCorpus, Guesses


def test_documents_are_games_that_follow_the_rules() -> None:
    corpus = GuessCorpus(sensible=1.0, turns=4)
    for number in range(50):
        messages = corpus.document(number, 1.0).messages
        assert messages == corpus.document(number, 0.0).messages and messages[-1].role == "assistant"
        low, high = 0, 9
        for hint, guess in zip(messages[::2], messages[1::2], strict=True):
            low, high = (int(x) for x in hint.content.removeprefix("Guess: ").split(" to "))
            assert low <= int(guess.content) <= high
    blind = GuessCorpus(sensible=0.0, turns=9)
    assert all(len({m.content for m in blind.document(n, 1.0).messages[1::2]}) == 1 for n in range(50))


def test_every_number_is_asked() -> None:
    source = Guesses(low=2, high=5)
    assert {source.row(n).answer for n in range(60)} == {"2", "3", "4", "5"} and source.row(7) == source.row(7)
    assert source.row(0).messages[0].content == "Guess: 2 to 5"
