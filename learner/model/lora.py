"""Low-rank adapters on a model (peft): put in, taken along in checkpoints, merged for good, or written for others.

The model stays what it is, with linear layers replaced in place; only the adapters take a gradient. Nothing here merges
while training goes on: ``learner.model.policy`` computes the merged policy beside it. Linear layers only: no embedding, no head
(the head's product is computed without the layer), no experts that are one fused parameter.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from broker.errors import CheckpointError, RunFileError
from broker.spelling import nearest
from learner.model.loraconfig import LoraTable

if TYPE_CHECKING:
    from peft.tuners.lora import Linear

NAME = "default"  # name of the adapter: peft requires one


def layers(model: torch.nn.Module) -> Iterator[tuple[str, Linear]]:
    """The adapted layers of ``model`` by the names that they have in the base model. Where peft, which takes a second to load, was not
    loaded, there are none."""
    if "peft" not in sys.modules:
        return iter(())
    from peft.tuners.lora import Linear

    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


def base_weight(layer: Linear) -> Tensor:
    """The weight below the adapters of a layer."""
    return cast(Tensor, layer.get_base_layer().weight)


def is_adapted(model: torch.nn.Module) -> bool:
    return next(layers(model), None) is not None


def targeted(model: Any, table: LoraTable) -> list[str]:
    """Names of the linear layers that ``table.targets`` means, the head left out.

    Raises RunFileError if a target is the name of none.
    """
    from peft.tuners.lora import Linear

    head = model.get_output_embeddings()
    inside = tuple(f"{name}." for name, _ in layers(model))
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D | Linear) and module is not head and not name.startswith(inside)
    ]
    if isinstance(table.targets, str):
        return names
    for target in table.targets:
        if not any(matches(name, target) for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise RunFileError(
                f"lora.targets = {target!r}: {type(model).__name__} has no such linear layer that can be adapted"
                f"{nearest(target, known)}"
            )
    return [name for name in names if any(matches(name, target) for target in table.targets)]


def matches(name: str, target: str) -> bool:
    """Whether ``target`` is the name of the layer, or the last parts of it."""
    return name == target or name.endswith(f".{target}")


def adapt(model: Any, table: LoraTable, seed: int) -> None:
    """Put fresh adapters into ``model``, in place: the policy is the same (B = 0), what follows depends on ``seed`` alone.

    Raises RunFileError if a target is no layer that can be adapted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=table.rank,
        lora_alpha=table.alpha,  # type: ignore[arg-type]  # a factor: it need not be whole
        lora_dropout=table.dropout,
        target_modules=targeted(model, table),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, NAME)


def settings(model: Any) -> dict[str, Any]:
    """What the adapters of ``model`` were made with; empty if it has none."""
    if not is_adapted(model):
        return {}
    config = model.peft_config[NAME]
    return {"rank": config.r, "alpha": float(config.lora_alpha), "layers": sorted(name for name, _ in layers(model))}


def check_same(model: Any, table: LoraTable | None) -> None:
    """Raises RunFileError if ``table`` asks for other adapters than ``model`` has: they are what a stage began with."""
    found = settings(model)
    wanted: dict[str, Any] = {}
    if table is not None:
        wanted = {"rank": table.rank, "alpha": float(table.alpha), "layers": sorted(targeted(model, table))}
    for key, asked in (("rank", "rank"), ("alpha", "alpha"), ("layers", "targets")):
        if found.get(key) != wanted.get(key):
            value = getattr(table, asked, None)
            raise RunFileError(
                f"lora.{asked} = {value!r}: the stage under way was begun with {_told(found.get(key))}, and that holds until "
                f"it ends"
            )


def _told(found: Any) -> str:
    """A setting in the words of the run file."""
    if found is None:
        return "no adapters"
    return repr(sorted({name.rpartition(".")[2] for name in found})) if isinstance(found, list) else repr(found)


def state(model: Any) -> dict[str, Any] | None:
    """What training goes on from beside the merged weights: the adapters, and the weights below them. None without adapters."""
    if not is_adapted(model):
        return None
    return {
        **settings(model),
        "base": {name: base_weight(layer) for name, layer in layers(model)},
        "adapters": adapters(model),
    }


def restore(model: Any, found: Mapping[str, Any], dropout: float = 0.0) -> None:
    """Undo the merge in ``model``, in place, with what ``state`` gave; bit for bit.

    Raises CheckpointError if ``found`` does not belong to the model.
    """
    names = tuple(str(name) for name in found["layers"])
    try:
        adapt(model, LoraTable(rank=found["rank"], alpha=found["alpha"], targets=names, dropout=dropout), 0)
        with torch.no_grad():
            for name, layer in layers(model):
                base_weight(layer).copy_(found["base"][name])
            load_adapters(model, found["adapters"])
    except (KeyError, RuntimeError, RunFileError) as error:
        raise CheckpointError(f"the adapters do not belong to this model: {error}") from error


def adapters(model: Any) -> dict[str, Tensor]:
    """The trained parameters by name, as they are (no copy)."""
    out = {}
    for name, layer in layers(model):
        for part in ("lora_A", "lora_B"):
            out[f"{name}.{part}.weight"] = getattr(layer, part)[NAME].weight.detach()
    return out


@torch.no_grad()
def load_adapters(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the adapters. Raises KeyError if one is missing."""
    for name, tensor in adapters(model).items():
        tensor.copy_(tensors[name])


@torch.no_grad()
def merged(layer: Linear) -> Tensor:
    """``W + alpha / rank * B A`` of one layer, a new tensor of the weight's shape."""
    return base_weight(layer) + layer.get_delta_weight(NAME)


@torch.no_grad()
def merge(model: Any) -> None:
    """End adapted training: the merged weights become the model's own, in place, and all of them take a gradient again."""
    for name, layer in list(layers(model)):
        base_weight(layer).copy_(merged(layer))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    model.requires_grad_(True)
    vars(model).pop("peft_config", None)


@contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Within the block ``model`` computes what the base computes. No graph of the policy may be open."""
    for _, layer in layers(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers(model):
            layer.enable_adapters(True)


def save_adapters(model: Any, base: str, directory: Path) -> None:
    """Write the adapters in peft's format, to be loaded on the model in ``base``. Whole or not there."""
    beside = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    config = copy.copy(model.peft_config[NAME])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(beside))
    tensors = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in adapters(model).items()}
    save_file(tensors, beside / "adapter_model.safetensors", {"format": "pt"})
    shutil.rmtree(directory, ignore_errors=True)
    beside.replace(directory)
