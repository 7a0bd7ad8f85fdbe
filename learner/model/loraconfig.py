"""The tables of the memory options: adapters, and offloading to host memory."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from broker.runfile import Table

Offload = Literal["none", "optimizer", "all"]


class LoraTable(Table):
    """Low-rank adapters in place of the weights (E. Hu et al., LoRA, arXiv 2106.09685): ``W + alpha / rank * B A``.

    ``targets``: ``"all-linear"`` (every linear layer except the head), or the last parts of the names of linear layers.
    ``publish``: policies are published and saved ``merged``, under the base model's names; with ``adapters`` the adapters
    are written beside them too, in peft's format.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    publish: Literal["merged", "adapters"] = "merged"

    @field_validator("targets", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "all-linear":
            raise ValueError(f'use "all-linear" or a list of names, as [{value!r}]')
        if isinstance(value, list | tuple) and not value:
            raise ValueError('name at least one layer, or use "all-linear"')
        return value


def adapted(lora: LoraTable | None, info: ValidationInfo) -> LoraTable | None:
    """Refuse adapters together with an optimizer for whole matrices."""
    optimizer = info.data.get("optimizer")
    if lora is not None and optimizer is not None and optimizer.muon:
        raise ValueError(
            f"adapters are trained with AdamW alone, and optimizer.muon is {optimizer.muon}; set one of the two to 0 or leave it out"
        )
    return lora


def as_sampled(lora: LoraTable | None) -> LoraTable | None:
    """Refuse dropout where the policy that is trained must be the one that was sampled from."""
    if lora is not None and lora.dropout:
        raise ValueError("dropout would train another policy than the one that was sampled from; use dropout = 0")
    return lora
