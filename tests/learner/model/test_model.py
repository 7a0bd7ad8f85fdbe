"""Loading and saving: what transformers loads again, and what is refused before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    Qwen3MoeConfig,
)

from broker.errors import CheckpointError, EngineError, RunFileError
from learner.model.attention import plan_segments
from learner.model.load import load_model, load_tokenizer, save_model, save_tokenizer
from learner.training.trainer import state_sha256

TINY = str(Path(__file__).resolve().parents[3] / "recipes" / "tiny_model")
SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}


def test_random_weights_follow_from_the_seed() -> None:
    one, again, other = (state_sha256(load_model(TINY, init="random", seed=s)) for s in (3, 3, 4))
    assert one == again != other


def test_all_that_a_tokenizer_needs_is_kept(tmp_path: Path) -> None:
    """Several chat templates lie in a directory of their own, and a sentencepiece model is a file that transformers reads beside the others."""
    source, kept = tmp_path / "source", tmp_path / "kept"
    shutil.copytree(TINY, source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages[0].content }}!")
    for name in ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "vocab.txt"):
        (source / name).write_bytes(name.encode())
    (source / "model.safetensors").write_bytes(b"weights are no part of it")
    kept.mkdir()
    for _ in range(2):  # a checkpoint that is written again
        save_tokenizer(str(source), kept)
    copied = {p.name for p in kept.iterdir()}
    assert {
        "additional_chat_templates",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model.v3",
        "vocab.txt",
    } <= copied
    assert "model.safetensors" not in copied and "config.json" not in copied
    templates = AutoTokenizer.from_pretrained(kept).chat_template
    assert "tools" in templates and templates == AutoTokenizer.from_pretrained(source).chat_template


def test_transformers_loads_what_is_saved(tmp_path: Path) -> None:
    model = load_model(TINY, init="random", seed=1)
    save_model(model, TINY, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config._attn_implementation != model.config._attn_implementation
    ids = torch.arange(7)[None]
    with torch.no_grad():
        wanted = plain(ids).logits
    again = load_model(str(tmp_path))
    assert state_sha256(again) == state_sha256(model) and again.training
    again.set_attn_implementation("eager")
    assert torch.allclose(again(ids, use_cache=False).logits, wanted, atol=1e-5)
    assert load_tokenizer(str(tmp_path)).decode(load_tokenizer(TINY).encode("3+4=7")) == "3+4=7"


def lacking(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def misshapen(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def cut(directory: Path) -> None:
    whole = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def bare(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "told"), [(lacking, r"lack 1 tensors, among them model\.layers\.1"), (misshapen, "damaged"), (cut, "damaged"), (bare, "no weights")]
)  # fmt: skip
def test_weights_that_are_not_whole_are_named(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    damage(directory)
    with pytest.raises(CheckpointError, match=told):
        load_model(str(directory))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match="nowhere' cannot be loaded: there is no such directory"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(RunFileError, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunFileError, match="not a valid JSON"):
        load_model(str(tmp_path), init="random")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2), "other logits"),
        (CohereConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2), "other logits"),
        (Gemma2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2, head_dim=8), "softcap"),
        (BloomConfig(vocab_size=90, hidden_size=32, n_layer=2, n_head=4), "other logits"),
        (GPTJConfig(vocab_size=90, n_embd=32, n_layer=2, n_head=4, rotary_dim=8), "its attention is its own"),
        (FalconConfig(**SHAPE), "its attention is its own"),
    ],
    ids=lambda c: getattr(c, "model_type", ""),
)
def test_a_model_that_packed_training_would_compute_wrongly_is_refused(
    tmp_path: Path, config: object, told: str
) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    with pytest.raises(RunFileError, match=f"cannot be trained packed: .*{told}"):
        load_model(str(tmp_path), init="random")


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5),
        Qwen3MoeConfig(
            **SHAPE, intermediate_size=48, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=16,
        ),
    ],
    ids=lambda c: c.model_type,
)  # fmt: skip
def test_other_families_load_and_nothing_is_dropped_at_random(tmp_path: Path, config: object) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    model = load_model(str(tmp_path), init="random")
    model.set_attn_implementation("eager")
    assert torch.equal(*(model(torch.arange(5)[None], use_cache=False).logits for _ in range(2)))


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(
            **SHAPE, intermediate_size=48, max_position_embeddings=16,
            rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
        ),
        Phi3Config(
            **SHAPE, intermediate_size=48, bos_token_id=1, eos_token_id=2, max_position_embeddings=64,
            original_max_position_embeddings=16,
            rope_parameters={"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4},
        ),
    ],
    ids=lambda c: c.model_type,
)  # fmt: skip
@torch.no_grad()
def test_positions_that_depend_on_the_packing_bind_a_model_to_its_original_context(
    tmp_path: Path, config: object
) -> None:
    config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    model = load_model(str(tmp_path), init="random").eval()

    def packed(*lengths: int) -> torch.Tensor:
        ids, places = (torch.cat([torch.arange(n) + k for n in lengths]) for k in (1, 0))
        return model.base_model(  # type: ignore[no-any-return]
            input_ids=ids[None], position_ids=places[None], attention_mask=None, use_cache=False, segments=plan_segments(lengths)
        ).last_hidden_state[0]  # fmt: skip

    assert torch.allclose(packed(16, 8)[16:], packed(8), atol=1e-5), "within it, a sequence is what it is alone"
    with pytest.raises(EngineError, match="a sequence of 17 tokens is longer than 16"):
        packed(17, 8)
