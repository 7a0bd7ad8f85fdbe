"""The actors: how fast each samples, from which version, and what is lost on the way."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import ANY_HOST, Query, above, graph, heatmap, number, or_zero, quantiles
from monitoring.metrics import ActorMetrics as Actor
from monitoring.metrics import LearnerMetrics as Learner
from monitoring.metrics import SystemMetrics as System

NEWEST = f'max by (run) ({Learner.weight_version}{{role="learner",{ANY_HOST}}})'
VERSION = f'max by (run, daemon) ({Actor.weight_version}{{role="actor"}})'


def dashboard() -> Dashboard:
    return new(
        "headrace-actors",
        "Actors",
        "What each actor samples, from which weights, and how long it takes.",
        [_glance(), _sampling(), _weights()],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            [
                number(
                    "Generated", "si:tok/s",
                    "Response tokens that all actors sample in a second. If it is low while actors do not wait, the "
                    "engine is slow: look at the SGLang dashboard or at the processor.",
                    Query(f"sum(rate({Actor.generated_tokens}[]))", "generated"),
                ),
                number(
                    "Under way", "none",
                    "Samples that are being generated now. If it is far below slots times actors, prompts are "
                    "missing: raise the learner's credits.",
                    Query(f"sum({Actor.inflight})", "under way"),
                ),
                number(
                    "Farthest behind", "none",
                    "Versions between the learner's newest policy and what the slowest actor samples from. Beyond "
                    "max_lag its work is thrown away: look at the weight updates.",
                    Query(f"max({NEWEST} - on (run) group_right () {VERSION})", "behind"), above(4, 16),
                ),
                number(
                    "Prefix cache", "percentunit",
                    "Share of prompt tokens that engines took from their cache. With groups of n samples it should be "
                    "near (n-1)/n; if it is near zero, samples of a group are spread over servers.",
                    Query(f"sum(rate({Actor.cached_prompt_tokens}[])) / sum(rate({Actor.prompt_tokens}[]))", "cached"),
                ),
            ],
        ],
    )  # fmt: skip


def _sampling() -> Row:
    return Row(
        "Sampling",
        [
            [
                graph(
                    "Tokens, by actor", "si:tok/s",
                    "Response tokens that each actor samples in a second. One that is far below its like shares its "
                    "machine or is out of prompts.",
                    Query(f"sum by (daemon) (rate({Actor.generated_tokens}[]))", "{{daemon}}"),
                    stacked=True,
                ),
                graph(
                    "Samples under way, by actor", "none",
                    "Samples that each actor generates at this moment. If it is zero while the actor is up, the actor "
                    "waits: the panel beside says for what.",
                    Query(f"sum by (daemon) ({Actor.inflight})", "{{daemon}}"),
                    stacked=True,
                ),
                graph(
                    "Slots, by actor", "none",
                    "Samples that each actor keeps in flight at most, for each of its servers. With adaptive slots it follows "
                    "the engine: if it keeps falling, answers grow or the cache is small.",
                    Query(f"{Actor.slots}", "{{daemon}}"),
                ),
                graph(
                    "Waiting, by actor and reason", "percentunit",
                    "Share of its time that each actor waits. `no_prompts` asks for more credits, `no_policy` for a "
                    "look at the learner, which has not published any weights.",
                    Query(f'sum by (daemon, reason) (rate({System.idle_seconds}{{role="actor"}}[]))', "{{daemon}}: {{reason}}"),
                    limits=above(0.5),
                    most=1.0,
                ),
            ],
            [
                graph(
                    "Time to a finished sample", "s",
                    "Quantiles of the seconds from a sample's admission to its end. If the upper ones run away from "
                    "the median, few long answers hold up their groups: limit max_new_tokens or over-sample.",
                    *quantiles(Actor.generation_seconds),
                ),
                heatmap(
                    "Times to a finished sample", "s",
                    "How many samples took how long, a row a bucket. A second cloud at the top is a tail that makes "
                    "whole groups wait.",
                    Actor.generation_seconds,
                ),
                graph(
                    "Samples that were aborted, by reason", "suffix:/s",
                    "Samples in a second that did not end by themselves. `update` is the price of aborting at new "
                    "weights: choose another update mode; `invalid` is an engine that gives impossible numbers.",
                    Query(or_zero(f"sum by (reason) (rate({Actor.aborted}[]))", "reason"), "{{reason}}"),
                    stacked=True,
                ),
            ],
            [
                graph(
                    "Calls of environments under way, by actor", "none",
                    "How many calls of environments wait for their answer on average. If it comes near processes times "
                    "threads of [environments.NAME], episodes wait for each other there: give it more.",
                    Query(f"sum by (daemon) (rate({Actor.environment_seconds.sum}[]))", "{{daemon}}"),
                    stacked=True,
                ),
                graph(
                    "Answers of environments, by actor", "suffix:/s",
                    "How many calls of environments are answered in a second. If it falls while calls are under way, "
                    "what the environment waits for has become slow.",
                    Query(f"sum by (daemon) (rate({Actor.environment_seconds.count}[]))", "{{daemon}}"),
                    stacked=True,
                ),
            ],
        ],
    )  # fmt: skip


def _weights() -> Row:
    return Row(
        "Weights",
        [
            [
                graph(
                    "Versions behind the learner, by actor", "none",
                    "How much older than the newest policy the weights are that each actor samples from. If one stays "
                    "behind, it does not receive: look at the evictions on the Learner dashboard.",
                    Query(f"{NEWEST} - on (run) group_right () {VERSION}", "{{daemon}}"),
                    limits=above(4, 16), least=None,
                ),
                graph(
                    "Taking in weights", "s",
                    "Quantiles of the seconds in which an actor takes in a set of weights. If they come close to "
                    "push_timeout, the actor will be evicted: look at its network.",
                    *quantiles(Actor.update_seconds, shares=(0.5, 0.9)),
                ),
                graph(
                    "Prefix cache, by actor", "percentunit",
                    "Share of prompt tokens that each engine took from its cache. If it falls with every new version, "
                    "the cache is flushed at updates, as it must be.",
                    Query(f"sum by (daemon) (rate({Actor.cached_prompt_tokens}[])) / "
                          f"sum by (daemon) (rate({Actor.prompt_tokens}[]))", "{{daemon}}"),
                    most=1.0,
                ),
            ],
        ],
    )  # fmt: skip
