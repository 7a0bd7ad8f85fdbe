"""The samples that the local engine works on: row ``r`` of the cache, and of the state of the draw, belongs to ``live[r]``.

Live rows are the first ones, so a step costs what is live: where samples leave, the last ones move into their rows. What a step looks at is
in arrays, a row a sample, so that no step goes through samples one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.engine import Request
from actors.local.cache import Cache
from actors.local.decoder import Decoder
from broker.messages import FloatArray, IntArray, VersionSpan


@dataclass(slots=True)
class Slot:
    """A live sample, of whose tokens ``prompt`` were given."""

    request: Request
    index: int
    started: float
    cached: int
    prompt: int
    versions: list[VersionSpan] = field(default_factory=list)


class Rows:
    """Up to ``capacity`` live samples and their cache."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self.capacity, self.context, device = capacity, decoder.context, decoder.device
        self.cache = decoder.cache(capacity, decoder.context)
        self.live: list[Slot] = []
        # on the device
        self._last = torch.zeros(capacity, dtype=torch.long, device=device)  # the newest token of each
        self._length = torch.zeros(capacity, dtype=torch.long, device=device)  # of the sequence so far
        self._temperature, self._top_p = torch.ones(capacity, device=device), torch.ones(capacity, device=device)
        # beside the processor
        self._tokens = np.zeros((capacity, decoder.context), np.int32)
        self._logprobs = np.zeros(
            (capacity, decoder.context), np.float32
        )  # of the tokens in the same places, if they were drawn
        self._count = np.zeros(capacity, np.int64)  # tokens of each
        self._limit = np.zeros(capacity, np.int64)  # with as many it is full
        self._stops = np.zeros(capacity, bool)  # has stop strings
        self._tempered, self._cut = (
            np.zeros(capacity, bool),
            np.zeros(capacity, bool),
        )  # temperature or nucleus is not 1
        self._numbers = np.arange(capacity)

    def __len__(self) -> int:
        return len(self.live)

    @property
    def free(self) -> int:
        return self.capacity - len(self.live)

    def admit(
        self,
        request: Request,
        indices: Sequence[int],
        version: int,
        started: float,
        prompts: Cache,
        row: int,
        known: int,
    ) -> None:
        """Take on samples of a request whose prompt is in ``row`` of ``prompts``. ``known`` of its tokens were not computed for it."""
        first, length, sampling = len(self.live), len(request.tokens), request.sampling
        rows = slice(first, first + len(indices))
        self.cache.fill(rows, prompts, row, length)
        self._last[rows] = int(request.tokens[-1])
        self._length[rows] = length
        self._temperature[rows], self._top_p[rows] = sampling.temperature, sampling.top_p
        self._tokens[rows, :length] = request.tokens
        self._count[rows], self._limit[rows] = length, min(length + sampling.max_new_tokens, self.context)
        self._stops[rows], self._tempered[rows] = bool(sampling.stop), sampling.temperature != 1
        self._cut[rows] = sampling.top_p != 1
        for i in indices:
            cached = known if i == request.indices[0] else length
            self.live.append(Slot(request, i, started, cached, length, [VersionSpan(version, 0)]))

    # -- what a row has ------------------------------------------------------------------------------------------------

    def tokens(self, row: int) -> IntArray:
        """All tokens of a row, those of its prompt among them."""
        return self._tokens[row, : self._count[row]].copy()

    def response(self, row: int) -> IntArray:
        """The tokens of a row that were drawn."""
        return self._tokens[row, self.live[row].prompt : self._count[row]].copy()

    def logprobs(self, row: int) -> FloatArray:
        """Of ``response``."""
        return self._logprobs[row, self.live[row].prompt : self._count[row]].copy()

    @property
    def drawn(self) -> int:
        """Tokens that were drawn for all live samples together."""
        live = list(self.live)
        return int(self._count[: len(live)].sum()) - sum(slot.prompt for slot in live)

    def full(self, row: int) -> bool:
        return bool(self._count[row] >= self._limit[row])

    def change(self, version: int) -> None:
        """What is drawn from now on comes from ``version``."""
        for slot, count in zip(self.live, self._count.tolist(), strict=False):
            start = count - slot.prompt
            if slot.versions and slot.versions[-1].start == start:  # nothing was drawn under the version before
                slot.versions.pop()
            slot.versions.append(VersionSpan(version, start))

    # -- a step --------------------------------------------------------------------------------------------------------

    def newest(self) -> tuple[Tensor, Tensor, int]:
        """The newest token of each live row, its position, and the length of the longest row."""
        live = len(self.live)
        return self._last[:live], self._length[:live] - 1, int(self._count[:live].max())

    def settings(self) -> tuple[Tensor | None, Tensor | None]:
        """Temperatures and nuclei of the live rows; None where all are 1."""
        live = len(self.live)
        tempered, cut = self._tempered[:live].any(), self._cut[:live].any()
        return self._temperature[:live] if tempered else None, self._top_p[:live] if cut else None

    def draw(self, tokens: Tensor, logprobs: Tensor, ends: frozenset[int]) -> list[tuple[int, int]]:
        """Append a token to each live row; returns row and token of those that may be complete with it."""
        live = len(self.live)
        self._last[:live] = tokens
        self._length[:live] += 1
        drawn, rows, count = tokens.cpu().numpy(), self._numbers[:live], self._count[:live]
        self._tokens[rows, count] = drawn
        self._logprobs[rows, count] = logprobs.cpu().numpy()
        count += 1
        complete = (count >= self._limit[:live]) | self._stops[:live]
        for end in ends:
            complete |= drawn == end
        return [(row, int(drawn[row])) for row in complete.nonzero()[0].tolist()]

    def remove(self, rows: Collection[int]) -> None:
        """Free these rows: the last live ones move into them."""
        order = list(range(len(self.live)))
        for row in sorted(rows, reverse=True):
            order[row] = order[-1]
            order.pop()
        moves = [(to, source) for to, source in enumerate(order) if to != source]
        self.live = [self.live[source] for source in order]
        if moves:
            to, source = np.array(moves).T
            self.cache.move_rows(*self._move(to, source), int(self._count[source].max()))

    def _move(self, to: NDArray[Any], source: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """The state of rows ``source``, but for the cache, to rows ``to``; returns them on the device."""
        for array in (self._tokens, self._logprobs, self._count, self._limit, self._stops, self._tempered, self._cut):
            array[to] = array[source]
        there, here = (torch.from_numpy(x).to(self._last.device) for x in (to, source))
        for state in (self._last, self._length, self._temperature, self._top_p):
            state[there] = state[here]
        return there, here

    def sequences(self) -> tuple[Tensor, Tensor]:
        """All live sequences but for the newest token of each, padded ``[B, T]``, and their lengths: what the cache holds."""
        live = len(self.live)
        longest = int(self._count[:live].max()) - 1
        within = np.arange(longest) < self._count[:live, None]
        tokens = torch.from_numpy(np.where(within, self._tokens[:live, :longest], 0).astype(np.int64))
        return tokens.to(self._last.device), self._length[:live].clamp(max=longest)
