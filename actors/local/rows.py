"""The samples that the local engine works on: row ``r`` of the cache, and of the state of the draw, belongs to ``live[r]``.

Live rows are the first ones, so a step costs what is live: where samples leave, the last ones move into their rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from actors.engine import Request
from actors.local.cache import Cache
from actors.local.decoder import Decoder
from broker.messages import VersionSpan


@dataclass(slots=True)
class Slot:
    """A live sample: all its ``tokens``, of which ``prompt`` were given, and the log-probabilities of those that were drawn."""

    request: Request
    index: int
    started: float
    cached: int
    prompt: int
    limit: int
    stops: bool
    tokens: list[int]
    logprobs: list[float] = field(default_factory=list)
    versions: list[VersionSpan] = field(default_factory=list)

    @property
    def response(self) -> list[int]:
        return self.tokens[self.prompt :]

    @property
    def full(self) -> bool:
        return len(self.tokens) >= self.limit

    def change(self, version: int) -> None:
        """What is drawn from now on comes from ``version``."""
        start = len(self.tokens) - self.prompt
        if self.versions and self.versions[-1].start == start:  # nothing was drawn under the version before
            self.versions.pop()
        self.versions.append(VersionSpan(version, start))


class Rows:
    """Up to ``capacity`` live samples and their cache."""

    def __init__(self, decoder: Decoder, capacity: int) -> None:
        self.capacity, self.context, device = capacity, decoder.context, decoder.device
        self.cache = decoder.cache(capacity, decoder.context)
        self.live: list[Slot] = []
        self._last = torch.zeros(capacity, dtype=torch.long, device=device)  # the newest token of each
        self._length = torch.zeros(capacity, dtype=torch.long, device=device)  # of the sequence so far
        self._temperature, self._top_p = torch.ones(capacity, device=device), torch.ones(capacity, device=device)
        self._whole = self._plain = True  # no nucleus, and temperature 1, in all live rows
        self._longest = 0  # tokens of a live row, at most

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
    ) -> int:
        """Take on samples of a request whose prompt is in ``row`` of ``prompts``; returns the first of their rows. ``known`` of its tokens
        were not computed for it."""
        first, length, sampling = len(self.live), len(request.tokens), request.sampling
        rows = slice(first, first + len(indices))
        self.cache.fill(rows, prompts, row, length)
        self._last[rows] = int(request.tokens[-1])
        self._length[rows] = length
        self._temperature[rows], self._top_p[rows] = sampling.temperature, sampling.top_p
        limit, prompt = min(length + sampling.max_new_tokens, self.context), request.tokens.tolist()
        for i in indices:
            cached = known if i == request.indices[0] else length
            self.live.append(
                Slot(
                    request,
                    i,
                    started,
                    cached,
                    length,
                    limit,
                    bool(sampling.stop),
                    list(prompt),
                    versions=[VersionSpan(version, 0)],
                )
            )
        self._look()
        return first

    def _look(self) -> None:
        self._longest = max((len(slot.tokens) for slot in self.live), default=0)
        used = {slot.request.sampling for slot in self.live}
        self._whole = all(sampling.top_p == 1 for sampling in used)
        self._plain = all(sampling.temperature == 1 for sampling in used)

    def newest(self) -> tuple[Tensor, Tensor, int]:
        """The newest token of each live row, its position, and the length of the longest row."""
        live = len(self.live)
        return self._last[:live], self._length[:live] - 1, self._longest

    def settings(self, first: int, size: int) -> tuple[Tensor | None, Tensor | None]:
        """Temperatures and nuclei of the rows from ``first`` on; None where all are 1."""
        rows = slice(first, first + size)
        return None if self._plain else self._temperature[rows], None if self._whole else self._top_p[rows]

    def draw(
        self, tokens: Tensor, logprobs: Tensor, first: int, ends: frozenset[int]
    ) -> list[tuple[int, int]]:  # fmt: skip
        """Append a token to each row from ``first`` on; returns row and token of those that may be complete with it."""
        rows = slice(first, first + len(tokens))
        self._last[rows] = tokens
        self._length[rows] += 1
        complete, longest = [], self._longest
        for row, token, logprob in zip(count(first), tokens.tolist(), logprobs.tolist()):
            slot = self.live[row]
            slot.tokens.append(token)
            slot.logprobs.append(logprob)
            length = len(slot.tokens)
            if length > longest:
                longest = length
            if token in ends or slot.stops or length >= slot.limit:
                complete.append((row, token))
        self._longest = longest
        return complete

    def remove(self, rows: Collection[int]) -> None:
        """Free these rows: the last live ones move into them."""
        order = list(range(len(self.live)))
        for row in sorted(rows, reverse=True):
            order[row] = order[-1]
            order.pop()
        moves = [(to, source) for to, source in enumerate(order) if to != source]
        self.live = [self.live[source] for source in order]
        if moves:
            to, source = (torch.tensor(x, device=self._last.device) for x in zip(*moves, strict=True))
            for state in (self._last, self._length, self._temperature, self._top_p):
                state[to] = state[source]
            self.cache.move_rows(to, source, max(len(self.live[row].tokens) for row, _ in moves))
        self._look()

    def sequences(self) -> tuple[Tensor, Tensor]:
        """All live sequences but for the newest token of each, padded ``[B, T]``, and their lengths: what the cache holds."""
        longest = max(len(slot.tokens) for slot in self.live) - 1
        tokens = torch.zeros((len(self.live), longest), dtype=torch.long)
        for row, slot in enumerate(self.live):
            known = slot.tokens[:longest]
            tokens[row, : len(known)] = torch.tensor(known)
        return tokens.to(self._last.device), self._length[: len(self.live)].clamp(max=longest)
