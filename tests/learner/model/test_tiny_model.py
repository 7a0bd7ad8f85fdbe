"""The tiny model's directory: what engines and rewards rely on, and that its script writes it again byte for byte."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from learner.model.load import load_model, load_tokenizer

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "recipes" / "tiny_model"
REPLY = "<think>3+7=0,0-2=8</think><answer>\\boxed{8}</answer>"


def test_tags_survive_what_engines_strip_and_control_tokens_do_not() -> None:
    words = load_tokenizer(str(TINY))
    ids = words.encode(REPLY + "<|im_end|>", add_special_tokens=False)
    assert words.decode(ids, skip_special_tokens=True) == REPLY
    assert ids[-1] == words.eos_token_id and words.pad_token_id != words.eos_token_id
    plain = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert plain.encode(REPLY + "<|im_end|>", add_special_tokens=False).ids == ids


def test_digits_operators_and_tags_are_single_tokens() -> None:
    plain = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    for text in [*"0123456789+-=,", "<think>", "</think>", "<answer>", "</answer>"]:
        assert len(plain.encode(text).ids) == 1, text
    assert plain.encode("12+34=46,").tokens == [*"12+34=46,"]
    assert plain.get_vocab_size() <= load_model(str(TINY), init="random").config.vocab_size == 320


def test_the_script_writes_the_same_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "make_tiny_model.py"))
    monkeypatch.setitem(script["main"].__globals__, "OUT", tmp_path)
    script["main"]()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes(), name
    assert load_model(str(tmp_path), init="random").config.to_diff_dict() == load_model(str(TINY), init="random").config.to_diff_dict()  # fmt: skip
