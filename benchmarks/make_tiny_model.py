"""Writes recipes/tiny_model: the shape and the tokenizer of the tiny model (no weights: its first stage makes them)."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config

OUT = Path(__file__).resolve().parent.parent / "recipes" / "tiny_model"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")  # not special, or engines would strip them from the text


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE where each digit and operator is a token of its own."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9+\-*/=()?.,:{}\\\n]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    core.decoder = decoders.ByteLevel()
    words = [
        "user",
        "assistant",
        "system",
        "Compute",
        "mod",
        "Check",
        "Wait",
        "was",
        "wrong",
        "Ok",
        "boxed",
        "so",
        "the",
        "answer",
    ]
    corpus = [
        "Compute 1+2 mod 1.",
        "Check: ",
        "Wait, 3 was wrong.",
        "Ok.",
        "Easy.",
        "user\n",
        "assistant\n",
        "system\n",
        "\\boxed{",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=310, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    core.train_from_iterator(corpus * 50 + words, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False,
        model_max_length=1024, chat_template=TEMPLATE,
    )  # fmt: skip


def main() -> None:
    words = tokenizer()
    assert len(words) <= 320, len(words)
    end, pad = words.eos_token_id, words.pad_token_id
    config = Qwen3Config(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True, eos_token_id=end,
        pad_token_id=pad, architectures=["Qwen3ForCausalLM"], dtype="float32",
    )  # fmt: skip
    OUT.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(OUT)
    GenerationConfig(
        eos_token_id=end, pad_token_id=pad, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    ).save_pretrained(OUT)
    words.save_pretrained(OUT)
    settings = OUT / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    values["tokenizer_class"] = "PreTrainedTokenizerFast"  # every version of transformers knows this one
    values["chat_template"] = TEMPLATE
    settings.write_text(json.dumps(values, indent=2) + "\n")
    (OUT / "chat_template.jinja").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
