"""The SGLang engine: groups go whole to one server each and share their prompt there; samples come back as they are asked for.

Requests run on an event loop of its own thread. A request that is lost with its server is made again: no sample of it was
delivered, so there are never two under one id. Samples that an update aborts are asked for again by the worker.
"""

from __future__ import annotations

import asyncio
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np

from actors.engine import Completion, Request, UpdateMode
from actors.prompting import answer_text, check_prompt, configured_ends, end_tokens
from actors.sglang.link import ServerLink, ServerSink, gives_back, words
from actors.sglang.pressure import PressureWatch
from actors.slots import Pressure
from broker.errors import EngineError, WeightPushError
from broker.messages import Sampling, VersionSpan
from broker.weights.sink import WeightSink

log = logging.getLogger("sglang")
SAMPLE_SECONDS = 3600.0  # limit of one request: a server that says nothing at all is noticed by its connection
BACK_OFF = (0.2, 0.5, 1.0, 2.0, 5.0)
WAIT_SECONDS = 0.02  # interval at which to look for a server that takes requests
CHECK_SECONDS = 60.0


class SglangEngine:
    """Implements ``actors.engine.Engine`` on the servers at ``urls``; ``path`` is a directory with config and tokenizer.

    ``newest`` knows the newest published weights: a server that was away and lost its own takes these. ``why_ended`` says why there is
    no server any more, if so. Raises EngineError if a server does not answer.
    """

    def __init__(
        self, path: str, urls: Sequence[str], *, slots: int, context: int, mode: UpdateMode = "retract",
        newest: Callable[[], tuple[Path, int] | None] = lambda: None, timeout: float = 10.0, why_ended: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(path)
        config = AutoConfig.from_pretrained(path)
        self.ends = end_tokens(path, config, self.tokenizer)
        self._told = sorted(
            self.ends - configured_ends(path, config)
        )  # what a server does not know from the model's files
        self._vocabulary = int(config.vocab_size)
        self._links = [ServerLink(url) for url in urls]
        self._newest, self._recovering = newest, set[str]()
        said = [link.ask("server_info", timeout) for link in self._links]
        self._sinks = {
            link.url: ServerSink(
                link, mode, int(about.get("tp_size") or 1), partial(self._lost, link), gives_back(about)
            )
            for link, about in zip(self._links, said, strict=True)
        }
        self.name = f"sglang/{said[0].get('version', '?')}"
        self._context = min([context, *(int(s["context_length"]) for s in said if s.get("context_length"))])
        self._why_ended = why_ended
        self._slots = slots
        self._watch: PressureWatch | None = None
        self._closed = threading.Event()
        self._checked: set[Sampling] = set()
        self._done: queue.SimpleQueue[tuple[int, Completion]] = queue.SimpleQueue()
        self._open: dict[int, tuple[str, int]] = {}
        """By number of submission: the group, and how many of its samples are to come."""
        self._submitted = 0
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._http: aiohttp.ClientSession | None = None
        self._thread = threading.Thread(target=self._run, name="sglang", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def failure(self) -> str:
        return self._why_ended()

    @property
    def version(self) -> int:
        """The oldest that is sampled from now, of the servers that may be asked."""
        return min((link.version for link in self._links if link.version >= 0), default=-1)

    @property
    def sinks(self) -> Mapping[str, WeightSink]:
        return {"" if len(self._sinks) == 1 else f".{i}": sink for i, sink in enumerate(self._sinks.values())}

    @property
    def resting(self) -> bool:
        return all(link.resting for link in self._links)

    def rest(self) -> None:
        for sink in self._sinks.values():
            sink.rest()

    def wake(self, version: int = -1, patience: float = 0.0) -> None:
        for sink in self._sinks.values():
            sink.wake(version, patience)

    # -- requests ------------------------------------------------------------------------------------------------------

    def check(self, sampling: Sampling) -> None:
        """Ask a server once for one token with these parameters."""
        if sampling in self._checked:
            return
        body = {
            "input_ids": [min(self.ends)],
            "sampling_params": {**self._parameters(sampling, 1), "max_new_tokens": 1},
        }
        for link in (link for link in self._links if not link.resting):
            try:
                answer = httpx.post(f"{link.url}/generate", json=body, timeout=CHECK_SECONDS)
            except httpx.HTTPError:
                continue  # it may be away; another can tell as well
            if answer.status_code == httpx.codes.BAD_REQUEST:
                raise EngineError(f"{link.url} refuses {sampling}: {words(answer.json())}")
            if answer.status_code == httpx.codes.OK:
                self._checked.add(sampling)
                return

    def room(self) -> int:
        return self._slots * max(1, sum(link.version >= 0 for link in self._links)) - sum(
            count for _, count in self._open.values()
        )

    def pressure(self) -> Pressure:
        """Of the servers together, for the one that is pressed most. Nothing is known before they have been looked at."""
        if self._watch is None:
            self._watch = PressureWatch([link.url for link in self._links], self._closed)
        return self._watch.worst()

    def hold(self, slots: int) -> None:
        self._slots = slots

    def submit(self, request: Request) -> None:
        """A token outside of the vocabulary would end the server, so it is refused here."""
        check_prompt(request.tokens, self._context, self._vocabulary, answer=2)
        self._submitted += 1
        self._open[self._submitted] = (request.group_id, len(request.indices))
        self._loop.call_soon_threadsafe(self._begin, self._submitted, request)

    def _begin(self, number: int, request: Request) -> None:
        task = self._loop.create_task(self._sample(number, request))
        self._tasks[number] = task

        def ended(it: asyncio.Task[None]) -> None:
            self._tasks.pop(number, None)
            if not it.cancelled() and it.exception() is not None:  # nothing may get lost here
                self._refuse(number, request, f"{type(it.exception()).__name__}: {it.exception()}")

        task.add_done_callback(ended)

    def cancel(self, group_id: str) -> None:
        numbers = [number for number, (name, _) in self._open.items() if name == group_id]

        def forget() -> None:
            for number in numbers:
                if number in self._tasks:
                    self._tasks[number].cancel()

        for number in numbers:
            del self._open[number]
        self._loop.call_soon_threadsafe(forget)

    def poll(self, timeout: float) -> list[Completion]:
        done: list[Completion] = []
        deadline = time.monotonic() + timeout
        while True:
            try:
                number, completion = self._done.get(timeout=0 if done else max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return done
            if number in self._open:  # not cancelled meanwhile
                done.append(completion)
                name, left = self._open.pop(number)
                if left > 1:
                    self._open[number] = (name, left - 1)

    def close(self) -> None:
        self._closed.set()

        async def end() -> None:
            for task in list(self._tasks.values()):
                task.cancel()
            if self._http is not None:
                await self._http.close()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        for sink in self._sinks.values():
            sink.close()

    # -- on the loop ---------------------------------------------------------------------------------------------------

    async def _sample(self, number: int, request: Request) -> None:
        """Have a server sample the request, however often it takes until one has answered."""
        if self._http is None:
            limit = aiohttp.ClientTimeout(total=SAMPLE_SECONDS, connect=10.0)
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=limit)
        count, started = len(request.indices), time.time()
        body = {
            "input_ids": request.tokens.tolist(),
            "sampling_params": self._parameters(request.sampling, len(request.tokens), count),
            "return_logprob": True,
        }
        while True:
            link = await self._free_server(request)
            link.running += count
            link.kept += count if request.keep else 0
            try:
                async with self._http.post(f"{link.url}/generate", json=body) as answer:
                    found = json.loads(await answer.read())
                    if answer.status == httpx.codes.BAD_REQUEST:
                        return self._refuse(number, request, words(found))
                    answer.raise_for_status()
                samples = found if isinstance(found, list) else [found]
                done = [self._completion(request, i, s, started) for i, s in zip(request.indices, samples, strict=True)]
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
                link.failures += 1
                self._lost(link, 0.0, f"{type(error).__name__} {error}")
                await asyncio.sleep(BACK_OFF[min(link.failures, len(BACK_OFF)) - 1])
                continue
            finally:
                link.running -= count
                link.kept -= count if request.keep else 0
            link.failures = 0
            for completion in done:
                self._done.put((number, completion))
            return None

    def _lost(self, link: ServerLink, patience: float, why: str) -> None:
        """A server has not answered, or does not hold whole weights of a known version: ask it nothing until it does again."""
        if link.url in self._recovering:
            return
        log.warning("%s is not asked for now: %s", link.url, why)
        link.version = -1
        self._recovering.add(link.url)
        threading.Thread(target=self._recover, args=(link, patience), name=f"recover {link.url}", daemon=True).start()

    def _recover(self, link: ServerLink, patience: float) -> None:
        """Look after a lost server until it is back; ``patience`` is what a learner has that will push again."""
        begun = time.monotonic()
        while link.version < 0 and time.monotonic() - begun < patience and not self._closed.wait(WAIT_SECONDS):
            pass
        while link.version < 0 and not self._closed.wait(
            BACK_OFF[min(int(time.monotonic() - begun), len(BACK_OFF) - 1)]
        ):
            try:
                self._sinks[link.url].recover(self._newest())
            except WeightPushError as error:
                log.info("%s is away: %s", link.url, error)
        self._recovering.discard(link.url)
        if link.version >= 0:
            log.info("%s is back with version %d after %.0f s", link.url, link.version, time.monotonic() - begun)

    async def _free_server(self, request: Request) -> ServerLink:
        """Wait for a server that does not rest and holds weights new enough; the one with the least to do, none that has just failed first."""
        while True:
            enough = max(0, request.min_version)
            ready = [link for link in self._links if link.version >= enough and not link.resting]
            if ready:
                return min(ready, key=lambda link: (link.failures, link.running))
            await asyncio.sleep(WAIT_SECONDS)

    def _parameters(self, sampling: Sampling, prompt: int, count: int = 1) -> dict[str, Any]:
        found: dict[str, Any] = {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "n": count, "skip_special_tokens": False,
            "max_new_tokens": min(sampling.max_new_tokens, self._context - prompt - 1),
        }  # fmt: skip
        if self._told:
            found["stop_token_ids"] = self._told
        return {**found, "stop": list(sampling.stop)} if sampling.stop else found

    def _completion(self, request: Request, index: int, sample: Mapping[str, Any], started: float) -> Completion:
        about = sample["meta_info"]
        reason = about["finish_reason"]["type"]
        drawn = about.get("output_token_logprobs") or []
        tokens = np.array([token for _, token, _ in drawn], np.int32)
        if tokens.tolist() != list(sample["output_ids"]):
            raise ValueError(f"{len(drawn)} log-probabilities for {len(sample['output_ids'])} tokens")
        return Completion(
            group_id=request.group_id,
            index=index,
            tokens=tokens,
            logprobs=np.array([value for value, _, _ in drawn], np.float32),
            versions=spans_of(about),
            finish_reason=reason if reason in ("stop", "length") else "abort",
            text=answer_text(self.tokenizer, tokens.tolist(), self.ends, request.sampling.stop),
            started=started,
            cached=int(about.get("cached_tokens") or 0),
        )

    def _refuse(self, number: int, request: Request, why: str) -> None:
        empty = np.zeros(0, np.int32), np.zeros(0, np.float32)
        for index in request.indices:
            self._done.put((number, Completion(request.group_id, index, *empty, (), "refused", why, time.time())))


def spans_of(about: Mapping[str, Any]) -> tuple[VersionSpan, ...]:
    """The versions that the server sampled the tokens from. Raises ValueError if it was never told one."""
    spans = about.get("weight_versions") or [{"version": about["weight_version"], "start": 0, "end": 1}]
    return tuple(VersionSpan(int(s["version"]), int(s["start"])) for s in spans if s["end"] > s["start"])
