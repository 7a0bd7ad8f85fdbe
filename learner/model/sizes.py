"""How a model of another size may differ from the run's own: engines learn only sizes from the weights. Imports no torch."""

from __future__ import annotations

from typing import Any

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SAME = (
    "architectures",
    "head_dim",
    "rope_parameters",
    "rms_norm_eps",
    "hidden_act",
    "sliding_window",
    "use_sliding_window",
)
"""Settings that must be the same, as weights do not show them."""


def sizes_of(config: Any) -> dict[str, int]:
    """The sizes in a model's configuration, by name."""
    return {name: getattr(config, name) for name in SIZES if hasattr(config, name)}


def unlike(config: Any, other: Any) -> str:
    """The first setting of ``SAME`` in which ``other`` differs, with its value there; empty if there is none."""
    for name in SAME:
        mine, theirs = _value(config, name), _value(other, name)
        if mine != theirs:
            return f"{name} = {theirs!r}"
    return ""


def _value(config: Any, name: str) -> Any:
    value = getattr(config, name, None)
    if name == "head_dim" and value is None:
        return config.hidden_size // config.num_attention_heads
    return value
