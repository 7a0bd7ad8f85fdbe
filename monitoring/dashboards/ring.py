"""The run as a whole: does it learn, how fast, who waits for whom, and who is alive."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import (
    ANY_HOST,
    Query,
    above,
    below,
    graph,
    heatmap,
    number,
    or_zero,
    quantiles,
    states,
)
from monitoring.metrics import ActorMetrics as Actor
from monitoring.metrics import LearnerMetrics as Learner
from monitoring.metrics import RunMetrics as Run
from monitoring.metrics import SystemMetrics as System

SPENT = f"(sum by (role) (rate({System.idle_seconds}[])) + sum by (role) (rate({System.busy_seconds}[])))"


def dashboard() -> Dashboard:
    return new(
        "headrace-ring",
        "Ring",
        "One run at a glance: learning, throughput, waiting, staleness, groups, and the daemons themselves.",
        [_glance(), _throughput(), _staleness(), _groups(), _daemons()],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            [
                number(
                    "Held-out pass@1", "percentunit",
                    "Share of held-out questions answered right in the last evaluation. If it falls while the reward "
                    "rises, the policy games a rewarder: look at the Rewarders dashboard and at samples with "
                    "`headrace trace`.",
                    Query(f"max({Learner.pass_at_1})", "pass@1"), empty="no evaluation yet",
                ),
                number(
                    "Reward", "none",
                    "Mean reward of the groups of the last step. If it stays flat for hundreds of steps, look at the "
                    "share of groups without variance on the Learner dashboard: the questions may be too hard or too "
                    "easy.",
                    Query(f"max({Learner.reward_mean})", "reward"),
                ),
                number(
                    "Since the last step", "s",
                    "Seconds since an optimizer step ended. If it is many times a usual step, the learner waits or "
                    "hangs: its idle time below says for what.",
                    Query(f"time() - (max({Learner.last_step}) > 0)", "since"), above(120, 600), "no step yet",
                ),
                number(
                    "Daemons down", "none",
                    "Daemons of the run that are not running. If it stays above zero, the supervisor's restarts fail: "
                    "read RUN/logs of the daemon that the panel on daemons names.",
                    Query(or_zero(f"count({Run.up}{{{ANY_HOST}}} == 0)"), "down"), above(1, 2),
                ),
                number(
                    "Dead letters", "none",
                    "Records that no daemon could use. Any is worth a look: `headrace broker dlq list` tells why each "
                    "was put there.",
                    Query(f"max({Run.dead_letters}{{{ANY_HOST}}})", "kept"), above(1, 100),
                ),
                number(
                    "Stage", "none",
                    "Index of the stage under way, counted from zero. If it does not move on at the step that the run "
                    "file names, evaluations may be outstanding: look at the outstanding groups.",
                    Query(f"max({Run.stage}{{{ANY_HOST}}})", "stage"),
                ),
            ],
        ],
    )  # fmt: skip


def _throughput() -> Row:
    return Row(
        "Throughput and waiting",
        [
            [
                graph(
                    "Tokens", "si:tok/s",
                    "Response tokens sampled and trained. If far more are sampled than trained, groups are dropped or "
                    "wait in the log: look at the groups by fate and at the lag on the Log dashboard.",
                    Query(f"sum(rate({Actor.generated_tokens}[]))", "generated"),
                    Query(f"sum(rate({Learner.tokens}[]))", "trained"),
                ),
                graph(
                    "Steps", "suffix:/min",
                    "Optimizer steps in a minute. If it falls to zero while daemons are up, the panel on waiting says "
                    "what the learner waits for.",
                    Query(f"60 * sum(rate({Learner.steps}[]))", "steps"),
                ),
                graph(
                    "Reward and held-out pass@1", "none",
                    "What is trained on and what is wanted. If they part, the reward is not what you want: stop, and "
                    "look at what the rewarders gave high values for.",
                    Query(Learner.reward_mean, "reward"),
                    Query(Learner.pass_at_1, "pass@1"),
                    Query(Learner.cons_at_k, "majority vote"),
                    least=None,
                ),
            ],
            [
                graph(
                    "Waiting, by role and reason", "percentunit",
                    "Share of its time that a role waits, and for what: the bubble. A waiting learner needs more "
                    "actors (wait_data), waiting actors need more credits or a faster learner (no_prompts).",
                    Query(f"sum by (role, reason) (rate({System.idle_seconds}[])) / on (role) group_left () {SPENT}",
                          "{{role}}: {{reason}}"),
                    limits=above(0.5),
                    most=1.0,
                ),
                graph(
                    "Working, by role", "percentunit",
                    "Share of its time that a role works, on average over its daemons. What is near one limits the "
                    "run: give that role more machines.",
                    Query(f"sum by (role) (rate({System.busy_seconds}[])) / on (role) {SPENT}", "{{role}}"),
                    most=1.0,
                ),
            ],
        ],
    )  # fmt: skip


def _staleness() -> Row:
    return Row(
        "Staleness",
        [
            [
                heatmap(
                    "Staleness of trained samples",
                    "none",
                    "Versions between the policy that sampled and the one that was trained, a row a bucket. If most "
                    "samples are near max_lag, the learner outruns the actors: lower the credits, or add actors.",
                    Learner.staleness,
                ),
                graph(
                    "Staleness against the limit",
                    "none",
                    "Quantiles of the staleness (interpolated within buckets), and the largest that is trained. Above "
                    "the limit nothing is trained; if the median is close to it, groups will be dropped as stale.",
                    *quantiles(Learner.staleness),
                    Query(f"max({Learner.max_lag})", "limit"),
                ),
            ]
        ],
    )


def _groups() -> Row:
    return Row(
        "Groups",
        [
            [
                graph(
                    "Groups that ended, by fate", "suffix:/min",
                    "Groups in a minute that were trained, dropped, dead-lettered or evaluated. If many are dropped, "
                    "work is thrown away: the panel beside says why.",
                    Query(f"60 * sum by (fate) (rate({Learner.groups}[]))", "{{fate}}"),
                    stacked=True,
                ),
                graph(
                    "Groups that were dropped, by reason", "suffix:/min",
                    "Groups in a minute that ended untrained. `stale` asks for fewer credits or more actors, "
                    "`deadline` and `unjudged` for a look at actors and rewarders, `zero_variance` for other "
                    "questions.",
                    Query(or_zero(f"60 * sum by (reason) (rate({Learner.dropped_groups}[]))", "reason"), "{{reason}}"),
                    stacked=True,
                ),
                graph(
                    "Outstanding groups against credits", "none",
                    "Groups that are fed and have not ended, and how many there may be. Always full means that the "
                    "learner limits; nearly empty means that prompts run out.",
                    Query(f"sum({Learner.outstanding})", "outstanding"),
                    Query(f"sum({Learner.credits})", "credits"),
                ),
            ]
        ],
    )  # fmt: skip


def _daemons() -> Row:
    return Row(
        "Daemons and machines",
        [
            [
                states(
                    "Who is alive",
                    "Each daemon, running or not. A red band that repeats is a crash loop: read the daemon's file in "
                    "RUN/logs.",
                    Query(f"max by (exported_daemon) ({Run.up}{{{ANY_HOST}}})", "{{exported_daemon}}"),
                    {"0": ("down", "red"), "1": ("up", "green")},
                ),
                graph(
                    "Restarts", "none",
                    "How often each daemon was started again within the window. One is an accident that the run "
                    "survives; a row of them is a fault that its log names.",
                    Query(f"sum by (exported_daemon) (increase({Run.restarts}{{{ANY_HOST}}}[]))", "{{exported_daemon}}"),
                    limits=above(1, 3),
                ),
            ],
            [
                graph(
                    "Memory", "bytes",
                    "Resident memory of each daemon. If it grows without end, the daemon leaks and will be killed by "
                    "the kernel: report it with the daemon's log.",
                    Query("process_resident_memory_bytes", "{{daemon}}"),
                ),
                graph(
                    "Processor", "none",
                    "Processor cores in use by each daemon. If the sum is the number of cores of a host, its daemons "
                    "slow each other down: spread them over more hosts.",
                    Query("rate(process_cpu_seconds_total[])", "{{daemon}}"),
                ),
                graph(
                    "Room on the run's disk", "percentunit",
                    "Free share of the disk with the run's directory. A full disk stops the run: remove old "
                    "checkpoints or runs, or trim the log with `headrace broker trim`.",
                    Query(f"{Run.disk_free} / {Run.disk_size}", "{{host}}"),
                    limits=below(0.15, 0.05), most=1.0,
                ),
            ],
        ],
    )  # fmt: skip
