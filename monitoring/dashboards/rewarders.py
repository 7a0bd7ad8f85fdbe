"""The rewarders: how fast they judge, what they give, and whether they agree."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import Query, above, graph, heatmap, number, or_zero, quantiles
from monitoring.metrics import LearnerMetrics as Learner
from monitoring.metrics import RewarderMetrics as Rewarder

MEAN = f"avg by (rewarder) ({Rewarder.mean})"
FAILURES = f"sum by (rewarder, cause) (rate({Rewarder.causes}[]))"
ERRORS = f'sum(rate({Rewarder.results}{{outcome="error"}}[]))'


def dashboard() -> Dashboard:
    return new(
        "headrace-rewarders",
        "Rewarders",
        "Speed, outcomes and values of each rewarder, and how far they are apart.",
        [_glance(), _work(), _failures(), _values()],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            [
                number(
                    "Verdicts", "suffix:/s",
                    "Samples judged in a second by all rewarders. If it is below what the actors finish, the lag of "
                    "the trajectories grows: raise the rewarder's processes.",
                    Query(f"sum(rate({Rewarder.results}[]))", "verdicts"),
                ),
                number(
                    "Errors", "percentunit",
                    "Share of verdicts that are errors; their samples leave their groups. If it is above a few "
                    "percent, the rewarder is broken: its log names the exception.",
                    Query(f"({or_zero(ERRORS)}) / sum(rate({Rewarder.results}[]))", "errors"), above(0.01, 0.1),
                ),
                number(
                    "Sandboxes that fail", "none",
                    "Rewarders whose sandbox fails its self-test. While it is above zero, code of the model is not "
                    "run or not safely: look at the rewarder's log before going on.",
                    Query(f"sum({Rewarder.degraded})", "degraded"), above(1),
                ),
                number(
                    "Spread of the means", "none",
                    "Largest minus smallest recent mean of the rewarders. If it grows over a run, the policy learns "
                    "what one of them likes and another does not.",
                    Query(f"max({MEAN}) - min({MEAN})", "spread"), above(0.5, 0.8),
                ),
            ]
        ],
    )  # fmt: skip


def _work() -> Row:
    return Row(
        "Work",
        [
            [
                graph(
                    "Time of a judgement", "s",
                    "Quantiles of the seconds that a judgement takes. If the upper ones come close to the rewarder's "
                    "timeout, its processes will be ended and started again.",
                    *quantiles(Rewarder.latency, "rewarder"), logarithmic=True,
                ),
                heatmap(
                    "Times of judgements", "s",
                    "How many judgements took how long, a row a bucket. A cloud at the top is a kind of answer that "
                    "the rewarder is slow on, perhaps one that the policy has found.",
                    Rewarder.latency,
                ),
                graph(
                    "Verdicts, by outcome", "suffix:/s",
                    "Values, abstentions and errors in a second. If errors or abstentions take over, groups are "
                    "dropped as unjudged: read the reasons with `headrace trace`.",
                    Query(f"sum by (rewarder, outcome) (rate({Rewarder.results}[]))", "{{rewarder}}: {{outcome}}"),
                    stacked=True,
                ),
            ],
        ],
    )  # fmt: skip


def _failures() -> Row:
    return Row(
        "When judges fail",
        [
            [
                graph(
                    "Judging processes started again", "none",
                    "Processes that were ended, for time, memory or a crash, and started again within the window. If "
                    "it repeats, some answers break the rewarder: raise its limits or mend it.",
                    Query(f"sum by (rewarder) (increase({Rewarder.restarts}[]))", "{{rewarder}}"), limits=above(1, 10),
                ),
                graph(
                    "Out of order", "none",
                    "1 while what a rewarder asks is away and it holds its samples. No deadline of its groups runs meanwhile: bring "
                    "the server back, and it goes on by itself.",
                    Query(f"max by (rewarder) ({Rewarder.outage})", "{{rewarder}}"),
                    limits=above(1), most=1.0,
                ),
                graph(
                    "Judge failures, by cause", "suffix:/s",
                    "Verdicts in a second behind a time-out, a kill, an error or an outage of the judge. Time-outs and kills that "
                    "grow are answers that the judge does not survive: look whether the policy has found them.",
                    Query(or_zero(FAILURES, "rewarder", "cause"), "{{rewarder}}: {{cause}}"),
                    stacked=True,
                ),
            ],
            [
                graph(
                    "Sandbox", "none",
                    "1 while the sandbox of a rewarder fails its self-test. It needs kernel features that containers "
                    "may forbid: the rewarder's log says which.",
                    Query(f"max by (rewarder) ({Rewarder.degraded})", "{{rewarder}}"),
                    limits=above(1), most=1.0,
                ),
                graph(
                    "Records passed over", "suffix:/s",
                    "Records in a second that a rewarder has no verdict to give on. Where every prompt names it this "
                    "should be zero: compare the mixes in the run file.",
                    Query(f"sum by (rewarder) (rate({Rewarder.skipped}[]))", "{{rewarder}}"),
                ),
            ],
        ],
    )  # fmt: skip


def _values() -> Row:
    return Row(
        "Values",
        [
            [
                graph(
                    "Recent mean", "none",
                    "Moving mean of the values that each rewarder gave. One that is stuck at its lowest or highest "
                    "value teaches nothing: its task is too hard, too easy, or it is broken.",
                    Query(MEAN, "{{rewarder}}"),
                    least=None,
                ),
                heatmap(
                    "Values given", "none",
                    "How many values fell where, over all rewarders, a row a bucket. If everything is in one row, "
                    "there is no difference to learn from.",
                    Rewarder.reward,
                ),
                graph(
                    "Reward against accuracy", "none",
                    "By how much a rewarder's mean has risen over the last evaluations while held-out accuracy or a shadow has "
                    "fallen. Above zero the policy may be gaming it: read samples that it likes.",
                    Query(or_zero(f"max by (rewarder) ({Learner.reward_gap})", "rewarder"), "{{rewarder}}"), limits=above(0.15, 0.5),
                ),
                graph(
                    "Agreement", "none",
                    "Recent mean of each rewarder minus the mean of all. If one drifts away from the others over a "
                    "run, it is being gamed, or measures something else: look at samples that it gave high values.",
                    Query(f"{MEAN} - on () group_left () avg({MEAN})", "{{rewarder}}"),
                    least=None,
                ),
            ]
        ],
    )  # fmt: skip
