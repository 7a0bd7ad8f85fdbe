"""A ring in simulated time: as slow as its slowest role, by the learner's own planner; and rates are measured as they were given."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from broker.errors import RunFault, RunFileError
from broker.runfile import RunFile
from headrace.__main__ import main
from headrace.running.runfile import WholeRun, check
from headrace.simulation.observed import observed
from headrace.simulation.rates import Lengths, Rates, measured
from headrace.simulation.ring import Simulation, forecast

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "simulation" / "run.toml"
STEP, GROUP = 64, 8  # samples of a step, and of a group
RATES = Rates(
    decode_step=0.002, decode_sample=0.0001, learner_token=0.0005, fresh=0.1, judge={"judge": 0.0005}, judge_wait=0.005,
    lengths=Lengths(20.0, 0.0, 30),
)  # fmt: skip


def whole(*settings: str) -> WholeRun:
    return check(RunFile.read(FILE, settings))


def test_a_ring_is_as_slow_as_its_learner() -> None:
    found = forecast(whole(), RATES, steps=20)
    assert found.step_seconds == pytest.approx(STEP * 20 * RATES.learner_token, rel=0.03)
    assert found.slowest == "learner" and found.waits["learner"] < 0.03
    assert (found.staleness_mean, found.staleness_max) == (4.0, 4), "everything is sampled long before it is trained"


@pytest.mark.long
def test_a_ring_is_as_slow_as_its_rewarder() -> None:
    rates = RATES.with_given({"judge.judge": 0.03})
    one = forecast(whole(), rates, steps=12)
    assert one.step_seconds == pytest.approx(STEP * (0.03 + rates.judge_each), rel=0.03) and one.slowest == "judge"
    two = forecast(whole("rewarders.judge.workers=2"), rates, steps=12)
    assert two.step_seconds == pytest.approx(one.step_seconds / 2, rel=0.2), "two workers share the partitions"


@pytest.mark.long
def test_a_ring_is_as_slow_as_its_actors() -> None:
    found = forecast(whole("actors.slots=2"), RATES, steps=12)
    assert found.step_seconds == pytest.approx(STEP / 2 * 20 * (0.002 + 2 * 0.0001), rel=0.05)
    assert found.slowest == "actors" and found.staleness_mean < 2
    more = forecast(whole("actors.slots=2", "actors.count=2"), RATES, steps=12)
    assert more.step_seconds < 0.65 * found.step_seconds


def test_without_lag_the_roles_wait_for_each_other_and_no_sample_is_old() -> None:
    found = forecast(whole("learner.max_lag=0"), RATES, steps=10)
    ahead = forecast(whole(), RATES, steps=10)
    assert found.staleness_max == 0 and found.step_seconds > 1.2 * ahead.step_seconds
    assert min(found.waits.values()) > 0.1


@pytest.mark.long
def test_groups_without_variance_are_dropped_as_the_learner_drops_them() -> None:
    found = forecast(whole("learner.drop_zero_variance=true"), RATES.with_given({"flat": 0.5}), steps=15)
    assert 4 < found.dropped["zero_variance"] < 14, "about as many as are trained, eight a step"


@pytest.mark.long
def test_rates_that_are_measured_in_a_run_are_those_that_it_was_played_by() -> None:
    played = RATES.with_given({"length": 20, "spread": 0.7, "learner_step": 0.1, "judge.judge": 0.002})
    simulation = Simulation(whole("actors.slots=24"), 1, played, 30, 0)
    found = simulation.run()
    rates = measured(simulation.log, simulation.topics)
    for name in ("decode_step", "decode_sample", "learner_token"):
        assert getattr(rates, name) == pytest.approx(getattr(played, name), rel=0.25), name
    assert rates.judgement("judge") == pytest.approx(0.002 + played.judge_each, rel=0.2) and rates.judge_each == 0
    assert rates.lengths.mean == pytest.approx(20, rel=0.1)
    seen = observed(simulation.log, simulation.topics)
    assert seen.step_seconds == pytest.approx(found.step_seconds, rel=0.05)
    judging = 0.002 / (0.002 + played.judge_each)  # what a judgement costs beside is in no record
    for role, share in found.waits.items():
        expected = 1 - (1 - share) * judging if role == "judge" else share
        assert seen.waits[role] == pytest.approx(expected, abs=0.12), role
    assert sum(seen.written.values()) == pytest.approx(sum(found.written.values()), rel=0.1)
    again = forecast(whole("actors.slots=24"), rates, steps=30, seed=1)
    assert again.step_seconds == pytest.approx(found.step_seconds, rel=0.1)
    other = forecast(whole("actors.slots=3"), rates, steps=15, seed=1)
    assert other.step_seconds == pytest.approx(
        forecast(whole("actors.slots=3"), played, steps=15).step_seconds, rel=0.15
    )


def test_a_simulation_is_the_same_every_time() -> None:
    rates = RATES.with_given({"spread": 0.7})
    assert forecast(whole(), rates, steps=8) == forecast(whole(), rates, steps=8)


def test_lengths_are_those_that_were_asked_for() -> None:
    rng = Random(1)
    drawn = [n for _ in range(300) for n in Lengths(200.0, 0.6).group(rng, 8, 10_000)[1]]
    assert sum(drawn) / len(drawn) == pytest.approx(200, rel=0.05)
    assert max(Lengths(200.0, 2.0).group(rng, 500, 256)[1]) == 256
    recorded = Lengths(groups=((7, (3, 5)),))
    assert recorded.group(rng, 4, 4)[0] == 7 and set(recorded.group(rng, 40, 4)[1]) == {3, 4}


def test_the_command_says_what_it_was_given_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--rates", "decode_step=.002", "--rates", "learner_token=0.0005", "--rates", "length=20", "--steps", "5")
    assert main(["plan", str(FILE), "--simulate", *given]) == 0
    said = capsys.readouterr().out
    assert "simulated 5 steps of stage rl" in said and "slowest" in said and "MB/s written" in said
    assert main(["plan", str(FILE), "--simulate", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["forecast"]["steps"] == 5
    for arguments, words in (
        (("--simulate",), "--like RUN"),
        (("--simulate", *given, "--rates", "decode_stp=1"), "did you mean 'decode_step'"),
        (("--simulate", *given, "--rates", "fresh=soon"), "a number of at least 0"),
        (("--simulate", *given, "--steps", "0"), "at least 1"),
        (("--rates", "fresh=1"), "go with --simulate"),
    ):
        assert main(["plan", str(FILE), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_run_without_reinforcement_cannot_be_simulated(tmp_path: Path) -> None:
    with pytest.raises(RunFault, match="only an RL stage"):
        forecast(whole(), RATES, stage=0)
    with pytest.raises(RunFileError, match="is no run"):
        from headrace.running.rundir import reopen

        reopen(tmp_path)
