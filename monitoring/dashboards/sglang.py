"""The SGLang servers, by their own metrics."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import Query, above, graph, heatmap, number, quantiles


def dashboard() -> Dashboard:
    return new(
        "headrace-sglang",
        "SGLang",
        "The inference servers of the actors, as they see themselves. Empty in a run with the local engine.",
        [_glance(), _load(), _latency()],
    )


def _glance() -> Row:
    return Row(
        "At a glance",
        [
            [
                number(
                    "Generation", "si:tok/s",
                    "Tokens that all servers decode in a second, as they say themselves. If it is low while requests "
                    "wait, look at the memory for tokens and at retractions.",
                    Query("sum(sglang:gen_throughput)", "generation"),
                ),
                number(
                    "Running", "none",
                    "Requests in the running batches of all servers. If it is far below slots times servers, the "
                    "actors do not get enough prompts.",
                    Query("sum(sglang:num_running_reqs)", "running"),
                ),
                number(
                    "Waiting", "none",
                    "Requests that wait for room in all servers. A queue that stays long says that actors hold more "
                    "slots than the servers can run at once.",
                    Query("sum(sglang:num_queue_reqs)", "waiting"), above(64, 512),
                ),
                number(
                    "Paused", "none",
                    "Requests that are paused for new weights. If it does not return to zero, an update of weights "
                    "hangs: look at the actor's log.",
                    Query("sum(sglang:num_paused_reqs)", "paused"),
                ),
                number(
                    "Memory for tokens in use", "percentunit",
                    "Share of the cache for keys and values in use on the fullest server. Near one, requests are "
                    "retracted and done again: lower the slots.",
                    Query("max(sglang:token_usage)", "in use"), above(0.9, 0.98),
                ),
                number(
                    "Prefix cache", "percentunit",
                    "Share of prompt tokens found in the cache, on average over the servers. With groups of n samples "
                    "it should be near (n-1)/n; near zero the samples of a group are spread over servers.",
                    Query("avg(sglang:cache_hit_rate)", "found"),
                ),
            ]
        ],
    )  # fmt: skip


def _load() -> Row:
    return Row(
        "Load",
        [
            [
                graph(
                    "Tokens of finished requests", "si:tok/s",
                    "Response tokens of the requests that ended, by server. One server far below its like gets fewer "
                    "prompts or shares its device.",
                    Query("sum by (daemon) (rate(sglang:generation_tokens_total[]))", "{{daemon}}"),
                    stacked=True,
                ),
                graph(
                    "Decoding", "si:tok/s",
                    "Tokens that each server decodes in a second, as it says itself. It dips at each update of "
                    "weights; if the dips are wide, updates take too long.",
                    Query("sum by (daemon) (sglang:gen_throughput)", "{{daemon}}"),
                    stacked=True,
                ),
                graph(
                    "Requests", "none",
                    "Requests that run, wait or are paused, by server. A queue beside a half-empty batch means that "
                    "memory, not slots, is the limit.",
                    Query("sum by (daemon) (sglang:num_running_reqs)", "{{daemon}} running"),
                    Query("sum by (daemon) (sglang:num_queue_reqs)", "{{daemon}} waiting"),
                    Query("sum by (daemon) (sglang:num_paused_reqs)", "{{daemon}} paused"),
                ),
            ],
            [
                graph(
                    "Memory for tokens", "percentunit",
                    "Share of the cache for keys and values in use, by server. Near one, requests are retracted and "
                    "done again: lower the slots or the context.",
                    Query("max by (daemon) (sglang:token_usage)", "{{daemon}}"),
                    limits=above(0.9, 0.98), most=1.0,
                ),
                graph(
                    "Prefix cache", "percentunit",
                    "Share of prompt tokens found in the cache, by server. If it falls to zero and stays there, the "
                    "cache is switched off or flushed all the time.",
                    Query("max by (daemon) (sglang:cache_hit_rate)", "{{daemon}}"),
                    most=1.0,
                ),
                graph(
                    "Retracted requests", "none",
                    "Requests that were thrown out of the running batch for want of memory, by server. They are "
                    "computed again: if it is often above zero, lower the slots.",
                    Query("sum by (daemon) (sglang:num_retracted_reqs)", "{{daemon}}"), limits=above(1, 10),
                ),
            ],
        ],
    )  # fmt: skip


def _latency() -> Row:
    return Row(
        "Latency",
        [
            [
                graph(
                    "Time to the first token",
                    "s",
                    "Quantiles of the seconds from a request to its first token. If they grow while tokens flow, "
                    "requests queue: there are more slots than room.",
                    *quantiles("sglang:time_to_first_token_seconds", "daemon", (0.5, 0.99)),
                ),
                graph(
                    "Time between tokens",
                    "s",
                    "Quantiles of the seconds between two tokens of a request. If they grow with the batch, the "
                    "device is saturated; if they jump, weights are being updated.",
                    *quantiles("sglang:inter_token_latency_seconds", "daemon", (0.5, 0.99)),
                ),
                heatmap(
                    "Times between tokens",
                    "s",
                    "How many tokens came after how long, over all servers, a row a bucket. A far cloud is pauses: "
                    "updates of weights, long prompts, or retractions.",
                    "sglang:inter_token_latency_seconds",
                ),
            ]
        ],
    )
