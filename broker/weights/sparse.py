"""The exact changes between two versions of the weights: in 16-bit floating point a small step changes only few values.

The encoding is two concatenated arrays of little-endian 16-bit words: the distance of each change from the one before (1 to 65,535 words;
longer gaps get unchanged places as intermediate entries), then the new values. Applied to exactly the bytes that it was made from, it gives
exactly the new ones; the checksum of the full weights verifies this.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from broker.errors import WeightPushError

FARTHEST = 65_535
CHUNK = 1 << 23  # words compared at a time, so that intermediate results stay small
ENTRY = 4  # bytes per change


def encode(base: Tensor, new: Tensor, most: int) -> Tensor | None:
    """The changes from ``base`` to ``new`` (uint8 ``[n]``) as uint8 ``[4 c]``.

    None if they exceed ``most`` bytes, or if the sizes differ or are odd.
    """
    if base.numel() != new.numel() or base.numel() % 2:
        return None
    before, after = base.view(torch.int16), new.view(torch.int16)
    found: list[np.ndarray] = []
    count = 0
    for start in range(0, len(after), CHUNK):
        places = (before[start : start + CHUNK] != after[start : start + CHUNK]).nonzero().flatten() + start
        count += len(places)
        if count * ENTRY > most:
            return None
        found.append(places.numpy())
    changed = _reachable(np.concatenate(found) if found else np.zeros(0, np.int64))
    if len(changed) * ENTRY > most:
        return None
    gaps = np.diff(changed, prepend=-1).astype(np.uint16)
    values = after.numpy()[changed].view(np.uint16)
    return torch.from_numpy(np.concatenate((gaps, values)).view(np.uint8))


def _reachable(places: np.ndarray) -> np.ndarray:
    """``places``, with additional ones inserted where two are more than ``FARTHEST`` apart."""
    before = np.concatenate(([-1], places[:-1])) if len(places) else places
    far = np.flatnonzero(places - before > FARTHEST)
    if not len(far):
        return places
    between = [np.arange(before[i] + FARTHEST, places[i], FARTHEST) for i in far]
    return np.sort(np.concatenate((places, *between)))


def apply(flat: Tensor, encoded: Tensor) -> None:
    """Apply the changes to ``flat`` (uint8 ``[n]``) in place. Raises WeightPushError, with ``flat`` untouched, if they do not fit it."""
    if encoded.numel() % ENTRY or flat.numel() % 2:
        raise WeightPushError(f"{encoded.numel()} bytes are no changes of {flat.numel()} bytes of weights")
    gaps, values = encoded.view(torch.int16).chunk(2) if encoded.numel() else (torch.empty(0), torch.empty(0))
    if not len(gaps):
        return
    places = (gaps.to(torch.int64) & 0xFFFF).cumsum(0) - 1
    words = flat.view(torch.int16)
    if int(places[-1]) >= len(words) or int((gaps == 0).sum()):
        raise WeightPushError(f"the changes go beyond the {len(words)} words of the weights")
    words[places] = values
