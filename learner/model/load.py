"""Loads and saves the policy: Hugging Face directories or ids, with packed attention in place.

Models that packed training would compute wrongly are refused here, before training begins.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from broker.errors import CheckpointError, EngineError, RunFileError
from learner.model import attention, lora
from learner.model.policy import PolicyWeights
from learner.model.positions import stretched_from
from learner.model.sizes import unlike

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model*",
    "chat_template.jinja", "chat_template.json", "added_tokens.json", "spiece.model", "sentencepiece*.model", "*.tiktoken", "tekken.json",
    "additional_chat_templates",
)  # fmt: skip
"""Patterns of files that a tokenizer may need; the last one is a directory."""


def load_model(
    path: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", init: str = "pretrained", seed: int = 0
) -> PreTrainedModel:
    """The causal language model at ``path`` (a directory or a Hugging Face id), in training mode.

    ``init = "random"`` takes only its shape, with random weights determined by ``seed``. Raises RunFileError if there is no such
    model or packed training cannot compute it, CheckpointError if a directory's weights are missing or damaged.
    """
    name = attention.register()
    try:
        if init == "random":
            config = AutoConfig.from_pretrained(path)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=dtype)
        else:
            model = _pretrained(path, name, dtype)
    except KeyError as error:  # older families look attention up in their own table
        if name not in str(error):
            raise
        raise RunFileError(
            f"[run] model = {path!r} cannot be trained packed: its attention is its own, and cannot be exchanged"
        ) from error
    except (OSError, ValueError) as error:
        if Path(path).is_dir() and init != "random" and not any(Path(path).glob("*.safetensors")):
            raise CheckpointError(
                f"{path} has no weights (*.safetensors); begin with a stage of init = 'random'"
            ) from None
        raise RunFileError(f"[run] model = {path!r} cannot be loaded: {_reason(path, error)}") from error
    model = model.to(device).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the trained policy must equal the one that was sampled from
    _check(model, path)
    return model


def _pretrained(path: str, attention_name: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load the weights. Missing ones, which transformers would initialise with a warning, raise CheckpointError."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation=attention_name, dtype=dtype, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"the weights in {path} are damaged: {str(error).splitlines()[0]}") from error
    if found["missing_keys"]:
        some = ", ".join(sorted(found["missing_keys"])[:3])
        raise CheckpointError(f"the weights in {path} lack {len(found['missing_keys'])} tensors, among them {some}")
    return model


def _reason(path: str, error: Exception) -> str:
    if (path.startswith((".", "/")) or path.count("/") > 1) and not Path(path).exists():
        return "there is no such directory"
    return str(error).splitlines()[0]


@torch.no_grad()
def _check(model: PreTrainedModel, path: str) -> None:
    """Raises RunFileError for a model that packed training would compute wrongly, by a test on two concatenated copies of a sequence.

    Both copies must give the logits that transformers' own attention and head give for the sequence alone, also when the second shares a
    prefix with the first. Layers with a state, attention with caps, sinks or biases, and heads that scale or cap their logits fail.
    Positions that depend on the longest sequence of a batch (dynamic RoPE, longrope) are tested far out: such a model is limited (``bind``)
    to the length up to which they do not.
    """
    try:
        if (stretch := stretched_from(model.config)) is not None:
            far = _packed(model, LAID_TWICE, FAR * stretch)
        wanted = _alone(model)
        twice = _packed(model, LAID_TWICE)
        shared = _packed(model, SHARED)
    except EngineError as error:
        raise RunFileError(f"[run] model = {path!r} cannot be trained packed: {error}") from error
    except (TypeError, AttributeError) as error:
        raise RunFileError(
            f"[run] model = {path!r} cannot be trained packed: its layers do not take packed sequences ({error})"
        ) from error
    what = "that would give other logits than its own"
    if not _close(wanted.repeat(2, 1), twice) or not _close(torch.cat((wanted, wanted[PREFIX:])), shared):
        raise RunFileError(f"[run] model = {path!r} cannot be trained packed: {what}")
    if stretch is not None and not _close(wanted, far[: len(wanted)]):
        bind(model, stretch)


TRIED, PREFIX, FAR = 4, 2, 8
LAID_TWICE = ((TRIED, TRIED), None)
SHARED = ((TRIED, TRIED - PREFIX), ((0, 0), (0, PREFIX)))


def _alone(model: PreTrainedModel) -> torch.Tensor:
    once, places = _tried(model)
    model.set_attn_implementation("eager")
    try:
        return model(input_ids=once[None], position_ids=places[None], use_cache=False).logits[0]
    finally:
        model.set_attn_implementation(attention.NAME)


def _packed(model: PreTrainedModel, plan: Any, far: int = 0) -> torch.Tensor:
    """Logits of the test sequence packed by ``plan`` (lengths, prefixes); positions of the second copy are shifted by ``far``."""
    once, places = _tried(model)
    (_, second), prefixes = plan
    hidden = model.base_model(
        input_ids=torch.cat((once, once[-second:]))[None],
        position_ids=torch.cat((places, far + places[-second:]))[None],
        attention_mask=None,
        use_cache=False,
        segments=attention.plan_segments(plan[0], model.device, prefixes),
    ).last_hidden_state[0]
    return hidden @ model.get_output_embeddings().weight.T


def _tried(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    places = torch.arange(TRIED, device=model.device)
    return (places + 1) % model.config.vocab_size, places


def bind(model: PreTrainedModel, longest: int) -> None:
    """Make the model raise EngineError for a sequence of more than ``longest`` tokens: its positions would depend on the chunk."""

    def refuse(_module: Any, _arguments: Any, named: dict[str, Any]) -> None:
        segments = named.get("segments")
        if segments is not None and segments.longest > longest:
            raise EngineError(
                f"a sequence of {segments.longest} tokens is longer than {longest}, up to which the positions of this model do not depend "
                "on what a sequence is packed with; lower sampling.max_new_tokens or [actors] context_length"
            )

    model.base_model.register_forward_pre_hook(refuse, with_kwargs=True)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether the two are equal up to rounding; NaN (diverged weights) passes, as the step's own guards find it."""
    rounding = 1e-4 if a.dtype == torch.float32 else 2e-2
    return not bool((a - b).abs().max() > rounding * a.abs().max())


def load_tokenizer(path: str) -> Any:
    """The tokenizer at ``path``. Raises RunFileError."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RunFileError(f"[run] model = {path!r} has no tokenizer: {str(error).splitlines()[0]}") from error


def check_same_family(path: str, own: str, model: PreTrainedModel) -> None:
    """Raises RunFileError unless the ``model`` at ``path`` differs from the run's ``own`` only in sizes: the tokenizer, and all settings
    that engines cannot tell from the weights, must be the same.

    For a directory without a tokenizer (a shape, a foreign checkpoint), the vocabulary need only be large enough.
    """
    if path == own:
        return
    there, size = Path(path), model.config.vocab_size
    if strange := unlike(AutoConfig.from_pretrained(own).get_text_config(), model.config.get_text_config()):
        raise RunFileError(
            f"model = {path!r}: {strange} differs from [run] model = {own!r}, and the engines of a run take over other sizes alone: train it "
            "in a run of its own"
        )
    is_shape = there.is_dir() and not (there / "tokenizer.json").exists()
    words = load_tokenizer(own).get_vocab()
    same = len(words) <= size if is_shape else load_tokenizer(path).get_vocab() == words
    if not same:
        raise RunFileError(
            f"model = {path!r} has another tokenizer than [run] model = {own!r}, and a run has one: train it in a run of its own, which "
            "reads what this one has made (data = { path = 'RUN/artefacts/NAME.jsonl' })"
        )


def set_gradient_checkpointing(model: PreTrainedModel, on: bool) -> None:
    """Keep only each layer's input for the backward pass, and recompute the layers there. Raises RunFileError if unsupported.

    T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
    """
    if not on:
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()
        return
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise RunFileError(f"gradient_checkpointing = true: {error}") from None
    model.disable_input_require_grads()  # undo: only reentrant checkpointing needs gradients of embeddings


def save_model(model: PreTrainedModel, tokenizer_source: str, directory: Path) -> None:
    """Write the model and its tokenizer's files so that transformers and engines can load ``directory``.

    For a model with adapters, writes the merged weights.
    """
    model.save_pretrained(directory, state_dict=dict(PolicyWeights(model)) if lora.is_adapted(model) else None)
    save_tokenizer(tokenizer_source, directory)


def save_base(model: PreTrainedModel, tokenizer_source: str, directory: Path) -> None:
    """Write the base model below the adapters, as ``save_model`` would have before they were added."""
    model.save_pretrained(directory, state_dict=dict(PolicyWeights(model, adapted=False)))
    save_tokenizer(tokenizer_source, directory)


def save_shape(model: PreTrainedModel, tokenizer_source: str, directory: Path) -> None:
    """Write a model directory without the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    save_tokenizer(tokenizer_source, directory)


def save_tokenizer(tokenizer_source: str, directory: Path) -> None:
    """Copy the tokenizer's files from a directory, or save the tokenizer of a Hugging Face id."""
    source = Path(tokenizer_source)
    if source.is_dir():
        for found in (path for pattern in TOKENIZER_FILES for path in source.glob(pattern)):
            if found.is_dir():
                shutil.copytree(found, directory / found.name, dirs_exist_ok=True)
            else:
                shutil.copy2(found, directory / found.name)
    else:
        load_tokenizer(tokenizer_source).save_pretrained(directory)
