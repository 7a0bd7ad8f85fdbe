"""The local engine against transformers: the same log-probabilities, whatever joins, leaves, or changes on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patience import HANG
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from actors.engine import Completion, Request
from actors.local.engine import LocalEngine
from actors.local.sampling import sample
from actors.local.stops import StopFinder
from broker.errors import EngineError
from broker.messages import Sampling

TINY = Path(__file__).resolve().parents[2] / "recipes" / "tiny_model"
SHAPE: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 302,
}  # fmt: skip
CONFIGS = {
    "qwen3": Qwen3Config(**SHAPE, head_dim=16, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SHAPE),
    "llama": LlamaConfig(**SHAPE, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
}  # fmt: skip


class Policy:
    """A random model on disk, and what transformers says of it."""

    def __init__(self, directory: Path, config: Any, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.path = directory
        self.model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8)
        self.model.save_pretrained(directory)
        AutoTokenizer.from_pretrained(TINY).save_pretrained(directory)

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: v.clone() for k, v in self.model.state_dict().items()}

    def logprobs(
        self, prompt: np.ndarray, tokens: np.ndarray, temperature: float = 1.0, top_p: float = 1.0
    ) -> np.ndarray:
        ids = torch.from_numpy(np.concatenate((prompt, tokens))).long()[None]
        with torch.no_grad():
            each = torch.log_softmax(self.model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature, -1)
        if top_p < 1:
            ordered, index = each.exp().sort(-1, descending=True)
            ordered[(ordered.cumsum(-1) - ordered) >= top_p] = 0
            kept = torch.zeros_like(ordered).scatter(1, index, ordered)
            each = (kept / kept.sum(-1, keepdim=True)).log()
        return each.gather(1, torch.from_numpy(tokens).long()[:, None])[:, 0].numpy()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    torch.set_num_threads(1)
    return Policy(tmp_path_factory.mktemp("policy"), CONFIGS["qwen3"])


def engine_of(policy: Policy, **options: Any) -> LocalEngine:
    engine = LocalEngine(str(policy.path), **{"slots": 8, "context": 64, **options})
    engine.apply(0, policy.weights())
    return engine


def request(name: str, prompt: Sequence[int], count: int = 1, **sampling: Any) -> Request:
    return Request(
        name, tuple(range(count)), np.array(prompt, np.int32), Sampling(**{"max_new_tokens": 12, **sampling})
    )


def drain(engine: LocalEngine, count: int) -> list[Completion]:
    out: list[Completion] = []
    deadline = time.monotonic() + HANG
    while len(out) < count:
        out += engine.poll(0.05)
        assert time.monotonic() < deadline
    return out


PROMPTS = {"a": [5, 9, 40], "b": [7], "c": [8, 3, 1, 99, 12, 250, 4, 4, 17], "d": [60, 61]}


@pytest.mark.long
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (0.6, 0.95), (0.0, 1.0)])
def test_log_probabilities_are_those_of_transformers(
    tmp_path: Path, kind: str, temperature: float, top_p: float
) -> None:
    policy = Policy(tmp_path, CONFIGS[kind])
    engine = engine_of(policy)
    for name, prompt in PROMPTS.items():
        engine.submit(request(name, prompt, 5, temperature=temperature, top_p=top_p))
    done = drain(engine, 20)
    assert sorted((c.group_id, c.index) for c in done) == [(g, i) for g in "abcd" for i in range(5)]
    for c in done:
        # where the nucleus ends within rounding of top_p, one token more or less is in it
        edges = {top_p} if top_p in (0.0, 1.0) else {top_p, top_p - 1e-5, top_p + 1e-5}
        prompt = np.array(PROMPTS[c.group_id], np.int32)
        wanted = [policy.logprobs(prompt, c.tokens, temperature or 1.0, edge) for edge in edges]
        assert np.min(np.abs(np.array(wanted) - c.logprobs), axis=0).max() < 1e-4
        assert [tuple(v) for v in c.versions] == [(0, 0)]
        assert len(c.tokens) == 12 or c.tokens[-1] == 302
    if temperature == 0:
        assert len({tuple(c.tokens) for c in done if c.group_id == "a"}) == 1


def test_groups_join_while_others_run_and_leave_when_cancelled(policy: Policy) -> None:
    engine = engine_of(policy, slots=4)
    assert engine.room() == 4
    engine.submit(request("a", PROMPTS["a"], 6, max_new_tokens=30))
    engine.poll(0.0)
    engine.submit(request("b", PROMPTS["b"], 3))
    engine.submit(request("c", PROMPTS["c"], 2))
    engine.cancel("b")
    done = drain(engine, 8)
    assert sorted((c.group_id, c.index) for c in done) == [("a", i) for i in range(6)] + [("c", 0), ("c", 1)]
    for c in done:
        assert c.logprobs == pytest.approx(policy.logprobs(np.array(PROMPTS[c.group_id], np.int32), c.tokens), abs=1e-4)
    assert engine.room() == 4 and engine.poll(0.0) == []


def test_samples_of_different_settings_are_drawn_side_by_side(policy: Policy) -> None:
    engine = engine_of(policy, slots=6)
    settings = {"a": (1.0, 1.0), "b": (0.7, 1.0), "c": (1.0, 0.8), "d": (0.0, 1.0)}
    for name, (temperature, top_p) in settings.items():
        length = 4 * (1 + list(settings).index(name))
        sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": length}
        engine.submit(request(name, PROMPTS[name], 3, **sampling))
    for c in drain(engine, 12):
        temperature, top_p = settings[c.group_id]
        edges = {top_p} if top_p == 1 else {top_p, top_p - 1e-5, top_p + 1e-5}
        prompt = np.array(PROMPTS[c.group_id], np.int32)
        wanted = [policy.logprobs(prompt, c.tokens, temperature or 1.0, edge) for edge in edges]
        assert np.min(np.abs(np.array(wanted) - c.logprobs), axis=0).max() < 1e-4


def test_weights_that_are_not_whole_change_nothing_and_others_take_the_room_of_those_before(
    policy: Policy, tmp_path: Path
) -> None:
    newer, engine = Policy(tmp_path, CONFIGS["qwen3"], seed=1), engine_of(policy)
    room = [layer.gate_up.data_ptr() for layer in engine._decoder.layers]
    name = "model.layers.1.mlp.down_proj.weight"
    lacking, cut = newer.weights(), newer.weights()
    cut[name] = lacking.pop(name)[:, 1:]
    for broken, words in ((lacking, "lack 'model.layers.1"), (cut, "where this model has")):
        with pytest.raises(EngineError, match=words):
            engine.apply(1, broken)
    for version, now in ((0, policy), (1, newer)):
        engine.submit(request("a", PROMPTS["a"], 2))
        for c in drain(engine, 2):
            assert c.versions[0].version == version
            assert c.logprobs == pytest.approx(now.logprobs(np.array(PROMPTS["a"], np.int32), c.tokens), abs=1e-4)
        engine.apply(1, newer.weights())
    assert room == [layer.gate_up.data_ptr() for layer in engine._decoder.layers]


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
def test_weights_change_between_two_tokens(policy: Policy, tmp_path: Path, mode: str) -> None:
    newer = Policy(tmp_path, CONFIGS["qwen3"], seed=1)
    engine = engine_of(policy, mode=mode)
    engine.submit(request("a", PROMPTS["a"], 3, max_new_tokens=40))
    engine.submit(request("c", PROMPTS["c"], 3, max_new_tokens=40))
    done: list[Completion] = []
    for _ in range(6):
        done += engine.poll(0.0)
    engine.apply(1, newer.weights())
    assert engine.version == 1
    done += drain(engine, 6 - len(done))
    crossed = 0
    for c in done:
        prompt = np.array(PROMPTS[c.group_id], np.int32)
        if mode == "abort":
            assert c.finish_reason in ("abort", "stop") and c.versions[-1].version == 0
            crossed += c.finish_reason == "abort"
        elif len(c.versions) == 2:
            crossed += 1
            (old, start), (new, change) = c.versions
            assert (old, start, new) == (0, 0, 1) and 0 < change < len(c.tokens)
            assert c.logprobs[:change] == pytest.approx(policy.logprobs(prompt, c.tokens)[:change], abs=1e-4)
            after = newer.logprobs(prompt, c.tokens)[change:]
            if mode == "retract":
                assert c.logprobs[change:] == pytest.approx(after, abs=1e-4)
            else:
                assert np.abs(c.logprobs[change:] - after).max() > 1e-3, "the cache is of the old weights"
    assert crossed > 0


def test_weights_come_from_another_thread_and_a_request_waits_for_its_version(policy: Policy) -> None:
    engine = engine_of(policy)
    engine.submit(Request("a", (0,), np.array([5], np.int32), Sampling(max_new_tokens=2), min_version=3))
    assert engine.poll(0.05) == []
    thread = threading.Thread(target=engine.apply, args=(3, policy.weights()))
    thread.start()
    (done,) = drain(engine, 1)
    thread.join()
    assert done.versions[0].version == 3


def test_stop_strings_end_tokens_and_the_context_end_a_sample(policy: Policy) -> None:
    engine = engine_of(policy, context=16)
    engine.submit(request("full", PROMPTS["c"], 1, max_new_tokens=15))
    (done,) = drain(engine, 1)
    assert done.finish_reason in ("length", "stop") and len(done.tokens) <= 16 - len(PROMPTS["c"])
    engine = engine_of(policy)
    engine.submit(request("free", PROMPTS["a"], 1, temperature=0.0, max_new_tokens=20))
    (free,) = drain(engine, 1)
    stop = free.text[4:6]
    assert len(stop) == 2
    engine.submit(request("stop", PROMPTS["a"], 1, temperature=0.0, max_new_tokens=20, stop=(stop,)))
    (stopped,) = drain(engine, 1)
    assert stopped.finish_reason == "stop" and stopped.text == free.text[: free.text.index(stop)]
    assert len(stopped.tokens) < len(free.tokens)


def test_what_can_never_be_served_is_refused(policy: Policy) -> None:
    engine = engine_of(policy)
    with pytest.raises(EngineError, match="context of 64"):
        engine.submit(request("long", list(range(64))))
    with pytest.raises(EngineError, match="vocabulary of 320"):
        engine.submit(request("odd", [320]))
    with pytest.raises(EngineError, match="max_new_tokens 64"):
        engine.check(Sampling(max_new_tokens=64))
    with pytest.raises(EngineError, match=r"lack 'model\.norm\.weight'"):
        engine.apply(1, {k: v for k, v in policy.weights().items() if k != "model.norm.weight"})


@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_weights_of_another_size_are_taken_over_in_the_middle_of_samples(
    policy: Policy, tmp_path: Path, mode: Any
) -> None:
    sizes = {
        "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3, "num_key_value_heads": 3,
    }  # fmt: skip
    other = Policy(tmp_path, Qwen3Config(**{**SHAPE, **sizes}, head_dim=16, tie_word_embeddings=False), seed=4)
    engine = engine_of(policy, mode=mode)
    engine.submit(request("a", [5, 6, 7], 2, max_new_tokens=30))
    for _ in range(4):
        engine._go_on()
    thread = threading.Thread(target=engine.apply, args=(1, other.weights()))
    thread.start()
    done: list[Completion] = []
    while len(done) < 2:
        done += engine.poll(0.5)
    thread.join()
    engine.submit(request("b", [9, 10]))
    while len(done) < 3:
        done += engine.poll(0.5)
    for sample_ in done:
        begins = {span.version: span.start for span in sample_.versions}
        prompt = np.array([5, 6, 7] if sample_.group_id == "a" else [9, 10], np.int32)
        wanted = other.logprobs(prompt, sample_.tokens)[begins[1] :]
        assert np.allclose(sample_.logprobs[begins[1] :], wanted, atol=1e-4)
    with pytest.raises(EngineError, match="of another model"):
        engine.apply(2, {**other.weights(), "model.embed_tokens.weight": torch.zeros(100, 48)})


def test_sampling_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5]).expand(20_000, 5)
    drawn, logprobs = sample(logits, torch.full((20_000,), 0.8), None, generator)
    wanted = torch.softmax(logits[0] / 0.8, -1)
    counts = torch.bincount(drawn, minlength=5).double()
    chi_square = float((((counts - wanted * 20_000) ** 2) / (wanted * 20_000)).sum())
    assert chi_square < 18.5, "the 99.9% point of chi-square with 4 degrees of freedom"
    assert torch.allclose(logprobs, wanted.log()[drawn], atol=1e-5)


def test_stop_strings_are_found_over_token_borders_by_the_tokens_that_can_end_them(policy: Policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path).backend_tokenizer
    finder = StopFinder(tokenizer, 320)
    for text, stops in (
        ("a+b=12, so", ("=12",)),
        ("one\n\ntwo", ("\n\n",)),
        ("<answer>7</answer>", ("</ans", "zzz")),
        ("é∑ü", ("∑",)),
    ):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        first = next(i for i in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:i]) for s in stops))
        for i in range(1, first + 1):
            hit = ids[i - 1] in finder.candidates(stops) and finder.hit(ids[:i], stops)
            assert hit == (i == first), (text, i)
    assert len(finder.candidates(("=12",))) < 30, "few tokens can end it"


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
@pytest.mark.parametrize("newer_weights", [False, True])
def test_what_is_under_way_goes_on_after_a_rest(policy: Policy, tmp_path: Path, mode: str, newer_weights: bool) -> None:
    """No token is drawn at rest; behind it samples go on with the weights that are there then, as around an update."""
    newer = Policy(tmp_path, CONFIGS["qwen3"], seed=1)
    engine = engine_of(policy, mode=mode, slots=4)
    engine.submit(request("a", PROMPTS["a"], 3, max_new_tokens=40))
    engine.submit(request("c", PROMPTS["c"], 3, max_new_tokens=40))  # for two of these there is no slot yet
    done: list[Completion] = []
    for _ in range(4):
        done += engine.poll(0.0)
    assert not done and not engine.resting
    before = engine._rows.drawn
    engine.rest()
    engine.rest()
    assert engine.resting
    done = engine.poll(0.1)
    assert [c.finish_reason for c in done] == ["abort"] * (4 if mode == "abort" else 0)
    drawn = sum(len(c.tokens) for c in done) + engine._rows.drawn
    assert drawn == before > 0
    engine.submit(request("b", PROMPTS["b"], 2))
    engine.cancel("a")
    done = [c for c in done if c.group_id != "a"]
    engine.wake()
    if newer_weights:
        engine.apply(1, newer.weights())
    engine.wake()
    done += drain(engine, 5 - len(done))
    kept = 0
    for c in done:
        prompt = np.array(PROMPTS[c.group_id], np.int32)
        expected = policy.logprobs(prompt, c.tokens)
        change = c.versions[-1].start if c.versions[-1].version == 1 else len(c.tokens)
        assert c.logprobs[:change] == pytest.approx(expected[:change], abs=1e-4)
        if mode != "in_place" or change == 0:
            assert c.logprobs[change:] == pytest.approx(newer.logprobs(prompt, c.tokens)[change:], abs=1e-4)
        kept += 0 < change < len(c.tokens) if newer_weights else c.group_id == "c" and c.finish_reason != "abort"
    assert kept if mode != "abort" else any(c.finish_reason == "abort" for c in done)
    assert engine.room() == 4


def test_an_engine_that_is_woken_waits_for_the_weights_of_the_turn_but_not_for_ever(policy: Policy) -> None:
    engine = engine_of(policy)
    engine.submit(request("a", PROMPTS["a"], 1))
    engine.rest()
    with pytest.raises(EngineError, match="rests"):
        engine.apply(1, policy.weights())
    engine.wake(version=1, patience=60.0)
    assert engine.poll(0.1) == [] and engine.resting
    engine.apply(1, policy.weights())
    (done,) = drain(engine, 1)
    assert [v.version for v in done.versions] == [1]
    engine.rest()
    engine.wake(version=2, patience=0.2)  # it never comes
    engine.submit(request("b", PROMPTS["b"], 1))
    (done,) = drain(engine, 1)
    assert [v.version for v in done.versions] == [1]


# -- episodes ----------------------------------------------------------------------------------------------------------


def turns_of(engine: LocalEngine, policy: Policy, between: Sequence[int], turns: int = 3, **changes: Any) -> list[int]:
    """Episodes of some turns, a reply each, whose tokens are checked against transformers; returns what was not computed anew."""
    said = {name: list(prompt) for name, prompt in PROMPTS.items()}
    cached = []
    for _ in range(turns):
        for name, tokens in said.items():
            engine.submit(request(name, tokens, max_new_tokens=20, max_turns=5, stop=tuple("etaoinsr "), **changes))
        done = drain(engine, len(said))
        for c in done:
            wanted = policy.logprobs(np.array(said[c.group_id], np.int32), c.tokens)
            assert c.logprobs == pytest.approx(wanted, abs=1e-4)
            cached.append(c.cached)
            said[c.group_id] += [*c.tokens.tolist(), *between]
        said = {c.group_id: said[c.group_id] for c in done if c.finish_reason == "stop"}
    return cached


def test_a_later_turn_computes_what_is_new_in_it(policy: Policy) -> None:
    engine = engine_of(policy, context=128)
    cached = turns_of(engine, policy, [9, 41, 7])
    assert cached[: len(PROMPTS)] == [0] * len(PROMPTS) and len(cached) > len(PROMPTS)
    assert all(known > 0 for known in cached[len(PROMPTS) :])
    small = engine_of(policy, context=128)
    small._held._room = 8
    assert 0 in turns_of(small, policy, [9, 41, 7])[len(PROMPTS) :], "what has no room is computed again"


def test_what_was_kept_under_older_weights_is_computed_again(tmp_path: Path, policy: Policy) -> None:
    newer = Policy(tmp_path, CONFIGS["qwen3"], seed=1)
    for mode, kept in (("retract", False), ("abort", False), ("in_place", True)):
        engine = engine_of(policy, context=128, mode=mode)
        engine.submit(request("a", PROMPTS["a"], max_new_tokens=20, max_turns=5, stop=tuple("etaoinsr ")))
        (first,) = drain(engine, 1)
        assert first.finish_reason == "stop"
        engine.apply(1, newer.weights())
        tokens = np.array([*PROMPTS["a"], *first.tokens.tolist(), 9, 41, 7], np.int32)
        engine.submit(request("a", tokens.tolist(), max_new_tokens=20, max_turns=5))
        (second,) = drain(engine, 1)
        exact = second.logprobs == pytest.approx(newer.logprobs(tokens, second.tokens), abs=1e-4)
        assert (second.cached > 0) == kept and exact == (not kept), mode


def test_what_is_kept_of_a_sample_is_not_taken_for_another(policy: Policy) -> None:
    engine = engine_of(policy, context=128)
    engine.submit(request("a", PROMPTS["a"], max_new_tokens=20, max_turns=5, stop=tuple("etaoinsr ")))
    (first,) = drain(engine, 1)
    other = [*PROMPTS["a"], *reversed(first.tokens.tolist()), 9, 3]
    engine.submit(request("a", other, max_turns=5))
    (second,) = drain(engine, 1)
    assert second.logprobs == pytest.approx(policy.logprobs(np.array(other, np.int32), second.tokens), abs=1e-4)
    engine.cancel("a")
    assert not engine._held._kept and engine._held._used == 0
