"""The log between the daemons: who is behind, what could not be used, and whether it can be reached."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import ANY_HOST, Query, above, below, graph, number, or_zero
from monitoring.metrics import BrokerMetrics as Broker
from monitoring.metrics import RunMetrics as Run

LAG = f"sum by (group, topic) ({Run.lag}{{{ANY_HOST}}})"


def dashboard() -> Dashboard:
    return new(
        "headrace-log",
        "Log",
        "The durable log: lag, age, failures, traffic and room.",
        [_glance(), _lag(), _traffic()],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            [
                number(
                    "Daemons without the log", "none",
                    "Daemons that cannot reach the log at this moment; they wait for it. If it stays above zero, "
                    "start or repair the broker: nothing is lost meanwhile.",
                    Query(f"sum({Broker.unavailable})", "waiting"), above(1),
                ),
                number(
                    "Largest lag", "none",
                    "Most records that any group is behind on any topic. If it grows without end, that group's "
                    "daemons are too slow or gone.",
                    Query(f"max({LAG})", "lag"), above(1000, 10000),
                ),
                number(
                    "Dead letters", "none",
                    "Records kept in the dead letters. Any is worth a look: `headrace broker dlq list` tells what was "
                    "wrong with each.",
                    Query(f"max({Run.dead_letters}{{{ANY_HOST}}})", "kept"), above(1, 100),
                ),
                number(
                    "Room on the run's disk", "percentunit",
                    "Free share of the disk with the run's directory, where SQLite's log lives. A full disk stops the "
                    "run: free some, and the same command resumes.",
                    Query(f"min({Run.disk_free} / {Run.disk_size})", "free"), below(0.15, 0.05),
                ),
            ]
        ],
    )  # fmt: skip


def _lag() -> Row:
    return Row(
        "Consumers",
        [
            [
                graph(
                    "Lag, by group and topic",
                    "none",
                    "Records behind the committed offsets of each group. A rising line names the role that limits the "
                    "run: give it more daemons or processes.",
                    Query(LAG, "{{group}}: {{topic}}"),
                    limits=above(1000, 10000),
                ),
                graph(
                    "Age of the oldest record under way",
                    "s",
                    "Age of the oldest record that a daemon has taken and not finished. If it rises steadily, one "
                    "record hangs: its daemon's log names the group.",
                    Query(f"max by (daemon, topic) ({Broker.oldest_age})", "{{daemon}}: {{topic}}"),
                    limits=above(300, 1800),
                ),
            ]
        ],
    )


def _traffic() -> Row:
    return Row(
        "Traffic and failures",
        [
            [
                graph(
                    "Bytes written, by role", "Bps",
                    "Bytes of records that each role appends. If it falls to zero for a role that is up, the role "
                    "waits or cannot write: see the failures.",
                    Query(f'sum by (role) (rate({Broker.bytes}{{direction="out"}}[]))', "{{role}}"),
                ),
                graph(
                    "Bytes read, by role", "Bps",
                    "Bytes of records that each role takes. Far more than is written means that the same records are "
                    "read again and again: look for restarts and redeliveries.",
                    Query(f'sum by (role) (rate({Broker.bytes}{{direction="in"}}[]))', "{{role}}"),
                ),
                graph(
                    "Log out of reach, by daemon", "none",
                    "1 while a daemon cannot reach the log. One daemon alone has a network of its own to repair; all "
                    "at once is the broker.",
                    Query(f"max by (daemon) ({Broker.unavailable})", "{{daemon}}"),
                    limits=above(1), most=1.0,
                ),
            ],
            [
                graph(
                    "Appends that failed", "none",
                    "Failed appends within the window, by topic and reason. LogFull asks for room on the disk; "
                    "LogUnavailable for a look at the broker.",
                    Query(or_zero(f"sum by (topic, reason) (increase({Broker.produce_errors}[]))", "topic", "reason"),
                          "{{topic}}: {{reason}}"),
                    limits=above(1, 10),
                ),
                graph(
                    "Dead letters, by daemon", "none",
                    "Records that each daemon put into the dead letters within the window. If it repeats, some client "
                    "writes what others cannot read: the dead letters name it.",
                    Query(f"sum by (daemon) (increase({Broker.dead_letters}[]))", "{{daemon}}"), limits=above(1, 10),
                ),
                graph(
                    "Free space on the run's disk", "bytes",
                    "Bytes free on the disk with the run's directory. If the line falls straight, it says when the "
                    "disk will be full: trim the log with `headrace broker trim` or keep fewer checkpoints.",
                    Query(Run.disk_free, "{{host}}"),
                ),
            ],
        ],
    )  # fmt: skip
