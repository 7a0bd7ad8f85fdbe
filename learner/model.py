"""Loads and saves the policy: Hugging Face directories or ids, with packed attention in place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from broker.errors import CheckpointError, RunFileError
from learner import attention

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.model",
    "chat_template.jinja", "added_tokens.json",
)  # fmt: skip


def load_model(
    path: str, *, dtype: torch.dtype = torch.float32, device: str = "cpu", init: str = "pretrained", seed: int = 0
) -> PreTrainedModel:
    """The causal language model at ``path`` (a directory or a Hugging Face id).

    ``init = "random"`` takes its shape only, with weights that follow from ``seed``. Raises RunFileError if there is no such
    model, CheckpointError if a directory has no weights.
    """
    name = attention.register()
    try:
        if init == "random":
            config = AutoConfig.from_pretrained(path)
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=name, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=name, dtype=dtype)
    except (OSError, ValueError) as error:
        if Path(path).is_dir() and init != "random" and not any(Path(path).glob("*.safetensors")):
            raise CheckpointError(
                f"{path} has no weights (*.safetensors); begin with a stage of init = 'random'"
            ) from None
        raise RunFileError(f"[run] model = {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.to(device).train()


def load_tokenizer(path: str) -> Any:
    """The tokenizer at ``path``. Raises RunFileError."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise RunFileError(f"[run] model = {path!r} has no tokenizer: {str(error).splitlines()[0]}") from error


def save_model(model: PreTrainedModel, tokenizer_source: str, directory: Path) -> None:
    """Write the model and its tokenizer's files so that transformers and engines load ``directory`` as it is."""
    model.save_pretrained(directory)
    save_tokenizer(tokenizer_source, directory)


def save_shape(model: PreTrainedModel, tokenizer_source: str, directory: Path) -> None:
    """Write all of a model directory but the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(directory)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(directory)
    save_tokenizer(tokenizer_source, directory)


def save_tokenizer(tokenizer_source: str, directory: Path) -> None:
    """Copy the tokenizer's files from a directory, or write those of a Hugging Face id."""
    source = Path(tokenizer_source)
    if source.is_dir():
        for name in TOKENIZER_FILES:
            if (source / name).exists():
                shutil.copy2(source / name, directory / name)
    else:
        load_tokenizer(tokenizer_source).save_pretrained(directory)
