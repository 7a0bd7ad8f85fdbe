"""The learner's tables of the run file: ``[data]``, and ``[learner]`` by its owners: what a stage trains by, where the learner runs, and
how weights leave it. The stages' own tables are in ``learner.stages``."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from broker.errors import RunFileError
from broker.runfile import Table
from broker.spelling import nearest
from learner.data.selection import SelectTable
from learner.losses.table import ObjectiveTable
from learner.model.loraconfig import LoraTable, Offload, adapted, as_sampled

FLAT = 1e-6  # rewards of a group that differ by less than this, relative to the largest, are equal: the difference is rounding
MAX_ODD = 0.1  # share of a supervised stage's rows that may be odd: beyond it, the file or its table is wrong, not single rows


ROADS = ("broadcast", "disk")
RANDOM = "random:"
"""Before a seed: what a manifest of weights names where they are random ones of the run file's model."""


class SourceTable(Table):
    """``[data.NAME]``: a file, a Hugging Face data set, a class, or a class that reads such a table (``use`` and ``path``); further keys are
    that class's options.

    ``rewards`` is the reward mix of its prompts (default: that of ``[run]``), ``environment`` the one that they are episodes in, ``chat``
    holds options of the chat template (``enable_thinking``).
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str = ""
    path: str = ""
    rewards: dict[str, float] | None = None
    environment: str = ""
    chat: dict[str, Any] = Field(default_factory=dict)
    select: SelectTable = SelectTable()
    """Which of its rows are used."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def check_named(table: SourceTable, where: str) -> None:
    """Raises RunFileError where ``table`` names neither a class nor a file; ``where`` names the table."""
    if not (table.use or table.path):
        raise RunFileError(
            f"{where} needs use = 'module:Class', or path = 'file, directory or Hugging Face id', or both"
        )


class SamplingTable(Table):
    """How prompts of this learner are sampled (lengths in tokens)."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_turns: int = Field(default=1, ge=1)
    """Replies of an episode in an environment."""
    max_total: int = Field(default=0, ge=0)
    """Tokens of an episode with its prompt; 0: what the engine's context holds."""


Momentum = Annotated[float, Field(ge=0, lt=1)]


class OptimizerTable(Table):
    """AdamW, or Muon on the hidden matrices at ``muon`` times the learning rate and AdamW on the rest (``muon`` 0: AdamW alone)."""

    lr: float = Field(default=1e-6, gt=0, le=100)
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    muon: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_lr: float = Field(default=0.1, ge=0, le=1)
    """Share of ``lr`` that a falling schedule ends at."""


class RlOptimizerTable(OptimizerTable):
    """Settings for learning from stale samples (benchmarks/staleness.md): no first-moment momentum, and a falling rate."""

    betas: tuple[Momentum, Momentum] = (0.0, 0.95)
    schedule: Literal["constant", "linear", "cosine"] = "linear"


class Training(Table):
    """How an RL stage trains: defaults in ``[learner]``, and a stage's own ``learner`` table replaces single keys.

    ``late``: what to do with a group that the next step would make too old: ``wait`` for it up to ``deadline`` seconds
    after it was fed, or ``drop`` it at once.
    """

    objective: ObjectiveTable = ObjectiveTable()
    optimizer: RlOptimizerTable = RlOptimizerTable()
    sampling: SamplingTable = SamplingTable()
    groups_per_step: int = Field(default=32, ge=1)
    group_size: int = Field(default=16, ge=1)
    max_lag: int = Field(default=8, ge=0)
    late: Literal["wait", "drop"] = "wait"
    deadline: float = Field(default=1800.0, gt=0)
    drop_zero_variance: bool = True
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before ``sampling.max_new_tokens`` from which the reward falls, linearly by ``overlong_penalty`` (0: it does not)."""
    overlong_penalty: float = Field(default=1.0, ge=0)
    mask_truncated: bool = False
    """Whether answers that ran out of tokens give no gradient; they keep their place in the means."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps that a step's groups are split into; all of them together are one policy version."""
    max_resampling: float = Field(default=4.0, ge=0)
    """A step drops at most this many times ``groups_per_step`` groups without variance; after that they take its places."""
    pack_tokens: int = Field(default=4096, ge=16)
    """Tokens of one packed chunk (a longer sequence gets a chunk of its own)."""
    logprob_rows: int = Field(default=256, ge=1)
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer, and compute the layers again in the backward pass."""
    offload: Offload = "none"
    """What lies in the host's memory between uses: the state of the ``optimizer``, or ``all`` (the weights and the reference too)."""
    lora: LoraTable | None = None
    checkpoint_every: int = Field(default=50, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)

    @property
    def credits(self) -> int:
        """Groups that may be outstanding at once: fed in order and trained in order, none then becomes older than ``max_lag``."""
        return (self.max_lag + 1) * self.groups_per_step

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        if self.group_size < 2 and not self.objective.allows_single():
            raise ValueError(
                f"group_size = {self.group_size}: a reward is compared with the others of its group, and one alone teaches nothing; "
                "set group_size to 2 or more"
            )
        if self.minibatches > self.groups_per_step:
            raise ValueError(
                f"minibatches = {self.minibatches} of groups_per_step = {self.groups_per_step} groups: each needs a group; lower minibatches"
            )
        return self

    @field_validator("objective", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    _adapted = field_validator("lora")(adapted)

    _as_sampled = field_validator("lora")(as_sampled)


class PlacementTable(Table):
    """Where the learner runs, for a whole run."""

    threads: int = Field(default=1, ge=1)
    device: str = "auto"
    colocated: bool = False
    """Engines and learner take shifts on one set of devices: while actors generate, the model rests in the host's memory."""
    shift_steps: int = Field(default=1, ge=1)
    """With ``colocated``: optimizer steps of one shift; the engines get the weights behind the last one."""
    processes: int = Field(default=1, ge=1)
    """Ranks of the learner that ``headrace run`` starts on this machine: more than one are a pool (docs/parallel.md)."""
    pool_timeout: float = Field(default=600.0, gt=0)
    """Seconds after which a collective of the pool has failed, and the pool ends."""
    pool_memory: Literal["sharded", "gathered"] = "sharded"
    """Whether the whole weights and gradients come and go with every layer, or stay on each rank for the time of a step."""
    deterministic: bool = False
    """Refuse kernels that are not bitwise repeatable (CPU: with ``threads = 1`` always true)."""


class WeightRoadTable(Table):
    """How new weights reach those who sample, for a whole run."""

    publish_dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights that engines get (default: ``dtype``). Checkpoints are always in float32."""
    sparse: Literal["auto", "always", "never"] = "auto"
    """Whether receivers get only what has changed since the version before, where that is less than half (it never is with float32): ``auto``
    does so where the lanes leave this machine. Over gloo; where one receiver is an SGLang server, all get the whole."""
    publish_every: int = Field(default=1, ge=1)
    road: str = "broadcast"
    """``broadcast``: in lanes by torch.distributed; ``disk``: from ``RUN/weights`` on a file system that all receivers see; or a road of
    your own (``file.py:Class``)."""

    @field_validator("road")
    @classmethod
    def _known(cls, road: str) -> str:
        if ":" not in road and road not in ROADS:
            raise ValueError(f"use one of {', '.join(ROADS)}, or module:Class{nearest(road, ROADS)}")
        return road

    lane: int = Field(default=8, ge=1)
    """Receivers of one broadcast group."""
    push_timeout: float = Field(default=60.0, gt=0)
    bucket_mb: float = Field(default=64.0, gt=0)
    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """What carries a broadcast: ``nccl`` between devices (never two ranks on one), ``gloo`` through the host's memory; ``auto`` is nccl
    where the learner has a device to itself."""


class LearnerTable(Training, PlacementTable, WeightRoadTable):
    """``[learner]``: one table of three owners. A stage may replace the keys of ``Training`` alone."""

    @model_validator(mode="after")
    def _takes_shifts(self) -> LearnerTable:
        if self.shift_steps > self.max_lag + 1:
            raise ValueError(
                f"shift_steps = {self.shift_steps} trains samples that are {self.shift_steps - 1} versions old: raise max_lag "
                f"({self.max_lag}) to that, or lower shift_steps"
            )
        if self.colocated and self.backend == "nccl":
            raise ValueError(
                'colocated = true with backend = "nccl": NCCL takes no two ranks on one device; use backend = "gloo"'
            )
        return self


class SupervisedTable(Table):
    """How supervised training goes: on ``data`` for ``steps``, or until the accuracy of the ``until_tag`` tokens is reached.

    With ``until_accuracy`` the difficulty level rises by ``level_step`` whenever the accuracy (moving average) is above
    ``level_up``; once it is above ``until_accuracy`` at the highest level, ``cooldown_steps`` more follow with a falling rate.
    """

    data: str | tuple[str, ...] | dict[str, float] = "documents"
    """One source or artefact; several, each document of which comes once in a pass; or several with weights."""
    init: Literal["pretrained", "random"] = "pretrained"
    steps: int = Field(default=1000, ge=1)
    epochs: float = Field(default=0.0, ge=0)
    """Passes over ``data`` in place of ``steps`` (0: ``steps``)."""
    documents_per_step: int = Field(default=32, ge=1)
    optimizer: OptimizerTable = OptimizerTable(lr=1e-5)
    pack_tokens: int = Field(default=4096, ge=16)
    max_tokens: int = Field(default=0, ge=0)
    """Tokens of a document at most; a longer one is left out as an odd row is (0: what the model holds)."""
    max_odd: float = Field(default=MAX_ODD, ge=0, le=1)
    """Share of documents that may be left out because they cannot be trained on; more are an error (0: the first is)."""
    threads: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    offload: Offload = "none"
    lora: LoraTable | None = None
    checkpoint_every: int = Field(default=200, ge=1)
    until_tag: str = ""
    until_accuracy: float = Field(default=0.0, ge=0, le=1)
    level_up: float = Field(default=0.93, ge=0, le=1)
    level_step: float = Field(default=0.0625, gt=0, le=1)
    cooldown_steps: int = Field(default=0, ge=0)

    _adapted = field_validator("lora")(adapted)

    @field_validator("data")
    @classmethod
    def _readable(cls, data: str | tuple[str, ...] | dict[str, float]) -> str | tuple[str, ...] | dict[str, float]:
        if not data:
            raise ValueError("names no source")
        if isinstance(data, tuple) and len(set(data)) < len(data):
            raise ValueError(
                "names a source twice; give weights to have one read more often, data = { NAME = 2.0, ... }"
            )
        if isinstance(data, dict) and min(data.values()) <= 0:
            raise ValueError("has a weight that is not above 0; take that source out")
        return data


class Benchmark(Table):
    """Held-out questions and how they are asked: ``k`` samples of each of the first ``questions`` rows of ``data``.

    Correct is what ``rewarder`` gives at least 1. ``sampling`` replaces single keys of the stage's; the paper's evaluations are
    ``{ temperature = 0.6, top_p = 0.95 }`` with ``k`` from 4 to 64 (arXiv 2501.12948, section 3).
    """

    name: str = ""
    data: str = "heldout"
    questions: int = Field(default=400, ge=1)
    k: int = Field(default=1, ge=1)
    rewarder: str = "accuracy"
    sampling: SamplingTable | None = None

    def sampled(self, usual: SamplingTable) -> SamplingTable:
        """How the questions are sampled: as ``usual``, with the keys that ``sampling`` sets in place."""
        own = self.sampling
        return (
            usual if own is None else usual.model_copy(update={key: getattr(own, key) for key in own.model_fields_set})
        )


RENAMED = {"weights": "road", "turn_steps": "shift_steps"}
"""Keys of ``[learner]`` that have another name now."""


def for_whole_run() -> frozenset[str]:
    """The keys of ``[learner]`` that no stage can replace."""
    return frozenset(LearnerTable.model_fields) - frozenset(Training.model_fields)
