"""Adapters: they alone are trained, the policy is the merged one everywhere, and training goes on bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from learnertools import close, executor_of, judged_groups, mean_logprob, take, unstarted
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from broker.errors import CheckpointError, RunFileError
from broker.messages import Manifest
from broker.runfile import parse
from learner.data.greetings import GreetingReplies
from learner.data.mixture import MixedDocuments, Part
from learner.data.sums import SumsCorpus
from learner.model import lora
from learner.model.load import _check, load_model, load_tokenizer, save_base, save_model
from learner.model.loraconfig import LoraTable
from learner.model.policy import PolicyWeights
from learner.stages.sft import SftStage
from learner.tables import LearnerTable
from learner.training.checkpoint import Checkpoints, read_state
from learner.training.executor import execute
from learner.training.sft import SftTrainer
from learner.training.trainer import state_sha256

TINY = Path(__file__).resolve().parents[3] / "recipes" / "tiny_model"
SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
FAMILIES = [
    LlamaConfig(**SHAPE, intermediate_size=48, num_key_value_heads=2),
    Qwen2Config(**SHAPE, intermediate_size=48, num_key_value_heads=2),
    GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4),
    Qwen3MoeConfig(
        **SHAPE, intermediate_size=48, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16,
    ),
]  # fmt: skip
LORA = {"lora": {"rank": 4, "alpha": 8}}


def stirred(model: Any, seed: int = 0) -> Any:
    """``model`` with adapters that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in lora.adapters(model).items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.3 if "lora_B" in name else 0.1))
    return model


@pytest.fixture
def adapted(tiny_model: Path) -> Any:
    torch.set_num_threads(1)
    model = load_model(str(tiny_model))
    lora.adapt(model, LoraTable(rank=4, alpha=8), 1)
    return model


@pytest.fixture(params=FAMILIES, ids=lambda c: c.model_type)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    request.param.save_pretrained(tmp_path / "shape")
    model = load_model(str(tmp_path / "shape"), init="random")
    lora.adapt(model, LoraTable(rank=4, alpha=8), 1)
    yield stirred(model)


def test_fresh_adapters_change_nothing_and_follow_from_the_seed(tiny_model: Path) -> None:
    base = load_model(str(tiny_model))
    one, again, other = (copy.deepcopy(base) for _ in range(3))
    before = torch.get_rng_state()
    for model, seed in ((one, 1), (again, 1), (other, 2)):
        lora.adapt(model, LoraTable(rank=4), seed)
    assert torch.equal(torch.get_rng_state(), before), "nothing else hangs on them"
    assert state_sha256(one) == state_sha256(base)
    a, b, c = (lora.adapters(model) for model in (one, again, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_training_changes_the_adapters_alone(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, LORA)
    before = {name: t.clone() for name, t in PolicyWeights(executor.model).items()}
    result = take(executor, 3)[-1]
    model = executor.model
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert len(trained) == 2 * 2 * 7, "two matrices for each of the seven linear layers of two layers"
    base = PolicyWeights(model, adapted=False)
    assert base.keys() == before.keys() and all(torch.equal(base[name], before[name]) for name in before)
    changed = {name for name, t in PolicyWeights(model).items() if not torch.equal(t, before[name])}
    assert changed == {f"{name}.weight" for name, _ in lora.layers(model)}
    assert result.metrics["grad_norm"] > 0
    assert result.metrics["trained_parameter_bytes"] < 0.1 * result.metrics["parameter_bytes"]
    assert result.metrics["optimizer_state_bytes"] == 2 * result.metrics["trained_parameter_bytes"]


def test_what_is_published_is_what_peft_merges(family: Any, tmp_path: Path) -> None:
    save_base(family, str(TINY), tmp_path / "base")
    lora.save_adapters(family, "base", tmp_path / "adapters")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    whole = PeftModel.from_pretrained(base, str(tmp_path / "adapters")).merge_and_unload().state_dict()
    published = dict(PolicyWeights(family))
    assert whole.keys() == published.keys()
    for name, tensor in whole.items():
        assert torch.allclose(tensor, published[name], atol=1e-6, rtol=0), name


def test_the_merged_policy_computes_what_the_adapted_one_does(family: Any) -> None:
    ids = torch.arange(7)[None]
    family.set_attn_implementation("eager")
    plain = copy.deepcopy(family)
    lora.merge(plain)
    with torch.no_grad():
        wanted = family(ids, use_cache=False).logits
        with lora.disabled(family):
            base = family(ids, use_cache=False).logits
        found = plain(ids, use_cache=False).logits
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(base, wanted, atol=1e-2)
    assert not lora.is_adapted(plain) and all(p.requires_grad for p in plain.parameters())
    assert state_sha256(plain) == state_sha256(family), "to merge for good and to publish are the same bytes"


def test_of_an_adapted_model_the_merged_weights_are_saved(family: Any, tmp_path: Path) -> None:
    save_model(family, str(TINY), tmp_path)
    assert not any(".lora_" in name or "base_layer" in name for name in load_file(tmp_path / "model.safetensors"))
    assert state_sha256(load_model(str(tmp_path))) == state_sha256(family)


def test_an_adapted_model_computes_packed_sequences_like_each_alone(adapted: Any) -> None:
    _check(stirred(adapted), "adapted")


@pytest.mark.long
def test_publishing_leaves_training_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    """Weights are taken, in both types, and checkpoints written after each step: the result is the same bit for bit."""
    quiet = executor_of(tiny_model, tmp_path / "quiet", LORA)
    take(quiet, 3)
    loud = executor_of(tiny_model, tmp_path / "loud", LORA)
    for _ in range(3):
        take(loud, 1)
        before = {name: p.detach().clone() for name, p in loud.model.named_parameters()}
        assert dict(loud.weights()) and dict(PolicyWeights(loud.model, torch.bfloat16))
        loud.save(Checkpoints(tmp_path / "loud" / "checkpoints"), 1)
        loud.close()
        assert all(torch.equal(p, before[name]) for name, p in loud.model.named_parameters())
    for one, two in zip(quiet.model.parameters(), loud.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.long
def test_rewarded_answers_become_more_likely(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"lora": {"rank": 8}, "optimizer": {"lr": 1e-2}})
    groups = tuple(g for version in range(1, 11) for g in judged_groups(2, version))
    before = [mean_logprob(executor.model, groups, rewarded) for rewarded in (True, False)]
    take(executor, 10)
    after = [mean_logprob(executor.model, groups, rewarded) for rewarded in (True, False)]
    assert after[0] > before[0] + 0.1, "rewarded"
    assert after[0] - before[0] > after[1] - before[1], "more than the others"


@pytest.mark.long
@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"offload": "all"}])
def test_a_stage_goes_on_bit_for_bit_from_a_checkpoint(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """With a divergence to the base and a reference that is refreshed on the way; resumed in the middle of it."""
    kl = {"objective": {"name": "grpo", "kl": 0.1, "ref_refresh": 2}, **LORA}
    whole = executor_of(tiny_model, tmp_path / "whole", kl)
    wanted = [r.metrics["kl_reference"] for r in take(whole, 6)]
    assert wanted[0] == pytest.approx(0, abs=1e-6) and wanted[1] > 1e-6 and wanted[2] < wanted[1]
    half = executor_of(tiny_model, tmp_path / "half", kl)
    take(half, 3)
    path = half.save(Checkpoints(tmp_path / "checkpoints"), 1)
    half.close()
    resumed = unstarted(tiny_model, tmp_path / "half", {**kl, **options})
    resumed.load(path)
    assert [r.metrics["kl_reference"] for r in take(resumed, 3)] == wanted[3:]
    assert state_sha256(resumed.model) == state_sha256(whole.model)
    for name, tensor in lora.adapters(whole.model).items():
        assert torch.equal(tensor, lora.adapters(resumed.model)[name])


def test_a_checkpoint_is_the_merged_policy_for_transformers(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, LORA)
    take(executor, 2)
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    plain = AutoModelForCausalLM.from_pretrained(path)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert state_sha256(load_model(str(path))) == state_sha256(executor.model)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in PolicyWeights(executor.model).items())


@pytest.mark.long
def test_the_reference_is_the_base_without_a_copy(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"objective": {"name": "grpo", "kl": 0.1}, **LORA})
    adapted = take(executor, 3)[-1].metrics["kl_reference"]
    assert executor.train is not None and executor.train.reference.state_dict() == {}
    # the divergence to a copy of the whole model is the same number
    again = executor_of(tiny_model, tmp_path / "again", {"objective": {"name": "grpo", "kl": 0.1}, **LORA})
    take(again, 1)
    assert again.train is not None
    again.train.reference = load_model(str(tiny_model)).eval()
    assert take(again, 2)[-1].metrics["kl_reference"] == pytest.approx(adapted, rel=1e-5) and adapted > 0
    assert all(p.requires_grad == (".lora_" in name) for name, p in executor.model.named_parameters())


def test_the_next_stage_begins_on_the_merged_policy_with_fresh_adapters(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, LORA, stages=2)
    take(executor, 2)
    policy = state_sha256(executor.model)
    close(executor)
    assert not lora.is_adapted(executor.model) and state_sha256(executor.model) == policy
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    assert read_state(path)["lora"] is None
    take(executor, 2, stage=1)
    resumed = unstarted(tiny_model, tmp_path, LORA, stages=2)
    resumed.load(path)
    take(resumed, 2, stage=1)
    assert state_sha256(resumed.model) == state_sha256(executor.model) != policy
    base = PolicyWeights(executor.model, adapted=False)
    merged = load_model(str(path)).state_dict()
    assert all(torch.equal(base[name], merged[name]) for name in merged)


def test_other_weights_in_the_middle_of_a_run_leave_no_adapters(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, LORA)
    take(executor, 1)
    execute(executor, Manifest(2, 0, "weights", weights=str(tiny_model)), (), 2)
    assert not lora.is_adapted(executor.model)
    assert state_sha256(executor.model) == state_sha256(load_model(str(tiny_model)))


def sft(model: Any, **changes: Any) -> SftTrainer:
    fields = {"kind": "sft", "steps": 6, "documents_per_step": 4, "optimizer": {"lr": 1e-2}, "lora": {"rank": 4}}
    mixed = MixedDocuments([Part("sums", SumsCorpus(), 3.0), Part("replies", GreetingReplies(4), 1.0)], 3)
    return SftTrainer(model, load_tokenizer(str(TINY)), mixed, SftStage.model_validate({**fields, **changes}), 3)


@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, {"lora": {"rank": 4, "dropout": 0.1}, "gradient_checkpointing": True}])
def test_supervised_stages_train_adapters_on_mixed_sources_and_go_on_bit_for_bit(
    tiny_model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    whole = load_model(str(tiny_model))
    reports = list(sft(whole, **changes).steps())
    assert reports[-1].metrics["loss"] < reports[0].metrics["loss"] - 0.1
    assert reports[0].metrics["trained_parameter_bytes"] < 0.1 * reports[0].metrics["parameter_bytes"]
    half = executor_of(tiny_model, tmp_path, {})
    trainer = sft(half.model, **changes)
    steps = trainer.steps()
    for _ in range(3):
        next(steps)
    path = half.save(Checkpoints(tmp_path / "checkpoints"), 1, extra=trainer.state_dict())
    half.close()
    model = load_model(str(path))
    assert state_sha256(model) == state_sha256(half.model)
    state = read_state(path)
    lora.restore(model, state["lora"], SftStage.model_validate({"kind": "sft", "lora": {"rank": 4}, **changes}).lora.dropout)  # type: ignore[union-attr]  # fmt: skip
    torch.rand(7)  # what is dropped hangs on nothing that was drawn before
    resumed = sft(model, **changes)
    resumed.load_state_dict(state["extra"])
    assert len(list(resumed.steps())) == 3
    assert state_sha256(model) == state_sha256(whole)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"lora": {"rank": 0}}, r"lora\.rank = 0: input should be greater than or equal to 1"),
        ({"lora": {"rnak": 3}}, r"unknown key 'lora\.rnak'; did you mean 'rank'\?"),
        ({"lora": {"alpha": 0}}, r"lora\.alpha = 0"),
        ({"lora": {"dropout": 0.1}}, r"lora = .*dropout would train another policy .* use dropout = 0"),
        ({"lora": {"targets": "q_proj"}}, r"lora\.targets = 'q_proj': use \"all-linear\" or a list"),
        ({"lora": {"targets": []}}, r"lora\.targets = \[\]: name at least one layer"),
        ({"lora": {"publish": "both"}}, r"lora\.publish = 'both': input should be 'merged' or 'adapters'"),
        ({"lora": {}, "optimizer": {"muon": 5.0}}, r"lora = .*AdamW alone, and optimizer\.muon is 5\.0; set one"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(table: dict[str, Any], told: str) -> None:
    with pytest.raises(RunFileError, match=rf"\[learner\] {told}"):
        parse(table, LearnerTable, "[learner]")


def test_muon_and_adapters_exclude_each_other_in_supervised_stages_too() -> None:
    with pytest.raises(RunFileError, match=r"AdamW alone"):
        parse({"kind": "sft", "lora": {}, "optimizer": {"muon": 1.0}}, SftStage, "[[stage]] 0")


@pytest.mark.parametrize(
    ("target", "told"),
    [("q_porj", "did you mean 'q_proj'"), ("lm_head", "known: down_proj"), ("embed_tokens", "known"), ("mlp", "known")],
)
def test_a_layer_that_is_not_there_is_told_before_anything_is_trained(
    tiny_model: Path, tmp_path: Path, target: str, told: str
) -> None:
    with pytest.raises(
        RunFileError, match=rf"lora\.targets = '{target}': Qwen3ForCausalLM has no such linear layer .*{told}"
    ):
        executor_of(tiny_model, tmp_path, {"lora": {"targets": ["o_proj", target]}})


def test_some_layers_may_be_named(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {"lora": {"targets": ["q_proj", "layers.1.mlp.up_proj"]}})
    take(executor, 1)
    assert [name for name, _ in lora.layers(executor.model)] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"lora": {"rank": 8, "alpha": 8}}, r"lora\.rank = 8: the stage under way was begun with 4"),
        ({"lora": {"rank": 4, "alpha": 9}}, r"lora\.alpha = 9\.0: .* begun with 8\.0"),
        ({"lora": {"rank": 4, "alpha": 8, "targets": ["q_proj"]}}, r"lora\.targets = \('q_proj',\): .*'down_proj'"),
        ({}, r"lora\.rank = None: .* begun with 4"),
    ],
)
def test_adapters_cannot_change_in_the_middle_of_a_stage(
    tiny_model: Path, tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    executor = executor_of(tiny_model, tmp_path, LORA)
    take(executor, 1)
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    other = unstarted(tiny_model, tmp_path, changed)
    with pytest.raises(RunFileError, match=told):
        other.load(path)
    with pytest.raises(RunFileError, match=told):
        executor.reconfigure(other.config, 0)


def test_adapters_cannot_be_put_in_in_the_middle_of_a_stage(tiny_model: Path, tmp_path: Path) -> None:
    executor = executor_of(tiny_model, tmp_path, {})
    take(executor, 1)
    path = executor.save(Checkpoints(tmp_path / "checkpoints"), 1)
    executor.close()
    with pytest.raises(RunFileError, match=r"lora\.rank = 4: the stage under way was begun with no adapters"):
        unstarted(tiny_model, tmp_path, LORA).load(path)


def test_adapters_of_another_model_are_refused(adapted: Any, tmp_path: Path) -> None:
    state = lora.state(stirred(adapted))
    assert state is not None
    FAMILIES[0].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="do not belong to this model"):
        lora.restore(load_model(str(tmp_path), init="random"), state)
