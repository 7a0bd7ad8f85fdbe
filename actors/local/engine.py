"""The local engine: continuous batching on a static key-value cache; weights are swapped between two decode steps.

A group's prompt is computed once and shared. Live samples are kept in the first rows, so a decode step costs what is live.
One thread samples; weights come from another through ``sink`` and are taken over before the next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from actors.engine import Completion, Request, UpdateMode
from actors.local.decoder import Cache, Decoder
from actors.local.orders import Orders
from actors.local.sampling import sample
from actors.local.stops import StopFinder
from actors.prompting import answer_text, check_prompt, end_tokens
from broker.errors import EngineError
from broker.messages import Sampling, VersionSpan
from broker.weights.receiver import DistributedReceiver
from broker.weights.sink import WeightSink

PREFILL_TOKENS = 4096  # of one prefill batch


@dataclass(slots=True)
class _Group:
    """A request whose prompt is in the cache ``row`` of the prompt cache, with the samples that have no slot yet."""

    request: Request
    waiting: deque[int]
    row: int
    logits: Tensor


@dataclass(slots=True)
class _Slot:
    """What is known of a live sample beside the tensors."""

    request: Request
    index: int
    started: float
    cached: int
    versions: list[VersionSpan] = field(default_factory=list)


class LocalEngine:
    """Implements ``actors.engine.Engine`` on the model shape at ``path``; its weights come through ``apply``."""

    def __init__(
        self, path: str, *, slots: int = 64, context: int = 1024, mode: UpdateMode = "retract", dtype: torch.dtype = torch.float32,
        device: str = "cpu", seed: int = 0,
    ) -> None:  # fmt: skip
        from transformers import AutoConfig, AutoTokenizer

        self.name, self.failure = "local/1", ""
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        config = AutoConfig.from_pretrained(path)
        self._decoder = Decoder(config, dtype, device, context)
        self.ends = frozenset(end_tokens(path, config, self.tokenizer))
        self._ends = torch.tensor(sorted(self.ends), device=device)
        self._stops = StopFinder(self.tokenizer.backend_tokenizer, self._decoder.vocabulary)
        self._mode, self._slots, self._device = mode, slots, device
        self._cache = Cache(self._decoder, slots, self._decoder.context)
        self._prompts = Cache(self._decoder, slots, self._decoder.context)
        self._free_prompts = list(range(slots))
        shape = (slots, self._decoder.context)
        self._tokens = torch.zeros(shape, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(shape, device=device)
        self._length = torch.zeros(slots, dtype=torch.long, device=device)  # tokens in the sequence so far
        self._prompt = torch.zeros(slots, dtype=torch.long, device=device)
        self._limit = torch.zeros(slots, dtype=torch.long, device=device)
        self._temperature, self._top_p = torch.ones(slots, device=device), torch.ones(slots, device=device)
        self._live: list[_Slot] = []
        self._queue: deque[Request] = deque()
        self._ready: deque[_Group] = deque()
        self._done: list[Completion] = []
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._orders = Orders()
        self._version = -1
        self._asleep = self._stale = False  # without device memory; with a cache that is to be computed again
        self._awaited, self._until = -1, 0.0  # the version to sample from after a rest, and when others will do
        self._sink: WeightSink = DistributedReceiver(self.apply, device, self.rest, self.wake)

    @property
    def version(self) -> int:
        return self._version

    @property
    def sinks(self) -> Mapping[str, WeightSink]:
        return {"": self._sink}

    # -- weights -------------------------------------------------------------------------------------------------------

    def apply(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Sample from these weights; returns once that is so. Called from any thread. Raises EngineError."""
        self._orders.give(lambda: self._take_over(version, tensors))

    @torch.no_grad()
    def _take_over(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        if self._asleep:
            raise EngineError("the engine rests: it takes no weights before it is woken")
        self._decoder.load(tensors)
        self._version = version
        if self._mode == "abort":
            self._abort()
        elif self._mode == "retract" and self._live:
            self._recompute()
        lengths = (self._length - self._prompt)[: len(self._live)].tolist()
        for slot, start in zip(self._live, lengths, strict=True):
            if slot.versions[-1].start == start:  # nothing was drawn under the version before
                slot.versions.pop()
            slot.versions.append(VersionSpan(version, start))
        self._requeue()

    def _abort(self) -> None:
        """End all live samples as they are."""
        for row in range(len(self._live)):
            self._finish(row, "abort")
        self._live.clear()

    def _requeue(self) -> None:
        """Put back the prompts that were computed with weights, or in a cache, that are no more."""
        while self._ready:
            group = self._ready.pop()
            self._free_prompts.append(group.row)
            self._queue.appendleft(replace(group.request, indices=tuple(group.waiting)))

    def _recompute(self) -> None:
        """Keys and values of all live samples with the weights as they are now; the newest token enters with the next step."""
        self._stale = False
        count = len(self._live)
        longest = int(self._length[:count].max()) - 1
        self._decoder.prefill(self._tokens[:count, :longest], self._length[:count].clamp(max=longest), self._cache)

    # -- turns on the device -------------------------------------------------------------------------------------------

    @property
    def resting(self) -> bool:
        return self._asleep or (self._version < self._awaited and time.monotonic() < self._until)

    def rest(self) -> None:
        """Weights go to host memory. So does the cache with mode ``in_place``; with the others it is computed again afterwards."""
        self._orders.give(self._rest)

    def wake(self, version: int = -1, patience: float = 0.0) -> None:
        self._orders.give(lambda: self._wake(version, patience))

    def _rest(self) -> None:
        if self._asleep:
            return
        self._asleep = True
        if self._mode == "abort":
            self._abort()
        for cache in (self._cache, self._prompts):
            cache.move("cpu") if self._mode == "in_place" else cache.release()
        if self._mode != "in_place":
            self._stale = True
            self._requeue()
        self._decoder.move("cpu")
        if torch.device(self._device).type == "cuda":
            torch.cuda.empty_cache()  # another process is to have it

    def _wake(self, version: int, patience: float) -> None:
        if not self._asleep:
            return
        self._decoder.move(self._device)
        for cache in (self._cache, self._prompts):
            cache.move(self._device) if self._mode == "in_place" else cache.allocate()
        self._awaited, self._until = version, time.monotonic() + patience
        self._asleep = False

    # -- requests ------------------------------------------------------------------------------------------------------

    def check(self, sampling: Sampling) -> None:
        if sampling.max_new_tokens >= self._decoder.context:
            raise EngineError(
                f"max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt in a context of {self._decoder.context}"
            )

    def room(self) -> int:
        waiting = sum(len(g.waiting) for g in self._ready) + sum(len(r.indices) for r in self._queue)
        return self._slots - len(self._live) - waiting

    def submit(self, request: Request) -> None:
        check_prompt(request.tokens, self._decoder.context, self._decoder.vocabulary)
        self._queue.append(request)

    def cancel(self, group_id: str) -> None:
        self._queue = deque(r for r in self._queue if r.group_id != group_id)
        for group in [g for g in self._ready if g.request.group_id == group_id]:
            self._ready.remove(group)
            self._free_prompts.append(group.row)
        for row in reversed([r for r, s in enumerate(self._live) if s.request.group_id == group_id]):
            self._remove(row)
        self._done = [c for c in self._done if c.group_id != group_id]

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def poll(self, timeout: float) -> list[Completion]:
        deadline = time.monotonic() + timeout
        while True:
            self._orders.obey()
            resting = self.resting
            if not resting:
                self._go_on()
            if self._done:
                done, self._done = self._done, []
                return done
            if time.monotonic() >= deadline:
                return []
            if resting or not self._live:
                time.sleep(min(0.005, max(0.0, deadline - time.monotonic())))

    def _go_on(self) -> None:
        """One token for every live sample."""
        if self._stale and self._live:
            self._recompute()
        self._admit()
        if self._live:
            self._step()

    def _admit(self) -> None:
        """Give free slots to waiting samples; compute the prompts of the next requests when those have run out."""
        if self._version < 0:
            return
        while len(self._live) < self._slots:
            if not self._ready and not self._prefill():
                return
            group = self._ready[0]
            count = min(self._slots - len(self._live), len(group.waiting))
            self._start(group, [group.waiting.popleft() for _ in range(count)])
            if not group.waiting:
                self._ready.popleft()
                self._free_prompts.append(group.row)

    def _prefill(self) -> bool:
        """Compute the prompts of requests at the head of the queue; False if there is none that may start."""
        batch: list[Request] = []
        skipped: deque[Request] = deque()
        longest = 0
        while self._queue and len(batch) < len(self._free_prompts):
            request = self._queue.popleft()
            if request.min_version > self._version:
                skipped.append(request)
                continue
            longest = max(longest, len(request.tokens))
            if batch and longest * (len(batch) + 1) > PREFILL_TOKENS:
                self._queue.appendleft(request)
                break
            batch.append(request)
        self._queue.extendleft(reversed(skipped))
        if not batch:
            return False
        longest = max(len(r.tokens) for r in batch)
        tokens = torch.zeros((len(batch), longest), dtype=torch.long)
        for i, request in enumerate(batch):
            tokens[i, : len(request.tokens)] = torch.from_numpy(request.tokens.astype(np.int64))
        scratch = Cache(self._decoder, len(batch), longest)
        lengths = torch.tensor([len(r.tokens) for r in batch], device=self._device)
        logits = self._decoder.prefill(tokens.to(self._device), lengths, scratch)
        for i, request in enumerate(batch):
            row = self._free_prompts.pop()
            self._prompts.copy(scratch, i, row, len(request.tokens))
            self._ready.append(_Group(request, deque(request.indices), row, logits[i]))
        return True

    def _start(self, group: _Group, indices: list[int]) -> None:
        """Put samples of a group into the next rows and draw the first token of each."""
        request, first, now = group.request, len(self._live), time.time()
        rows = slice(first, first + len(indices))
        length, sampling = len(request.tokens), request.sampling
        for mine, theirs in ((self._cache.keys, self._prompts.keys), (self._cache.values, self._prompts.values)):
            for a, b in zip(mine, theirs, strict=True):
                a[rows, :, :length] = b[group.row, :, :length]
        self._tokens[rows, :length] = torch.from_numpy(request.tokens.astype(np.int64)).to(self._device)
        self._prompt[rows] = self._length[rows] = length
        self._limit[rows] = min(length + sampling.max_new_tokens, self._decoder.context)
        self._temperature[rows], self._top_p[rows] = sampling.temperature, sampling.top_p
        for i in indices:
            cached = 0 if i == request.indices[0] else length
            self._live.append(_Slot(request, i, now, cached, [VersionSpan(self._version, 0)]))
        self._draw(group.logits.expand(len(indices), -1), first)

    def _step(self) -> None:
        """One decode step of all live samples."""
        count = len(self._live)
        positions = self._length[:count] - 1
        tokens = self._tokens[:count].gather(1, positions[:, None])[:, 0]
        self._draw(self._decoder.decode(tokens, positions, int(positions.max()) + 1, self._cache), 0)

    def _draw(self, logits: Tensor, first: int) -> None:
        """Draw the next token of the rows from ``first`` on, and end the samples that are complete with it."""
        rows = slice(first, first + len(logits))
        top_p = self._top_p[rows] if bool((self._top_p[rows] < 1).any()) else None
        drawn, logprobs = sample(logits, self._temperature[rows], top_p, self._generator)
        at = self._length[rows, None]
        self._tokens[rows].scatter_(1, at, drawn[:, None])
        self._logprobs[rows].scatter_(1, at, logprobs[:, None])
        self._length[rows] += 1
        ended = torch.isin(drawn, self._ends)
        full = self._length[rows] >= self._limit[rows]
        stopped = self._stopped(drawn, first)
        over = (ended | full).nonzero()[:, 0].tolist()
        for row in sorted({first + i for i in over} | stopped, reverse=True):
            self._finish(row, "stop" if row in stopped or bool(ended[row - first]) else "length")
            self._remove(row)

    def _stopped(self, drawn: Tensor, first: int) -> set[int]:
        """The rows whose newest token has completed a stop string."""
        stops = [slot.request.sampling.stop for slot in self._live[first : first + len(drawn)]]
        found: set[int] = set()
        for stop in {s for s in stops if s}:
            for i in self._stops.candidates(stop)[drawn.cpu()].nonzero()[:, 0].tolist():
                row = first + i
                if stops[i] == stop and self._stops.hit(self._response(row), stop):
                    found.add(row)
        return found

    def _response(self, row: int) -> list[int]:
        """The sampled tokens, without the end token."""
        ids: list[int] = self._tokens[row, self._prompt[row] : self._length[row]].tolist()
        if ids and ids[-1] in self.ends:
            ids.pop()
        return ids

    def _finish(self, row: int, reason: str) -> None:
        slot = self._live[row]
        part = slice(int(self._prompt[row]), int(self._length[row]))
        versions, count = [], part.stop - part.start
        for span in slot.versions:
            if span.start < count:
                versions.append(span)
        self._done.append(
            Completion(
                group_id=slot.request.group_id,
                index=slot.index,
                tokens=self._tokens[row, part].to("cpu", torch.int32).numpy(),
                logprobs=self._logprobs[row, part].to("cpu", torch.float32, copy=True).numpy(),
                versions=tuple(versions),
                finish_reason=reason,
                text=answer_text(
                    self.tokenizer, self._tokens[row, part].tolist(), self.ends, slot.request.sampling.stop
                ),
                started=slot.started,
                cached=slot.cached,
            )
        )

    def _remove(self, row: int) -> None:
        """Free a row: the last live one moves into it."""
        last = len(self._live) - 1
        if row != last:
            length = int(self._length[last])
            self._cache.copy(self._cache, last, row, length)
            for state in (
                self._tokens,
                self._logprobs,
                self._length,
                self._prompt,
                self._limit,
                self._temperature,
                self._top_p,
            ):
                state[row] = state[last]
            self._live[row] = self._live[last]
        self._live.pop()

    def close(self) -> None:
        self._sink.leave()
        self._orders.refuse(EngineError("the engine is closed"))
