"""The views of ``headrace top`` from a run's state made by hand, as text; and the pages that show them."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from monitoring.keys import LEFT, RIGHT
from monitoring.screen import PlainPages, Screen, print_once, turned
from monitoring.view import PAGES, DaemonView, LetterView, QueueView, RunView, SampleView, StepView
from monitoring.views import VIEWS, draw

HOSTILE = "[red]</x>\x1b[2J\x07\u202e\nsecond line " + "z" * 50_000


def run_view(hostile: str = "") -> RunView:
    steps = [
        StepView(n + 1, "zero", n, {"reward_mean": n / 100, "staleness_mean": 1.5, "step_seconds": 2.0})
        for n in range(1, 31)
    ]
    steps[-1].metrics |= {"response_length_mean": 812.4, "entropy": 0.345, "grad_norm": 0.0123}
    return RunView(
        "tiny" + hostile, "zero (rl)" + hostile, 2, 4, 30, 40, 31, 75.0, {"reward_mean": 0.3}, queues={"prompts" + hostile: 3},
        evaluations=[("before" + hostile, 0.2, 0.1, 0.3)],
        daemons=[
            DaemonView("actor-0" + hostile, "actor", 41, "running", 2, 31, 1234.5, "tok/s", 17, 64, 0.914),
            DaemonView("accuracy-0", "rewarder", 0, "gone"),
        ],
        notes=["waiting for the log" + hostile] if hostile else [],
        history=steps, letters_waiting=4,
        lags=[QueueView("actors", "prompts", 1200, 65.0), QueueView("rewarder.format" + hostile, "trajectories", 0)],
        letters=[LetterView(7, 0.0, "rewards[1] 55", "sums-3@2", "learner-0", "no vote" + hostile, "replayed")],
        samples=[SampleView("step 31  sums-3@2#0" + hostile, 1.2, "accuracy=1 (equal)" + hostile, "<think>\nhm\n</think>" + hostile)],
    )  # fmt: skip


def text_of(name: str, view: RunView, width: int = 120) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(draw(name, view))
    return out.getvalue()


def test_every_view_says_what_it_is_for() -> None:
    view = run_view()
    expected = {
        "overview": ("30/40", "reward 0.300", "prompts 3", "actor-0 (2 restarts)"),
        "daemons": ("actor-0", "41", "31", "1,234.5 tok/s", "17", "64", "91%", "accuracy-0"),
        "queues": ("actors", "1,200", "1:05", "rewarder.format", "dead letters waiting: 4"),
        "steps": ("0.300", "812", "0.345", "0.0123", "2.00", "1.50"),
        "letters": ("rewards[1] 55", "sums-3@2", "learner-0", "no vote", "replayed"),
        "samples": ("1.200", "step 31  sums-3@2#0", "accuracy=1 (equal)", "<think> hm </think>"),
        "help": ("3  queues", "q  leave"),
    }
    assert expected.keys() == VIEWS.keys()
    for name, words in expected.items():
        text = text_of(name, view)
        assert text.startswith("tiny  stage 3/4 zero (rl)  1:15")
        assert [w for w in words if w not in text] == [], name


def test_the_newest_twenty_steps_come_first() -> None:
    lines = text_of("steps", run_view()).splitlines()[2:]
    assert [int(line.split()[2]) for line in lines] == list(range(30, 10, -1))
    assert lines[1].split() == ["30", "zero", "29", "0.290", "-", "1.50", "-", "-", "-", "2.00"], (
        "what is not known is a dash"
    )


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("width", [40, 100])
def test_hostile_texts_drive_no_terminal(name: str, width: int) -> None:
    text = text_of(name, run_view(HOSTILE), width)
    assert not set(text) & set("\x1b\x07\u202e") and len(text) < 20_000
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize("name", VIEWS)
def test_a_run_that_has_not_begun_has_every_view(name: str) -> None:
    assert "fresh" in text_of(name, RunView("fresh"))


def test_keys_turn_the_pages() -> None:
    assert [turned("overview", str(n)) for n in range(1, 7)] == list(PAGES)
    assert turned("overview", "7") == turned("overview", "0") == turned("overview", "x") == "overview"
    assert (turned("overview", LEFT), turned("samples", RIGHT), turned("steps", "\t")) == (
        "samples",
        "overview",
        "letters",
    )
    assert (turned("steps", "h"), turned("help", "h", "steps"), turned("help", RIGHT, "steps")) == (
        "help",
        "steps",
        "letters",
    )


def test_the_screen_shows_what_was_pressed_and_gives_the_terminal_back() -> None:
    out = io.StringIO()
    screen = Screen(Console(file=out, width=100, height=40, force_terminal=True), "overview", keys=True)
    screen.open()
    screen.update(run_view())
    for key, word in (("5", "no vote"), ("h", "q  leave"), ("h", "no vote"), ("2", "tok/s")):
        before = len(out.getvalue())
        screen.press(key)
        assert word in out.getvalue()[before:], key
    screen.close()
    screen.close()
    assert out.getvalue().count("\x1b[?1049h") == out.getvalue().count("\x1b[?1049l") == 1
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


def test_plain_pages_and_one_look() -> None:
    out = io.StringIO()
    pages = PlainPages(Console(file=out, width=100), "queues")
    pages.update(run_view())
    pages.update(run_view())
    assert out.getvalue().count("dead letters waiting: 4") == 1 and "\x1b" not in out.getvalue(), "not again at once"
    once = io.StringIO()
    print_once(run_view(), ["steps", "letters"], Console(file=once, width=100))
    assert once.getvalue().index("grad norm") < once.getvalue().index("rewards[1] 55")
    line = io.StringIO()
    print_once(run_view(), [], Console(file=line, width=100))
    held_out, state = line.getvalue().splitlines()
    assert held_out.startswith("held-out before: pass@1 0.200") and state.startswith("[1:15] stage 3/4")
