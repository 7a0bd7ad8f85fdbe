"""The longest sequence that a model can be trained on, from its configuration: window and positions. Imports no torch."""

from __future__ import annotations

from typing import Any

STRETCHED = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies change for sequences longer than the model's original context."""


def stretched_from(config: Any) -> int | None:
    """The length in tokens up to which such positions do not depend on the batch; None for a model without them.

    ``config`` is a configuration of transformers, with one table of positions, or one for each kind of layer.
    """
    found = getattr(config, "rope_parameters", None) or {}
    for table in (found, *(value for value in found.values() if isinstance(value, dict))):
        if table.get("rope_type") in STRETCHED:
            own = getattr(config, "original_max_position_embeddings", None)
            return int(table.get("original_max_position_embeddings") or own or config.max_position_embeddings)
    return None


def window_of(config: Any) -> int | None:
    """The sliding window in tokens; None for a model that has no layer with one."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not isinstance(window, int) or getattr(config, "use_sliding_window", True) is False:
        return None
    return window if kinds is None or "sliding_attention" in kinds else None


def learned_positions(config: Any) -> int | None:
    """The number of learned position vectors; None for a model with rotary positions."""
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 and not getattr(config, "rope_parameters", None) else None


def longest_trained(config: Any) -> tuple[int, str] | None:
    """The most tokens of a sequence in packed training, and what limits it; None without a limit."""
    limits = [
        (window_of(config), "the model's sliding window"),
        (stretched_from(config), "the original context of the model's stretched positions"),
        (learned_positions(config), "the number of the model's positions"),
    ]
    found = [(most, why) for most, why in limits if most is not None]
    return min(found, default=None)
