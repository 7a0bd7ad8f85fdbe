"""The SGLang engine against its own server driven by SGLang's bench_serving, and what an update costs: ``make bench-sglang``.

Both send the same number of random prompts of one length, with the same settings and concurrency, in turns; the ratio is of
medians. Updates go the product's way: publisher process, gloo lane, pause, load, go on.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

from actors.engine import Request, UpdateMode
from actors.sglang.engine import SglangEngine
from actors.sglang.keeper import Keeper
from actors.sglang.server import Server
from broker.control.server import ControlServer
from broker.messages import Sampling
from broker.weights.client import WeightClient
from broker.weights.publisher import WeightPublisher
from learner.model import load_model, save_model

TINY = Path(__file__).resolve().parent.parent / "recipes" / "tiny_model"
PROMPTS, PROMPT, ANSWER, SLOTS, CONTEXT, ROUNDS = 192, 32, 96, 16, 160, 3
STEP_SECONDS = 1.0  # one update a step: the tiny recipe's step on a loaded machine
UPDATES = 12


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


def through(engine: SglangEngine, number: int, group: int = 1) -> float:
    """Tokens per second through the engine, as an actor drives it."""
    draw = np.random.default_rng(number)
    waiting = PROMPTS // group
    tokens, running, started = 0, 0, time.monotonic()
    while waiting or running:
        while waiting and running + group <= SLOTS:
            waiting -= 1
            prompt = draw.integers(0, 300, PROMPT).astype(np.int32)
            engine.submit(Request(f"{number}-{waiting}", tuple(range(group)), prompt, Sampling(max_new_tokens=ANSWER)))
            running += group
        for done in engine.poll(0.05):
            tokens += len(done.tokens)
            running -= 1
    return tokens / (time.monotonic() - started)


def updates(engine: SglangEngine, mode: UpdateMode, model: Path, directory: Path) -> tuple[float, float]:
    """Seconds that the server stands still for one update (median), and the tokens per second with one update a step."""
    control, pauses = ControlServer(), []
    publisher = WeightPublisher(control, directory / f"weights-{mode}", template=model, timeout=30.0)
    sink = engine.sinks[""]
    inner = sink.receive

    def timed(push: object) -> str:
        started = time.monotonic()
        held = inner(push)  # type: ignore[arg-type]
        pauses.append(time.monotonic() - started)
        return held

    sink.receive = timed  # type: ignore[method-assign,assignment]
    client = WeightClient("server", sink)
    client.connect(control.endpoint)
    weights = dict(AutoModelForCausalLM.from_pretrained(model).state_dict())
    stop = threading.Event()

    def step() -> None:
        number = 0
        while not stop.wait(STEP_SECONDS) and number < UPDATES * 10:
            number += 1
            publisher.publish(number, weights)

    thread = threading.Thread(target=step)
    while not control.receivers():
        time.sleep(0.02)
    thread.start()
    rate = statistics.median(through(engine, 100 + i) for i in range(ROUNDS))
    stop.set()
    thread.join()
    publisher.wait(60)
    client.close()
    publisher.close()
    control.close()
    sink.receive = inner  # type: ignore[method-assign]
    return statistics.median(pauses), rate


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = directory / "model"
        save_model(load_model(str(TINY), init="random", seed=1), str(TINY), model)
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
    ours, theirs = [], []
    for number in range(1, ROUNDS + 1):
        theirs.append(direct(server.url, model, directory, number))
        ours.append(through(engine, number))
    grouped = statistics.median(through(engine, 50 + i, 8) for i in range(ROUNDS))
    engine.close()
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"SGLang {version('sglang')}, torch {version('torch')}, {size / 1e6:.1f} M parameters, {SLOTS} at once, prompts of {PROMPT}, answers of up to {ANSWER} tokens\n"
    )
    print("| | tokens/s | of the server driven directly |\n|---|---|---|")
    print(
        f"| bench_serving | {b:,.0f} | 100% |\n| through the engine | {a:,.0f} | {a / b:.1%} |\n| groups of 8 | {grouped:,.0f} | {grouped / b:.1%} |\n"
    )
    print(
        "| update mode | server stands still | of a step of 1 s | tokens/s with one update a step |\n|---|---|---|---|"
    )
    for mode in ("retract", "in_place", "abort"):
        engine = SglangEngine(str(model), [server.url], slots=SLOTS, context=CONTEXT, mode=mode)
        engine.sinks[""].load(model, 0)
        pause, rate = updates(engine, mode, model, directory)
        print(f"| {mode} | {pause * 1000:.0f} ms | {pause / STEP_SECONDS:.1%} | {rate:,.0f} ({rate / a:.1%}) |")
        engine.close()


if __name__ == "__main__":
    main()
