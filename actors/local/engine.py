"""The local engine: continuous batching on a static key-value cache; weights are swapped between two decode steps.

A group's prompt is computed once and shared. Live samples are kept in the first rows, so a decode step costs what is live.
Of an episode, what was said is kept between two turns (``actors/local/held.py``). One thread samples; weights come from another through
``sink`` and are taken over before the next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from actors.engine import Completion, Request, UpdateMode
from actors.local.decoder import Decoder
from actors.local.held import Held, Kept
from actors.local.orders import Orders
from actors.local.prompts import Group, computed, next_batch
from actors.local.rows import Rows
from actors.local.sampling import sample
from actors.local.stops import StopFinder
from actors.prompting import answer_text, check_prompt, end_tokens
from actors.slots import Pressure
from broker.errors import EngineError
from broker.messages import Sampling
from broker.weights.receiver import DistributedReceiver
from broker.weights.sink import WeightSink


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
        self.ends = end_tokens(path, config, self.tokenizer)
        self._stops = StopFinder(self.tokenizer.backend_tokenizer, self._decoder.vocabulary)
        self._mode, self._device, self._slots = mode, device, slots
        self._rows = Rows(self._decoder, slots)
        self._prompts = self._decoder.cache(slots, self._decoder.context)
        self._free_prompts = list(range(slots))
        self._held = Held(slots * self._decoder.context)  # as much as the rows of the cache have
        self._queue: deque[Request] = deque()
        self._ready: deque[Group] = deque()
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

    @torch.inference_mode()
    def _take_over(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        if self._asleep:
            raise EngineError("the engine rests: it takes no weights before it is woken")
        other = self._decoder.other_shape(tensors)
        if other is not None:
            self._rebuild(other)
        self._decoder.load(tensors)
        self._version = version
        if self._mode == "abort":
            self._abort()
        if self._mode != "in_place" or other is not None:
            self._held.clear()
            if self._rows.live:
                self._recompute()
        self._rows.change(version)
        self._requeue()

    def _rebuild(self, config: Any) -> None:
        """Take up a model of another size; keys and values of the old one are of no use."""
        old = self._decoder
        self._decoder = Decoder(config, old.dtype, old.device, old.context)
        self._rows.cache = self._decoder.cache(self._rows.capacity, old.context)
        self._prompts = self._decoder.cache(self._rows.capacity, old.context)

    def _abort(self) -> None:
        """End the live samples as they are, but for those that are to be kept."""
        rows = [row for row, slot in enumerate(self._rows.live) if not slot.request.keep]
        for row in rows:
            self._finish(row, "abort")
        self._rows.remove(rows)

    def _requeue(self) -> None:
        """Put back the prompts that were computed with weights, or in a cache, that are no more."""
        while self._ready:
            group = self._ready.pop()
            self._free_prompts.append(group.row)
            self._queue.appendleft(replace(group.request, indices=tuple(group.waiting)))

    def _recompute(self) -> None:
        """Keys and values of all live samples with the weights as they are now; the newest token enters with the next step."""
        self._stale = False
        self._decoder.prefill(*self._rows.sequences(), self._rows.cache)

    # -- shifts on the device -------------------------------------------------------------------------------------------

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
        self._held.clear()
        if self._mode == "abort":
            self._abort()
        for cache in (self._rows.cache, self._prompts):
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
        for cache in (self._rows.cache, self._prompts):
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
        return self._slots - len(self._rows.live) - self._waiting()

    def _waiting(self) -> int:
        return sum(len(g.waiting) for g in self._ready) + sum(len(r.indices) for r in self._queue)

    def pressure(self) -> Pressure:
        """Its cache has a place for every slot, so nothing is ever taken back."""
        return Pressure(self._waiting(), most=self._rows.free + len(self._rows.live))

    def hold(self, slots: int) -> None:
        self._slots = slots

    def submit(self, request: Request) -> None:
        check_prompt(request.tokens, self._decoder.context, self._decoder.vocabulary)
        self._queue.append(request)

    def cancel(self, group_id: str) -> None:
        self._queue = deque(r for r in self._queue if r.group_id != group_id)
        self._held.forget(group_id)
        for group in [g for g in self._ready if g.request.group_id == group_id]:
            self._ready.remove(group)
            self._free_prompts.append(group.row)
        self._rows.remove([row for row, slot in enumerate(self._rows.live) if slot.request.group_id == group_id])
        self._done = [c for c in self._done if c.group_id != group_id]

    # -- sampling ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
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
            if resting or not self._rows.live:
                time.sleep(min(0.005, max(0.0, deadline - time.monotonic())))

    def _go_on(self) -> None:
        """One token for every live sample."""
        if self._stale and self._rows.live:
            self._recompute()
        running = [self._decoder.decode(*self._rows.newest(), self._rows.cache)] if self._rows.live else []
        logits = running + self._admit()
        if logits:
            self._draw(logits[0] if len(logits) == 1 else torch.cat(logits))

    def _admit(self) -> list[Tensor]:
        """Give free slots to waiting samples; compute the prompts of the next requests when those have run out. The logits of each group of them,
        whose first tokens are drawn with the next ones of all others."""
        logits: list[Tensor] = []
        while self._version >= 0 and self._rows.free:
            if not self._ready and not self._prefill():
                break
            group = self._ready[0]
            count = min(self._rows.free, len(group.waiting))
            indices = [group.waiting.popleft() for _ in range(count)]
            self._rows.admit(
                group.request, indices, self._version, time.time(), self._prompts, group.row, group.known
            )  # fmt: skip
            logits.append(group.logits.expand(count, -1))
            if not group.waiting:
                self._ready.popleft()
                self._free_prompts.append(group.row)
        return logits

    def _prefill(self) -> bool:
        """Compute the prompts of requests at the head of the queue; False if there is none that may start."""
        batch = next_batch(self._queue, self._version, len(self._free_prompts))
        kept = [self._held.take(request) for request in batch]
        for later in (False, True):
            chosen = [(r, k) for r, k in zip(batch, kept, strict=True) if (k is not None) == later]
            if chosen:
                self._compute([r for r, _ in chosen], [k for _, k in chosen if k is not None])
        return bool(batch)

    def _compute(self, batch: list[Request], kept: list[Kept]) -> None:
        """The prompts of ``batch``, behind the beginnings that are ``kept`` of them, if they are."""
        scratch, logits, starts = computed(self._decoder, [r.tokens for r in batch], kept)
        for i, request in enumerate(batch):
            row = self._free_prompts.pop()
            self._prompts.copy(scratch, i, row, len(request.tokens))
            self._ready.append(Group(request, deque(request.indices), row, logits[i], starts[i]))

    def _draw(self, logits: Tensor) -> None:
        """Draw the next token of every live row, and end the samples that are complete with it."""
        drawn = sample(logits, *self._rows.settings(), self._generator)
        over: dict[int, str] = {}
        for row, token in self._rows.draw(*drawn, self.ends):
            if token in self.ends or self._stopped(row, token):
                over[row] = "stop"
            elif self._rows.full(row):
                over[row] = "length"
        for row in sorted(over, reverse=True):
            slot = self._rows.live[row]
            if over[row] == "stop" and slot.request.sampling.max_turns > 1:  # it may go on
                self._held.keep(slot, self._rows.tokens(row)[:-1], self._rows.cache, row)
            self._finish(row, over[row])
        if over:
            self._rows.remove(over)

    def _stopped(self, row: int, token: int) -> bool:
        """Whether the newest ``token`` of a row has completed a stop string."""
        stop = self._rows.live[row].request.sampling.stop
        if not stop or token not in self._stops.candidates(stop):
            return False
        return self._stops.hit(self._rows.response(row).tolist(), stop)

    def _finish(self, row: int, reason: str) -> None:
        slot, response = self._rows.live[row], self._rows.response(row)
        request = slot.request
        self._done.append(
            Completion(
                group_id=request.group_id,
                index=slot.index,
                tokens=response,
                logprobs=self._rows.logprobs(row),
                versions=tuple(span for span in slot.versions if span.start < len(response)),
                finish_reason=reason,
                text=answer_text(self.tokenizer, response.tolist(), self.ends, request.sampling.stop),
                started=slot.started,
                cached=slot.cached,
            )
        )

    def close(self) -> None:
        self._sink.leave()
        self._orders.refuse(EngineError("the engine is closed"))
