"""The SGLang engine against its own server driven by SGLang's bench_serving, and what an update costs: ``make bench-sglang``.

Both send the same number of random prompts of one length, with the same settings and concurrency, in pairs of which either is first
in turn; the ratio is the median of the pairs', with the lowest and the highest beside it. Updates go the product's way: publisher
process, gloo lane, pause, load, go on; one after every ``STEP`` samples, which are as many tokens as a step of recipes/tiny.toml has.
"""

from __future__ import annotations

import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM

from actors.engine import Request, UpdateMode
from actors.sglang.engine import SglangEngine
from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from broker.control.server import ControlServer
from broker.messages import Sampling
from broker.weights.client import WeightClient
from broker.weights.publisher import WeightPublisher
from learner.model.load import load_model, save_model

TINY = Path(__file__).resolve().parent.parent / "recipes" / "tiny_model"
PROMPTS, PROMPT, ANSWER, SLOTS, CONTEXT = 96, 32, 96, 16, 160
PAIRS, ROUNDS = 8, 6
STEP = 88  # samples between two updates: 8,448 tokens, as 256 samples of 33
SHAPE = {"hidden_size": 256, "intermediate_size": 960, "num_hidden_layers": 4, "head_dim": 64}  # 3.8 M parameters


def direct(url: str, model: Path, directory: Path, number: int) -> float:
    """Output tokens per second as bench_serving counts them."""
    out = directory / f"direct-{number}.jsonl"
    subprocess.run(
        [sys.executable, "-m", "sglang.bench_serving", "--backend", "sglang", "--base-url", url, "--model", str(model),
         "--tokenizer", str(model), "--dataset-name", "random-ids", "--tokenize-prompt", "--random-input-len", str(PROMPT),
         "--random-output-len", str(ANSWER), "--random-range-ratio", "1", "--num-prompts", str(PROMPTS), "--max-concurrency",
         str(SLOTS), "--disable-stream", "--return-logprob", "--temperature", "1.0", "--disable-ignore-eos", "--seed", str(number),
         "--output-file", str(out), "--disable-tqdm", "--warmup-requests", "0"],
        check=True, capture_output=True,
    )  # fmt: skip
    return float(json.loads(out.read_text().splitlines()[-1])["output_throughput"])


def through(engine: SglangEngine, number: int, group: int = 1, step: Callable[[], object] = lambda: None) -> float:
    """Tokens per second through the engine, as an actor drives it; ``step`` is called after every ``STEP`` samples."""
    draw = np.random.default_rng(number)
    waiting = PROMPTS // group
    tokens, running, finished, started = 0, 0, 0, time.monotonic()
    while waiting or running:
        while waiting and running + group <= SLOTS:
            waiting -= 1
            prompt = draw.integers(0, 300, PROMPT).astype(np.int32)
            engine.submit(Request(f"{number}-{waiting}", tuple(range(group)), prompt, Sampling(max_new_tokens=ANSWER)))
            running += group
        for done in engine.poll(0.05):
            tokens += len(done.tokens)
            running, finished = running - 1, finished + 1
            if finished % STEP == 0:
                step()
    return tokens / (time.monotonic() - started)


@dataclass
class Standstill:
    """Stands before a sink's orders to its server, and measures from the pause that is confirmed to the order to go on."""

    order: Callable[..., dict[str, Any]]
    since: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def __call__(self, order: str, *arguments: Any, **fields: Any) -> dict[str, Any]:
        answer = self.order(order, *arguments, **fields)
        now = time.monotonic()
        if order == "pause_generation":
            self.since = now
        if order == "continue_generation":
            self.seconds.append(now - self.since)
        return answer


def updates(engine: SglangEngine, mode: UpdateMode, model: Path, directory: Path) -> tuple[list[float], float, float]:
    """Seconds of each standstill, its share of the time, and the tokens per second, with one update a step."""
    control = ControlServer()
    publisher = WeightPublisher(control, directory / f"weights-{mode}", template=model, timeout=30.0)
    sink = engine.sinks[""]
    stops = Standstill(sink._order)  # type: ignore[attr-defined]
    sink._order = stops  # type: ignore[attr-defined]
    client = WeightClient("server", sink)
    client.connect(control.endpoint)
    weights = dict(AutoModelForCausalLM.from_pretrained(model).state_dict())
    versions = itertools.count(1)
    while not control.receivers():
        time.sleep(0.02)
    publisher.publish(next(versions), weights)
    publisher.wait(60)
    stops.seconds.clear()
    started = time.monotonic()
    rates = [through(engine, 100 + i, step=lambda: publisher.publish(next(versions), weights)) for i in range(ROUNDS)]
    share = sum(stops.seconds) / (time.monotonic() - started)
    publisher.wait(60)
    client.close()
    publisher.close()
    control.close()
    return stops.seconds, share, statistics.median(rates)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = directory / "model"
        shape = directory / "shape"
        shutil.copytree(TINY, shape)
        AutoConfig.from_pretrained(TINY, **SHAPE, layer_types=None).save_pretrained(shape)
        save_model(load_model(str(shape), init="random", seed=1), str(shape), model)
        size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(model).parameters())
        server = Server(
            directory / "server",
            lambda: str(model),
            device="cpu",
            dtype="float32",
            slots=SLOTS,
            context=CONTEXT,
            seed=1,
        )
        keeper = Keeper(server)
        keeper.begin()
        try:
            report(server, model, size, directory)
        finally:
            keeper.stop()


def report(server: Server, model: Path, size: int, directory: Path) -> None:
    engine = SglangEngine(str(model), [server.url], slots=SLOTS, context=CONTEXT)
    engine.sinks[""].load(model, 0)
    through(engine, 0)
    ways: dict[str, Callable[[int], float]] = {
        "bench_serving": lambda number: direct(server.url, model, directory, number),
        "through the engine": lambda number: through(engine, number),
        "groups of 8": lambda number: through(engine, 50 + number, 8),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, PAIRS + 1):
        print(f"pair {number} of {PAIRS}, about a minute each", file=sys.stderr)
        for name in list(ways) if number % 2 else reversed(ways):
            rates[name].append(ways[name](number))
    engine.close()
    a = statistics.median(rates["through the engine"])
    print(
        f"SGLang {version('sglang')}, torch {version('torch')}, {size / 1e6:.1f} M parameters, {SLOTS} at once, prompts of {PROMPT}, answers of up to {ANSWER} tokens\n"
    )
    print(
        f"| | tokens/s | of the server driven directly: median of {PAIRS} pairs | lowest | highest |\n|---|---|---|---|---|"
    )
    for name, found in rates.items():
        shares = [mine / theirs for mine, theirs in zip(found, rates["bench_serving"], strict=True)]
        row = (statistics.median(shares), min(shares), max(shares))
        print(f"| {name} | {statistics.median(found):,.0f} | " + " | ".join(f"{share:.1%}" for share in row) + " |")
    print()
    print("| update mode | server stands still | of the time, one update a step | tokens/s with one update a step |")
    print("|---|---|---|---|")
    for mode in ("retract", "in_place", "abort"):
        print(f"updates by {mode}, about two minutes", file=sys.stderr)
        engine = SglangEngine(str(model), [server.url], slots=SLOTS, context=CONTEXT, mode=mode)
        engine.sinks[""].load(model, 0)
        stops, share, rate = updates(engine, mode, model, directory)
        median = statistics.median(stops) * 1000
        print(f"| {mode} | {median:.0f} ms ({len(stops)} updates) | {share:.2%} | {rate:,.0f} ({rate / a:.1%}) |")
        engine.close()


if __name__ == "__main__":
    main()
