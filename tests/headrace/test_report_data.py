"""What the report gathers from a log: ages, lengths, how responses are written, and which samples are worth a look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import Handmade

from broker.messages import GroupRef, SampleRef, Trajectory, Vote, VoteRef, decode
from headrace.commands.report import write_report
from headrace.reading.report import report_of
from headrace.reading.showcase import showcase
from headrace.reading.summary import summarise
from headrace.reading.textstats import WORDS, Window, reflective_words, scripts
from headrace.reading.verify import verify
from monitoring.report import RunReport


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Handmade]:
    hand = Handmade(tmp_path / "log").whole()
    yield hand
    hand.close()


def report(hand: Handmade, home: Path) -> RunReport:
    run, audit = hand.run(home), verify(hand.log, hand.topics)
    return report_of(hand.log, run, summarise(hand.log, run, audit, 1.0), audit)


def told(
    hand: Handmade, group_id: str, *texts: str, finish: str = "stop", votes: tuple[float, ...] = (1.0, 0.0)
) -> GroupRef:
    """A group whose samples have these texts; both rewarders give the n-th sample the n-th of ``votes``."""
    at, refs = hand.prompt(group_id), []
    for index, text in enumerate(texts):
        where = hand.sample(group_id, index)
        first = decode(hand.log.reader(hand.topics.trajectories).get([where])[0].value)
        assert isinstance(first, Trajectory)
        where = hand.write(hand.topics.trajectories, replace(first, text=text, finish_reason=finish))
        given = tuple(
            VoteRef(name, hand.vote(group_id, index, name, value=votes[index])) for name in ("accuracy", "format")
        )
        refs.append(SampleRef(index, where, given))
    return GroupRef(group_id, at, tuple(refs))


def test_words_are_found_whole_and_whatever_their_case() -> None:
    assert reflective_words("Wait, WAIT: a mistake. But waiters checked butter.") == {"wait", "mistake", "but"}
    assert reflective_words("x" * 30_000 + " wait") == set(), "only the beginning of a very long text is read"
    assert len(WORDS) == 10


def test_scripts_are_counted_by_word_or_character() -> None:
    found = scripts("So 12 + 7 = 19, это верно. 所以答案 ひらカナ 한국어 말 שלום αβγ _")
    assert found == {"Latin": 1, "Cyrillic": 2, "Han": 4, "Kana": 4, "Hangul": 2, "Hebrew": 1, "Greek": 1}
    assert scripts("12 + 7 = 19!") == {}


def test_a_window_adds_up_to_shares() -> None:
    window = Window(2, 5)
    for text, finish in (("Wait, but no", "stop"), ("所以 so", "length"), ("123", "stop"), ("so", "stop")):
        window.count(finish)
        window.look_into(text)
    shares = window.shares()
    assert (shares.first, shares.last, shares.samples, shares.read, shares.cut) == (2, 5, 4, 4, 0.25)
    assert shares.reflective == 0.25 and shares.words["wait"] == 0.25 and shares.words["check"] == 0.0
    assert shares.consistency == pytest.approx((1 + 2 / 3 + 1) / 3), (
        "a response without words says nothing of languages"
    )
    assert shares.scripts == {"Latin": 5 / 7, "Han": 2 / 7}


def test_ages_lengths_and_texts_of_trained_samples_alone(made: Handmade, tmp_path: Path) -> None:
    made.sample("p-6@0", 0, tokens=50)  # outstanding: not trained
    made.manifest(4, told(made, "p-7@0", "Wait, that is wrong.", "所以 so", finish="length"), state=made.state("p-6@0"))
    found = report(made, tmp_path)
    staleness, length = found.histograms
    assert (staleness.early, staleness.late) == ({1: 6, 0: 2}, {3: 2})
    assert (length.early, length.late) == ({3: 8}, {3: 2})
    assert [(w.first, w.last, w.samples, w.cut) for w in found.texts] == [
        (2, 2, 4, 0.0),
        (3, 3, 4, 0.0),
        (4, 4, 2, 1.0),
    ]
    assert found.texts[2].words["wrong"] == 0.5 and found.texts[0].reflective == 0.0
    assert found.texts[2].scripts == {"Latin": 5 / 7, "Han": 2 / 7}
    assert found.audit["trained"] == 5 and found.dropped == {"stale": 1, "dead_letter": 1} and not found.problems


def test_samples_that_are_gone_are_left_out(made: Handmade, tmp_path: Path) -> None:
    run_before = report(made, tmp_path)
    for partition, end in made.log.ends(made.topics.trajectories).items():
        made.log.trim(made.topics.trajectories, {partition: end})
    found = report(made, tmp_path)
    assert run_before.texts and not found.texts and not found.samples
    assert found.histograms[0].early == {} and found.problems, "the audit says what is missing"


def test_best_worst_and_disputed_samples_are_shown_once_each(made: Handmade, tmp_path: Path) -> None:
    torn = told(made, "p-8@0", "all like it", "nobody likes it", votes=(2.0, -2.0))
    at, where = made.prompt("p-9@0"), made.sample("p-9@0", 0)
    split = tuple(VoteRef(n, made.vote("p-9@0", 0, n, value=v)) for n, v in (("accuracy", 0.0), ("format", 1.0)))
    made.manifest(4, torn, GroupRef("p-9@0", at, (SampleRef(0, where, split),)), state=made.state("p-6@0"))
    shown = report(made, tmp_path).samples
    assert [s.period for s in shown] == sorted(s.period for s in shown) and {s.period for s in shown} == {
        "early",
        "late",
    }
    assert len({s.title for s in shown}) == len(shown)
    late = [s for s in shown if s.period == "late"]
    assert (late[0].chosen, late[0].reward, late[0].text) == ("best; group differs by 6", 3.0, "all like it")
    worst = [s for s in late if s.chosen.startswith("worst")]
    assert worst[0].text == "nobody likes it" and worst[0].reward == -3.0
    (disputed,) = [s for s in late if "rewarders differ" in s.chosen]
    assert disputed.chosen.endswith("rewarders differ by 1") and "p-9@0#0" in disputed.title
    assert "staleness" in late[0].facts and "reference answer 4" in late[0].facts


def test_a_group_that_is_torn_is_shown_by_its_ends(made: Handmade) -> None:
    groups = [told(made, f"p-1{n}@0", f"best {n}", f"worst {n}", votes=(5.0, 4.9)) for n in range(3)]
    torn = told(made, "p-20@0", "high", "low", votes=(4.5, 4.95))
    manifest = made.manifest(4, *groups, torn, state=made.state())
    shown = {s.text: s.chosen for s in showcase(made.log, made.topics, [manifest])}
    assert shown["high"].endswith("group differs by 0.675") and shown["low"].endswith("group differs by 0.675")
    assert shown["best 0"] == "best"


def test_passwords_stay_at_home(made: Handmade, tmp_path: Path) -> None:
    run, audit = made.run(tmp_path), verify(made.log, made.topics)
    with (tmp_path / "run.toml").open("a") as file:
        file.write(
            '# kafka://me:hunter2@host:1?sasl_plain_password=hunter3&x=1\nsecret = "hunter4"\nmax_new_tokens = 7\n'
        )
    config = report_of(made.log, run, {}, audit).config
    assert "hunter" not in config and "max_new_tokens = 7" in config and "@host:1" in config and "&x=1" in config


@pytest.mark.long
def test_a_vote_that_nobody_could_give_is_told(made: Handmade, tmp_path: Path) -> None:
    at, where = made.prompt("p-30@0"), made.sample("p-30@0", 0)
    vote = Vote("p-30@0", 0, "format", "abstain", None, "<b>no</b> opinion")
    votes = (
        VoteRef("accuracy", made.vote("p-30@0", 0, "accuracy")),
        VoteRef("format", made.write(made.topics.rewards, vote)),
    )
    made.manifest(4, GroupRef("p-30@0", at, (SampleRef(0, where, votes),)), state=made.state("p-6@0"))
    summary, _ = write_report(made.run(tmp_path), 3.0)
    page = (tmp_path / "report.html").read_text()
    assert "abstain &lt;b&gt;no&lt;/b&gt; opinion" in page and json.dumps(summary)
