"""The learner: is the objective healthy, what are its samples like, and where does the time of a step go."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from monitoring.dashboards.layout import Row, new
from monitoring.dashboards.panels import Query, above, below, graph, heatmap, or_zero, quantiles
from monitoring.metrics import LearnerMetrics as Learner


def dashboard() -> Dashboard:
    return new(
        "headrace-learner",
        "Learner",
        "Health of the objective, the samples that are trained, the time of a step, and its memory.",
        [_policy(), _ratio(), _samples(), _time(), _memory()],
    )


def _policy() -> Row:
    return Row(
        "Optimization",
        [
            [
                graph(
                    "Entropy", "suffix: nats",
                    "Entropy of the policy for each token. If it falls towards zero, the policy repeats itself and "
                    "learns no more: lower the learning rate, or raise the clip bound or the entropy term.",
                    Query(Learner.entropy, "entropy"),
                ),
                graph(
                    "Divergence between sampler and policy", "suffix: nats",
                    "The k3 estimate of the divergence of the policy from the one that sampled. A jump means that a "
                    "step was too large or that samples are too old: lower the learning rate or max_lag.",
                    Query(Learner.kl, "k3"), limits=above(0.05, 0.2),
                ),
                graph(
                    "Gradient norm", "none",
                    "Norm of the gradient before it is clipped. Spikes that repeat come before a collapse: lower the "
                    "learning rate, or look for broken samples with `headrace trace`.",
                    Query(Learner.grad_norm, "norm"), logarithmic=True,
                ),
            ],
            [
                graph(
                    "Loss", "none",
                    "Loss of the last step. Its height says little in reinforcement learning; a jump or a missing "
                    "value asks for a look at the gradient norm and the ratio.",
                    Query(Learner.loss, "loss"),
                    least=None,
                ),
                graph(
                    "Learning rate", "sci",
                    "Learning rate of the last step. If it is not what the schedule of the run file says, a resumed "
                    "run may use another file.",
                    Query(Learner.learning_rate, "rate"),
                ),
                graph(
                    "Documents left out", "none",
                    "Documents of the supervised stage under way that cannot be trained on. `headrace broker dlq list` "
                    "has file, row and column of each; mend them and replay their dead letters.",
                    Query(Learner.odd_documents, "left out"),
                ),
            ],
        ],
    )  # fmt: skip


def _ratio() -> Row:
    return Row(
        "Off-policy correction",
        [
            [
                graph(
                    "Clipped tokens, by side", "percentunit",
                    "Share of tokens at which the objective clips the ratio. Above a tenth much of the batch teaches "
                    "nothing: lower the learning rate or max_lag.",
                    Query(or_zero(f"max by (side) ({Learner.clip_fraction})", "side"), "{{side}}"), limits=above(0.1, 0.3),
                ),
                graph(
                    "Tokens without a gradient", "percentunit",
                    "Share of tokens that are masked or clipped away. Near one the step is empty: samples are too "
                    "stale, or the engine's probabilities are wrong.",
                    Query(Learner.masked_fraction, "masked"), limits=above(0.3, 0.7),
                ),
                graph(
                    "Effective sample size", "percentunit",
                    "Effective over real sample size under the importance weights. Below a half few samples rule the "
                    "step: lower max_lag or the learning rate.",
                    Query(Learner.ess_ratio, "effective"),
                    limits=below(0.5, 0.2), most=1.0,
                ),
            ],
            [
                graph(
                    "Engine mismatch", "suffix: nats",
                    "Mean |log pi - log mu| of tokens that the newest policy sampled: zero if engine and learner "
                    "compute alike. If it grows, the engine holds other weights or another precision: compare dtypes "
                    "and weight versions.",
                    Query(Learner.mismatch, "mismatch"), limits=above(0.02, 0.1),
                ),
                graph(
                    "Importance ratio", "none",
                    "Mean of pi/mu over the window's steps; it belongs at one. If it drifts away, learner and engine "
                    "disagree: look at the engine mismatch.",
                    Query(f"sum(rate({Learner.importance_ratio.sum}[])) / sum(rate({Learner.importance_ratio.count}[]))", "mean"),
                    least=None,
                ),
                graph(
                    "Largest importance ratio", "none",
                    "Largest pi/mu of the last step. Very large values come from tokens that the sampler held to be "
                    "all but impossible: check top_p, precision and staleness.",
                    Query(Learner.importance_ratio_max, "largest"), limits=above(10, 100), logarithmic=True,
                ),
            ],
        ],
    )  # fmt: skip


def _samples() -> Row:
    return Row(
        "Samples",
        [
            [
                graph(
                    "Response length", "suffix: tok",
                    "Quantiles of the length of trained responses. If the upper ones sit at max_new_tokens, answers "
                    "are cut off and judged wrong: raise the limit or shape the length.",
                    *quantiles(Learner.response_length),
                ),
                heatmap(
                    "Response lengths", "none",
                    "How many responses had which length, a row a bucket. Two clouds that part are two ways of "
                    "answering: see with `headrace trace` which one is rewarded.",
                    Learner.response_length,
                ),
            ],
            [
                graph(
                    "Reward, by rewarder", "none",
                    "Mean value of each rewarder in the last step, and the mean reward. If one rises while the others "
                    "fall, the policy learns to please that one: change the weights of the mix.",
                    Query(Learner.rewarder_mean, "{{rewarder}}"),
                    Query(Learner.reward_mean, "reward"),
                    least=None,
                ),
                graph(
                    "Groups without variance", "percentunit",
                    "Share of groups in which every sample has the same reward: they have no gradient. If it is high, "
                    "the questions are too easy or too hard for this policy.",
                    Query(Learner.zero_variance_group_ratio, "share"),
                    limits=above(0.5, 0.9), most=1.0,
                ),
            ],
        ],
    )  # fmt: skip


def _time() -> Row:
    return Row(
        "Time of a step",
        [
            [
                graph(
                    "Phases of a step", "s",
                    "Where the seconds of a step go. A large wait_data asks for more actors; a large publish or "
                    "checkpoint for a faster road for weights or a faster disk.",
                    Query(f"sum by (phase) (rate({Learner.step_phase.sum}[])) / on () group_left () sum(rate({Learner.steps}[]))",
                          "{{phase}}"),
                    stacked=True,
                ),
                graph(
                    "Writing a checkpoint", "s",
                    "Quantiles of the seconds that a checkpoint takes. If they grow, the disk is busy or nearly full; "
                    "write them less often.",
                    *quantiles(Learner.checkpoint_seconds, shares=(0.5, 0.9)),
                ),
            ],
            [
                graph(
                    "Pushing weights to all receivers", "s",
                    "Quantiles of the seconds from a new version to its being published. If they come close to "
                    "push_timeout, receivers will be evicted: look at the network and at the slowest actor.",
                    *quantiles(Learner.broadcast_seconds, shares=(0.5, 0.9)),
                ),
                graph(
                    "Evictions and new broadcast groups", "none",
                    "Receivers that did not answer a push, and groups formed anew, within the window. Evictions that "
                    "repeat name a sick actor or network: look for it in the learner's log.",
                    Query(f"sum(increase({Learner.evictions}[]))", "evictions"),
                    Query(f"sum(increase({Learner.epochs}[]))", "groups formed"), limits=above(1, 5),
                ),
                graph(
                    "The learner's shifts", "percentunit",
                    "Share of the time that is the learner's where it shares devices with engines, which rest meanwhile (0: it has "
                    "devices of its own). Far above one half: raise groups_per_step, or lower shift_steps.",
                    Query(f"sum(rate({Learner.shift_seconds.sum}[]))", "the learner's"),
                ),
                graph(
                    "Receivers of weights", "none",
                    "Actors that take part in the broadcast. If there are fewer than actors are up, some sample from "
                    "old weights: look at the versions on the Actors dashboard.",
                    Query(Learner.receivers, "receivers"),
                ),
            ],
        ],
    )  # fmt: skip


def _memory() -> Row:
    return Row(
        "Memory",
        [
            [
                graph(
                    "Device memory", "bytes",
                    "Memory of the learner's accelerator, zero on a processor. If the peak is close to what the "
                    "device has, the next long batch fails: lower the tokens of a micro-batch.",
                    Query(or_zero(f"max by (kind) ({Learner.gpu_memory})", "kind"), "{{kind}}"),
                ),
                graph(
                    "Activations of a chunk", "bytes",
                    "What the forward pass of the step's largest chunk holds for its backward pass. If it is most of the "
                    "device's memory, set gradient_checkpointing, or lower pack_tokens.",
                    Query(Learner.activation_memory, "activations"),
                ),
                graph(
                    "Model and optimizer", "bytes",
                    "Size of the model, of what is trained of it (gradients take the same again), and of the optimizer's "
                    "state. If they are most of the device's memory, set offload or lora.",
                    Query(Learner.parameter_bytes, "parameters"),
                    Query(Learner.trained_parameter_bytes, "trained"),
                    Query(Learner.optimizer_state, "optimizer state"),
                ),
            ],
        ],
    )  # fmt: skip
