"""GGUF files of tiny models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel

NORMAL, CONTROL, UNUSED = 1, 3, 5  # types of tokens
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def write(path: Path, model: PreTrainedModel, tokenizer: Path, **extra: Any) -> Path:
    """``model`` with the tokenizer of a directory, matrices as Q8_0 and the rest as float32. ``extra``: further fields of ``general``."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    for name, value in extra.items():
        writer.add_key_value(
            name, value, gguf.GGUFValueType.STRING if isinstance(value, str) else gguf.GGUFValueType.UINT16
        )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.detach().float().numpy()
        if config.model_type == "llama":
            value = _paired(name, value, config)
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _paired(name: str, value: np.ndarray, config: Any) -> np.ndarray:
    """Rows of a Llama's queries and keys with the two halves of a rotation beside each other, as llama.cpp has them."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f"{part}.weight" in name:
            value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return np.ascontiguousarray(value)


def _tokenizer(writer: gguf.GGUFWriter, directory: Path, size: int) -> None:
    whole = json.loads((directory / "tokenizer.json").read_text())
    added = {token["id"]: token["content"] for token in whole["added_tokens"]}
    known = {number: text for text, number in whole["model"]["vocab"].items()} | added
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([known.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types([CONTROL if i in added else NORMAL if i in known else UNUSED for i in range(size)])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in whole["model"]["merges"]])
    numbers = {text: number for number, text in added.items()}
    writer.add_eos_token_id(numbers["<|im_end|>"])
    writer.add_pad_token_id(numbers["<|endoftext|>"])
    writer.add_chat_template(json.loads((directory / "tokenizer_config.json").read_text())["chat_template"])
