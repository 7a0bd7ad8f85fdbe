"""Import of GGUF files: what comes out is the model that went in, and what is no model is refused in one line."""

from __future__ import annotations

from pathlib import Path

import ggufs
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from broker.chat import Chat
from broker.errors import CheckpointError, RunFileError
from broker.messages import ChatMessage
from headrace.__main__ import main
from learner.model import gguf
from learner.model.load import load_model

TINY = Path(__file__).resolve().parents[3] / "recipes" / "tiny_model"
LLAMA = LlamaConfig(
    vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    max_position_embeddings=256, eos_token_id=302, pad_token_id=300, tie_word_embeddings=True,
)  # fmt: skip


def random_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if kind == "llama":
        return AutoModelForCausalLM.from_config(LLAMA)
    return load_model(str(TINY), init="random", seed=3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ggufs.write(tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf", random_model("llama"), TINY)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_an_imported_model_computes_what_the_file_holds(kind: str, tmp_path: Path) -> None:
    model = random_model(kind)
    file = ggufs.write(tmp_path / "model.gguf", model, TINY)
    assert main(["import", str(file), str(tmp_path / "models" / "new")]) == 0
    imported = load_model(str(tmp_path / "models" / "new"))
    config = imported.config
    assert config.tie_word_embeddings and config.eos_token_id == 302 and not hasattr(config, "quantization_config")
    assert imported.get_output_embeddings().weight is imported.get_input_embeddings().weight
    mine, theirs = dict(model.named_parameters()), dict(imported.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], atol=float(value.detach().abs().max()) / 127), (
            name
        )  # of Q8_0: half a step of its blocks
    assert not list((tmp_path / "models").glob(".*"))


def test_the_tokenizer_and_the_template_come_with_it(llama: Path, tmp_path: Path) -> None:
    gguf.convert(llama, tmp_path / "new")
    mine, theirs = AutoTokenizer.from_pretrained(TINY), AutoTokenizer.from_pretrained(tmp_path / "new")
    messages = [ChatMessage("user", "Compute 3+7-2 mod 10.")]
    assert Chat(theirs).ends == Chat(mine).ends == {302}
    assert theirs.decode(Chat(theirs).prompt(messages).ids) == mine.decode(Chat(mine).prompt(messages).ids)


def test_weights_are_written_as_they_are_asked_for(llama: Path, tmp_path: Path) -> None:
    told: list[str] = []
    header = gguf.convert(llama, tmp_path / "new", "bfloat16", told.append)
    assert header.architecture == "llama" and f"{header.parameters:,} numbers" in told[0] and len(told) == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_what_lies_beside_the_file_does_not_matter(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(llama.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}')
    gguf.convert(tmp_path / "model.gguf", tmp_path / "new")
    assert AutoTokenizer.from_pretrained(tmp_path / "new").eos_token == "<|im_end|>"


def broken(name: str, data: bytes, tmp_path: Path) -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def test_what_is_no_whole_gguf_is_refused(llama: Path, tmp_path: Path) -> None:
    whole = llama.read_bytes()
    cases = {
        "other.gguf": (b"PK\x03\x04 a zip", "is no GGUF: it begins with b'PK"),
        "empty.gguf": (b"", "is no GGUF"),
        "head.gguf": (whole[:200], "is damaged or cut off"),
        "cut.gguf": (whole[:-5000], "is damaged or cut off"),
        "future.gguf": (whole[:4] + b"\x63\x00\x00\x00" + whole[8:], "is damaged or cut off"),
    }
    for name, (data, said) in cases.items():
        with pytest.raises(RunFileError, match=said):
            gguf.convert(broken(name, data, tmp_path), tmp_path / "new")
    with pytest.raises(RunFileError, match="does not exist"):
        gguf.convert(tmp_path / "nowhere.gguf", tmp_path / "new")
    with pytest.raises(RunFileError, match="is no file"):
        gguf.convert(tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"general.type": "adapter"}, "of type 'adapter'"),
        ({"split.count": 4}, "one of 4 parts; merge them"),
        ({"llama.rope.scaling.type": "yarn"}, "stretches its positions .yarn., which transformers does not read"),
    ],
)
def test_what_is_not_the_whole_model_is_refused(extra: dict[str, str | int], said: str, tmp_path: Path) -> None:
    file = ggufs.write(tmp_path / "part.gguf", random_model("llama"), TINY, **extra)
    with pytest.raises(RunFileError, match=said):
        gguf.convert(file, tmp_path / "new")


def test_an_architecture_that_transformers_does_not_read_is_named(llama: Path, tmp_path: Path) -> None:
    file = broken("rwkv.gguf", llama.read_bytes().replace(b"llama", b"rwkv9"), tmp_path)
    with pytest.raises(
        RunFileError, match=r"architecture 'rwkv9', which this transformers does not read.*it reads.*llama.*qwen3"
    ):
        gguf.convert(file, tmp_path / "new")


def test_positions_that_would_be_lost_are_refused(llama: Path, tmp_path: Path) -> None:
    file = broken("turned.gguf", llama.read_bytes().replace(b"output_norm.weight", b"rope_freqs_.weight"), tmp_path)
    with pytest.raises(RunFileError, match=r"has positions of its own \(rope_freqs_.weight\)"):
        gguf.convert(file, tmp_path / "new")


def test_missing_tensors_are_named(llama: Path, tmp_path: Path) -> None:
    file = broken("lacking.gguf", llama.read_bytes().replace(b"blk.1.ffn_up", b"blk.1.ffn_xx"), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors of its model, among them model.layers.1.mlp.up_proj.weight"
    ):
        gguf.convert(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("version", "cure"), [("5.17.0", "; install transformers of at least 5.19, this is 5.17.0"), ("5.19.1", "")])  # fmt: skip
def test_a_tokenizer_that_an_older_transformers_cannot_read_is_named_with_the_cure(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, cure: str
) -> None:
    """As 5.17 fails where the file has no bos_token_id."""
    what = "'GGUFTokenizerSkeleton' object has no attribute 'bos_token_id'"

    def from_pretrained(*_: object, **__: object) -> None:
        raise AttributeError(what)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(RunFileError) as refused:
        gguf.convert(llama, tmp_path / "new")
    assert str(refused.value) == f"{llama} cannot be read by transformers: AttributeError: {what}{cure}"
    assert not (tmp_path / "new").exists()


def test_a_directory_that_is_full_stays_as_it_is(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert main(["import", str(llama), str(tmp_path)]) == 2
    assert "is not empty; name a new directory" in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "mine"
    with pytest.raises(RunFileError, match="is a file"):
        gguf.convert(llama, tmp_path / "kept")


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"the weights take 1000000.0 GB, and .* GB are free"):
        gguf.check_room(tmp_path / "new", 10**15)
    assert not (tmp_path / "new").exists()
