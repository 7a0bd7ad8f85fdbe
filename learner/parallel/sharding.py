"""Shards a Hugging Face model over a device mesh with FSDP2: one parameter group per decoder layer, one for the rest."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import AutoModelForCausalLM
from transformers.initialization import no_init_weights

from broker.errors import RunFileError
from learner.model import attention
from learner.training.logprobs import SCORE, scores_of


def shard_model(model: Any, mesh: DeviceMesh, mixed: bool, gathered: bool) -> Any:
    """Shard ``model`` in place, on the mesh's device; gradients are the sums over the ranks.

    ``mixed``: compute in bfloat16, with the stored weights unchanged and gradients reduced in float32. ``gathered``: weights and gradients
    stay unsharded between the chunks of a step (one all-gather and one reduce-scatter per step), instead of for each layer.
    """
    kind = torch.bfloat16 if mixed else None
    policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for part in [*decoder_layers(model), model]:
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=not (gathered or part is model))
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    setattr(model, SCORE, MethodType(scores_of, model))  # uses the head's weight outside any module's forward
    register_fsdp_forward_method(model, SCORE)
    return model


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The model's repeated decoder layers. Raises RunFileError if it does not declare them (``_no_split_modules``)."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise RunFileError(
            f"[run] model of type {type(model).__name__} does not name its layers; use one process for it"
        )
    return layers


def frozen_copy(model: Any, mesh: DeviceMesh, mixed: bool) -> Any:
    """A sharded copy of a sharded model that is never trained; the full weights are never gathered."""
    with no_init_weights():
        bare = AutoModelForCausalLM.from_config(
            model.config, attn_implementation=attention.NAME, dtype=next(model.parameters()).dtype
        )
    bare.tie_weights()
    other = shard_model(bare, mesh, mixed, gathered=False).eval().requires_grad_(False)
    compute, over = getattr(other, SCORE), getattr(other, "reset_iter_state", None)

    def compute_and_forget(*arguments: Any) -> Any:
        """Reset FSDP's record of the layers, and the head, kept for a backward pass that never comes here."""
        scores = compute(*arguments)
        if over is not None:
            over()
        return scores

    setattr(other, SCORE, compute_and_forget)
    other.load_state_dict(model.state_dict())
    for (_, mine), (_, found) in zip(other.named_buffers(), model.named_buffers(), strict=True):
        mine.copy_(found)
    return other
