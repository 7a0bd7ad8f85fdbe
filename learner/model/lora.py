"""Low-rank adapters on a model (peft): inserting, checkpointing, merging and exporting them.

The model object stays the same, with linear layers replaced in place; only the adapters are trained. During training nothing is
merged in place: ``learner.model.policy`` computes merged copies. Linear layers only: no embeddings, no head (whose product is
computed without the layer), no experts in one fused parameter.
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
    """The adapted layers of ``model`` by their names in the base model. Does not import peft, which takes a second: if it is not
    loaded, no layer is adapted."""
    if "peft" not in sys.modules:
        return iter(())
    from peft.tuners.lora import Linear

    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


def base_weight(layer: Linear) -> Tensor:
    """The base weight of an adapted layer."""
    return cast(Tensor, layer.get_base_layer().weight)


def is_adapted(model: torch.nn.Module) -> bool:
    return next(layers(model), None) is not None


def targeted(model: Any, table: LoraTable) -> list[str]:
    """Names of the linear layers that match ``table.targets``, without the head.

    Raises RunFileError if a target matches no layer.
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
    """Insert new adapters into ``model``, in place. The policy does not change (B = 0); ``seed`` determines A.

    Raises RunFileError if a target matches no layer that can be adapted.
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
    """``rank``, ``alpha`` and ``layers`` of the adapters of ``model``; empty if it has none."""
    if not is_adapted(model):
        return {}
    config = model.peft_config[NAME]
    return {"rank": config.r, "alpha": float(config.lora_alpha), "layers": sorted(name for name, _ in layers(model))}


def check_same(model: Any, table: LoraTable | None) -> None:
    """Raises RunFileError if ``table`` asks for other adapters than ``model`` has: they cannot change during a stage."""
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
    """What a checkpoint needs besides the merged weights: the adapters and the base weights. None without adapters."""
    if not is_adapted(model):
        return None
    return {
        **settings(model),
        "base": {name: base_weight(layer) for name, layer in layers(model)},
        "adapters": adapters(model),
    }


def restore(model: Any, found: Mapping[str, Any], dropout: float = 0.0) -> None:
    """Restore base weights and adapters of ``model`` from what ``state`` returned, in place and bit for bit.

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
    """The trained parameters by name, not copied."""
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
    """Merge the adapters into the weights and remove them, in place; all weights become trainable again."""
    for name, layer in list(layers(model)):
        base_weight(layer).copy_(merged(layer))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    model.requires_grad_(True)
    vars(model).pop("peft_config", None)


@contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Disable the adapters within the block. No autograd graph of the policy may be pending."""
    for _, layer in layers(model):
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers(model):
            layer.enable_adapters(True)


def save_adapters(model: Any, base: str, directory: Path) -> None:
    """Write the adapters in peft's format, for the model in ``base``. The directory is complete or absent."""
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
