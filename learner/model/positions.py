"""Rotary positions that follow from the longest sequence of a batch, by a model's configuration alone. Imports no torch."""

from __future__ import annotations

from typing import Any

STRETCHED = ("dynamic", "longrope")
"""Kinds whose frequencies are others once a sequence is longer than the model's original context."""


def stretched_from(config: Any) -> int | None:
    """The length in tokens up to which such positions are the same for all batches; None for a model that has none.

    ``config`` is the configuration of transformers, whose tables of positions may be one, or one for each kind of layer.
    """
    found = getattr(config, "rope_parameters", None) or {}
    for table in (found, *(value for value in found.values() if isinstance(value, dict))):
        if table.get("rope_type") in STRETCHED:
            own = getattr(config, "original_max_position_embeddings", None)
            return int(table.get("original_max_position_embeddings") or own or config.max_position_embeddings)
    return None
