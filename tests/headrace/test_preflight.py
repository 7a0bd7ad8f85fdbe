"""Every finding of the pre-flight, each provoked by one change of a small run file; and what the command line makes of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

import pytest
from ringtools import SMALL, headrace, small_copy

from broker.runfile import RunFile
from headrace.__main__ import main
from headrace.commands.run import looked_at
from headrace.preflight import lengths, model, plugged, rows, settings
from headrace.preflight.ahead import Looked, look_ahead
from headrace.preflight.checks import CHECKS, name_of
from headrace.preflight.findings import Finding
from headrace.preflight.subject import Subject
from headrace.running.runfile import check

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "tiny_model"
JOB = "stage.1.learner"


def found(look: Callable[[Subject], Any], file: Path, *overrides: str, thorough: bool = True) -> list[Finding]:
    return list(look(Subject(check(RunFile.read(file, overrides)), thorough)))


def jsonl(path: Path, table: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


# -- settings ----------------------------------------------------------------------------------------------------------

SETTINGS = [
    (settings.sampling, ["learner.sampling.max_new_tokens=128"], "error", r"max_new_tokens = 128 leaves no room .* context_length = 128"),
    (settings.sampling, [JOB + ".sampling.temperature=0.0"], "error", "temperature = 0: the 4 samples of a prompt are the same"),
    (settings.sampling, [JOB + ".sampling.temperature=1e-6"], "warning", "temperature = 1e-06: the 4 samples of a prompt are nearly the same"),
    (settings.sampling, ["stage.2.sampling={temperature=0.0}", "stage.2.k=4"], "warning", "temperature = 0 with 4 samples"),
    (settings.sampling, [JOB + ".sampling.temperature=0.7"], "note", "trained as it is at that temperature"),
    (settings.questions, [], "note", "cons@1 is pass@1"),
    (settings.stages, ["stage.1.until_pass_at_1=0.5", "stage.1.eval_every=0"], "error", "until_pass_at_1 = 0.5 with eval_every = 0"),
    (settings.stages, ["stage.1.eval_every=31"], "warning", "eval_every = 31 of 30 steps"),
    (settings.stages, ["stage.0.until_tag=chain"], "warning", "until_tag = 'chain' without until_accuracy"),
    (settings.stages, ["stage.0.cooldown_steps=6"], "warning", "cooldown_steps = 6 of steps = 6"),
    (settings.stages, ["stage.0.optimizer.warmup_steps=6"], "warning", "warmup_steps = 6 of 6 steps"),
    (settings.trainings, ["learner.optimizer.warmup_steps=30"], "warning", "warmup_steps = 30 of 30 steps"),
    (settings.trainings, ["learner.publish_every=4"], "error", "publish_every = 4 with max_lag = 2 .* up to 3 versions"),
    (settings.trainings, ["learner.objective=r1"], "warning", "'r1' has no dual clip, and max_lag = 2"),
    (settings.trainings, ["learner.overlong_buffer=12"], "warning", "every answer is punished"),
    (settings.trainings, ["rewarders.vowels.timeout=600.0"], "warning", "given up after deadline = 600 s"),
    (settings.rewards, ["run.rewards.vowels=0.0"], "error", r"every weight is 0 \(vowels = 0\)"),
    (settings.rewards, ["data.prompts.rewards={vowels=0.0}"], "error", "every weight is 0"),
    (settings.rewards, ["stage.1.rewards={prompts={vowels=0.0}}"], "error", r"rl rewards.prompts: every weight is 0"),
    (settings.rewards, ["stage.1.later=[{from_step=5, rewards={prompts={vowels=0.0}}}]"], "error", "rl rewards.prompts after step 5: every weight is 0"),
    (settings.rewards, ["data.prompts.rewards={vowls=1.0}"], "error", "names 'vowls', but .* did you mean 'vowels'"),
    (settings.rewards, ["rewarders.other.use=rewarders.format:Format"], "warning", "no mix names it"),
    (settings.rewards, ["rewarders.vowels.workers=0"], "note", "workers = 0: none is started here, .*headrace rewarder run.toml --rewarder vowels"),
    (plugged.made, ["rewarders.vowels={use='rewarders.comparison:Difficulty'}"], "error", "vowels alone, which says the same of all samples of a group"),
    (settings.numbers, ["learner.device=cpu", "learner.dtype=bfloat16"], "warning", "dtype = 'bfloat16' on a CPU"),
    (settings.numbers, ["actors.dtype=bfloat16"], "warning", "dtype = 'bfloat16' on a CPU"),
    (settings.numbers, ["actors.dtype=bfloat16"], "note", "log-probabilities differ by rounding"),
    (settings.held_out, ["stage.1.eval_data=prompts"], "warning", "asked as held-out questions, and trained on"),
]  # fmt: skip


RECIPE = ROOT / "recipes" / "tiny.toml"
ZERO, GOOD = "{accuracy=0.0, format=0.0}", "{accuracy=1.0, format=0.2}"
SAME = "rewarders.format={use='rewarders.comparison:Difficulty'}"


def test_a_mix_of_the_stage_goes_before_those_of_the_source_and_of_the_run() -> None:
    stage = "stage.2.rewards={prompts=%s}"
    right = [f"run.rewards={ZERO}", stage % GOOD]
    assert not [f for f in found(settings.rewards, RECIPE, *right) if f.level == "error"]
    assert not [f for f in found(settings.rewards, RECIPE, *right, f"data.prompts.rewards={ZERO}") if f.level == "error"]  # fmt: skip
    (wrong,) = [f for f in found(settings.rewards, RECIPE, stage % ZERO) if f.level == "error"]
    assert wrong.where == "[[stage]] zero rewards.prompts" and "every weight is 0" in wrong.what
    later = [f for f in found(settings.rewards, RECIPE, stage % ZERO, "stage.2.later=[{from_step=5, temperature=0.5}]") if f.level == "error"]  # fmt: skip
    assert later == [wrong], "the same table is told once"
    flat, told = "{accuracy=0.0, format=1.0}", "alone, which says the same of all samples"
    assert not [f for f in found(plugged.made, RECIPE, SAME, f"run.rewards={flat}", stage % GOOD) if told in f.what]
    (same,) = [f for f in found(plugged.made, RECIPE, SAME, stage % flat) if told in f.what]
    assert same.where == "[[stage]] zero rewards.prompts"


@pytest.mark.parametrize(("look", "overrides", "level", "told"), SETTINGS, ids=[s[3][:40] for s in SETTINGS])
def test_settings_that_come_to_nothing_are_told(
    look: Callable[[Subject], Any], overrides: list[str], level: str, told: str
) -> None:
    said = [str(f) for f in found(look, SMALL, *overrides) if f.level == level]
    assert said and any(re.search(told, s) for s in said), said


@pytest.mark.long
def test_the_small_ring_and_the_recipe_have_no_errors_and_no_warnings() -> None:
    for file in (SMALL, ROOT / "recipes" / "tiny.toml"):
        subject = Subject(check(RunFile.read(file)))
        said = [f for look in CHECKS for f in look(subject) if f.level != "note"]
        assert not said, [str(f) for f in said]


def test_a_teacher_needs_no_reward() -> None:
    given = ["run.rewards.vowels=0.0", "learner.objective.name=distill"]
    assert not [f for f in found(settings.rewards, SMALL, *given) if f.level == "error"]


# -- rows --------------------------------------------------------------------------------------------------------------


def with_rows(directory: Path, table: list[Any], source: str = "prompts") -> list[str]:
    return [f'data.{source}={{path="{jsonl(directory / (source + ".jsonl"), table)}"}}']


QUESTIONS = [{"prompt": f"What is {i} and {i}?", "answer": 2 * i} for i in range(24)]


def test_rows_that_cannot_be_read_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    odd = with_rows(tmp_path, [*QUESTIONS, {"prompt": 3, "answer": 1}])
    (said,) = found(rows.readable, SMALL, *odd)
    assert said.level == "warning" and said.where == "[data.prompts]"
    assert "1 of 25 (4%)" in said.what and "row 24 column 'prompt' is a int" in said.what and "dead letter" in said.cure
    (all_odd,) = found(rows.readable, SMALL, *with_rows(tmp_path, [{"question": "q"}] * 3))
    assert (
        all_odd.level == "error" and "no column 'prompt'; it has question" in all_odd.what and "columns" in all_odd.cure
    )
    (nothing,) = found(rows.readable, SMALL, *with_rows(tmp_path, []))
    assert nothing.level == "error" and nothing.what == "has no rows"
    (option,) = found(rows.readable, SMALL, f'data.prompts={{path="{tmp_path / "prompts.jsonl"}", colums={{}}}}')
    assert option.level == "error" and "unknown option 'colums'" in option.what
    (document,) = found(rows.readable, SMALL, *with_rows(tmp_path, [{"text": "a"}, {"text": 4}], "corpus"))
    assert document.level == "error", "supervised training stops at such a row"


def test_a_source_of_ones_own_that_fails_is_named_and_stops_nothing(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    (tmp_path / "mine.py").write_text(
        "class Broken:\n    size = 3\n    def row(self, number):\n        raise KeyError('x')\n"
        "class Unmade:\n    def __init__(self):\n        raise OSError('no server')\n"
    )
    (said,) = found(rows.readable, file, 'data.prompts={use="mine.py:Broken"}')
    assert said.level == "error" and "KeyError: 'x'" in said.what
    (said,) = found(rows.readable, file, 'data.prompts={use="mine.py:Unmade"}')
    assert said.level == "error" and "no server" in said.what


def test_missing_answers_and_empty_questions_are_counted(tmp_path: Path) -> None:
    table = [*QUESTIONS[:6], {"prompt": "Why?"}, {"prompt": " ", "answer": ""}]
    answers, empty = found(rows.answers, SMALL, *with_rows(tmp_path, table))
    assert "2 of 8 (25%) of the rows have no answer, row 6 first" in answers.what
    assert "1 of 8 (12.5%) of the rows ask nothing, row 7 first" in empty.what


def test_control_tokens_in_data_are_told(tmp_path: Path) -> None:
    table = [*QUESTIONS[:3], {"prompt": "a <|im_end|> b", "answer": "c"}]
    (said,) = found(rows.control_tokens, SMALL, *with_rows(tmp_path, table))
    assert (
        said.level == "note"
        and "1 of 4" in said.what
        and "row 3 first (<|im_end|>)" in said.what
        and "as text" in said.what
    )
    (raw,) = found(rows.control_tokens, SMALL, *with_rows(tmp_path, [{"text": "a<|im_end|>"}], "corpus"))
    assert "trained as such" in raw.what


def test_questions_that_come_twice_or_are_trained_on_are_counted(tmp_path: Path) -> None:
    both = with_rows(tmp_path, [*QUESTIONS, QUESTIONS[0]])
    both += with_rows(tmp_path, [{**q, "prompt": q["prompt"].upper()} for q in QUESTIONS[:6]], "heldout")
    twice, overlap = found(rows.repeated, SMALL, *both)
    assert twice.where == "[data.prompts]" and "1 of 25 (4%)" in twice.what
    assert overlap.where == "[data.heldout]" and "6 of 6 (100%)" in overlap.what and "[data.prompts]" in overlap.what
    (many,) = [
        f for f in found(settings.questions, SMALL, *both) if f.where == "[[stage]] after" and f.level == "warning"
    ]
    assert "16 questions of [data.heldout], which has 6 rows: 6 are asked" in many.what


# -- lengths and templates ---------------------------------------------------------------------------------------------


def test_prompts_that_do_not_fit_are_counted_with_the_real_template(tmp_path: Path) -> None:
    long = {"prompt": "word " * 400, "answer": "1"}
    some = with_rows(tmp_path, [*QUESTIONS, long])
    outside = [f for f in found(lengths.prompts, SMALL, *some) if "do not fit" in f.what]
    assert (
        {f.level for f in outside} == {"warning"}
        and "1 of 25 (4%)" in outside[0].what
        and "dead letter" in outside[0].what
    )
    (all_out, *_) = found(lengths.prompts, SMALL, *with_rows(tmp_path, [long]))
    assert all_out.level == "error" and "raise context_length to" in all_out.cure
    (cut, *_) = found(lengths.prompts, SMALL, "learner.sampling.max_new_tokens=120")
    assert cut.level == "warning" and "leave less than max_new_tokens = 120" in cut.what


def at(directory: Path, **changes: Any) -> str:
    """The tiny model's files with a changed configuration; returns the override that names it."""
    shutil.copytree(TINY, directory, dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **changes}))
    return f"run.model={directory}"


def templated(directory: Path, template: str) -> str:
    named = at(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return named


TURNS = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def test_the_models_own_limits_of_length(tmp_path: Path) -> None:
    wide = ["actors.context_length=256", "learner.sampling.max_new_tokens=100"]
    window = at(tmp_path / "w", sliding_window=64, use_sliding_window=True, layer_types=["sliding_attention"] * 2)
    told = [str(f) for f in found(lengths.prompts, SMALL, window, *wide) if f.level == "error"]
    assert told and "longer than the model's sliding window of 64 tokens" in told[0]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = at(tmp_path / "d", rope_parameters=rope, max_position_embeddings=64)
    told = [str(f) for f in found(lengths.prompts, SMALL, dynamic, *wide) if f.level == "error"]
    assert told and "original context of its stretched positions of 64" in told[0]
    short = at(tmp_path / "s", max_position_embeddings=64)
    told = [f.what for f in found(lengths.prompts, SMALL, short, *wide) if f.level == "warning"]
    assert told and "longer than the model's positions of 64" in told[0]
    (context,) = found(model.context, SMALL, short)
    assert "context_length = 128 is longer than the model's 64 positions" in context.what
    learned = at(tmp_path / "g", model_type="gpt2", max_position_embeddings=64, rope_parameters=None)
    told = [f.what for f in found(lengths.prompts, SMALL, learned, *wide) if f.level == "error"]
    assert told and "longer than the model's positions of 64 tokens: it has no more" in told[0]
    fits = at(tmp_path / "f", rope_parameters=rope, max_position_embeddings=256)
    assert not found(lengths.prompts, SMALL, fits, *wide)


def test_documents_that_do_not_come_back_whole_or_are_too_long(tmp_path: Path) -> None:
    thought = {"prompt": "q", "response": "<think>long</think>short"}
    opening = templated(tmp_path / "m", TURNS.replace("CONTENT", "m['content']").replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"))  # fmt: skip
    (said,) = found(
        lengths.documents, SMALL, opening, *with_rows(tmp_path, [{"prompt": "q", "response": "r"}], "corpus")
    )
    assert said.level == "error" and "opens '<think>', and the reply 'r' does not begin with it" in said.what
    dropping = templated(tmp_path / "k", TURNS.replace("CONTENT", "m['content'].split('</think>')[-1]"))
    turns = [
        {"role": r, "content": c}
        for r, c in (("user", "q"), ("assistant", "<think>a</think>b"), ("user", "c"), ("assistant", "d"))
    ]
    (said,) = found(lengths.documents, SMALL, dropping, *with_rows(tmp_path, [{"messages": turns}, thought], "corpus"))
    assert said.level == "error" and "1 of 2 (50%)" in said.what and "drops or changes the reply" in said.what
    (tag,) = found(lengths.documents, SMALL, "stage.0.until_tag=chian")
    assert tag.level == "error" and "until_tag = 'chian': no document" in tag.what
    table = [{"messages": [{"role": "user", "content": "nobody answers"}], "response": ""}]
    assert not found(lengths.documents, SMALL, *with_rows(tmp_path, table, "corpus")), "an empty reply trains its end"
    file = small_copy(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from learner.data.source import Document, Span\nclass Read:\n    size = 2\n"
        "    def document(self, number, level):\n        return Document(spans=(Span('text', False),))\n"
    )
    (untrained,) = found(lengths.documents, file, 'data.corpus={use="mine.py:Read"}')
    assert untrained.level == "warning" and "2 of 2 (100%) of its documents train no token" in untrained.what
    window = at(tmp_path / "w", sliding_window=16, use_sliding_window=True, layer_types=["sliding_attention"] * 2)
    (long,) = found(lengths.documents, SMALL, window)
    assert long.level == "error" and "longer than the model's sliding window of 16" in long.what


def test_documents_go_through_the_template_with_their_sources_options(tmp_path: Path) -> None:
    """As supervised training does it: a thought that the template opens can be switched off for a source of plain replies."""
    opens = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if thinking is not defined or thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
    plain = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    named = templated(tmp_path / "m", plain + opens)
    data = jsonl(tmp_path / "d.jsonl", [{"prompt": "q", "response": "r"}])
    (said,) = found(lengths.documents, SMALL, named, f'data.corpus={{path="{data}"}}')
    assert said.level == "error"
    assert not found(lengths.documents, SMALL, named, f'data.corpus={{path="{data}", chat={{thinking=false}}}}')


def test_the_template_is_described_and_one_that_fails_is_refused(tmp_path: Path) -> None:
    opened = templated(tmp_path / "o", TURNS.replace("CONTENT", "m['content']").replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"))  # fmt: skip
    assert any("opens '<think>'" in f.what for f in found(lengths.templates, SMALL, opened))
    fails = templated(tmp_path / "f", "{{ raise_exception('no') }}")
    assert all(f.level == "error" for f in found(lengths.templates, SMALL, fails))
    refused = [f for f in found(lengths.prompts, SMALL, fails) if "are refused" in f.what]
    assert refused and refused[0].level == "error"
    bare = templated(tmp_path / "b", "")
    assert [f.what for f in found(lengths.templates, SMALL, bare)] == [
        "the tokenizer has no chat template: a prompt is its plain text"
    ]


# -- the model ---------------------------------------------------------------------------------------------------------


def test_a_model_without_files_weights_or_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert [f.level for f in found(model.files, SMALL, f"run.model={tmp_path / 'empty'}")] == ["error", "error"]
    (weights,) = found(model.files, SMALL, "stage.0.init=pretrained")
    assert "has no weights" in weights.what and "init = 'random'" in weights.cure
    small, _ = found(model.vocabulary, SMALL, at(tmp_path / "v", vocab_size=300))
    assert "token 306 is outside the model's vocabulary of 300" in small.what
    added = at(tmp_path / "a", vocab_size=306, eos_token_id=302)
    (unused,) = found(model.vocabulary, SMALL, added)
    assert unused.level == "warning" and "1 such tokens are added ones" in unused.what
    (kind,) = found(model.files, SMALL, at(tmp_path / "j", model_type="gptj"))
    assert "gptj cannot be trained packed" in kind.what
    endless = templated(tmp_path / "e", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        table = json.loads((tmp_path / "e" / name).read_text())
        (tmp_path / "e" / name).write_text(json.dumps({k: v for k, v in table.items() if not k.startswith("eos")}))
    assert [f.what for f in found(model.vocabulary, SMALL, endless)] == ["names no end token"]
    other = at(tmp_path / "t", eos_token_id=300)
    for name in ("tokenizer_config.json", "generation_config.json"):
        table = json.loads((tmp_path / "t" / name).read_text())
        end = {"eos_token": "<|endoftext|>"} if name.startswith("token") else {"eos_token_id": 300}
        (tmp_path / "t" / name).write_text(json.dumps({**table, **end}))
    (ends,) = found(model.vocabulary, SMALL, other)
    assert ends.level == "warning" and "ends replies with token [302], its files name [300]" in ends.what
    (beyond,) = found(model.vocabulary, SMALL, at(tmp_path / "x", eos_token_id=999))
    assert "end tokens [999] are outside the vocabulary" in beyond.what


def test_a_stage_begins_from_what_there_is() -> None:
    assert not found(model.beginnings, SMALL, "stage.1.model=base")
    (later,) = found(model.beginnings, SMALL, "stage.1.model=bsae")
    assert (
        later.level == "warning"
        and "no earlier stage and no directory" in later.what
        and "did you mean 'base'" in later.what
    )
    (missing,) = found(model.beginnings, SMALL, "stage.1.model=./nowhere")
    assert missing.level == "error" and "does not exist" in missing.what


# -- plug-ins ----------------------------------------------------------------------------------------------------------


def test_plug_ins_are_made_where_there_is_time(tmp_path: Path) -> None:
    file = small_copy(tmp_path)
    (tmp_path / "odd.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Mute:\n    size: int = 1\n"
        "@dataclass\nclass Picky:\n    size: int = 1\n    def __post_init__(self):\n        raise ValueError('size must be 2')\n"
        "    def __call__(self, sample):\n        return 1.0\n"
        "class Lent:\n    __call__ = Picky.__call__\n"
        "room = 3\n"
    )
    assert not found(plugged.callables, file, "rewarders.vowels.use=odd.py:Lent")
    (mute,) = found(plugged.callables, file, "rewarders.vowels.use=odd.py:Mute")
    assert mute.level == "error" and "cannot be called with a sample" in mute.what
    (picky,) = found(plugged.made, file, "rewarders.vowels.use=odd.py:Picky")
    assert picky.level == "error" and "size must be 2" in picky.what
    assert not found(plugged.made, file, "rewarders.vowels.use=odd.py:Picky", thorough=False)
    (room,) = found(plugged.made, file, "environments.room.use=odd.py:room")
    assert room.level == "error" and "is no class" in room.what


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_plan_ends_with_status_2_on_errors_and_says_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--set", "run.rewards.vowels=0.0", "--json", "--dir", str(tmp_path / "run")]
    assert main(["plan", str(SMALL), *given]) == 2
    told = json.loads(capsys.readouterr().out)
    assert not told["ok"] and told["checks"] == [name_of(look) for look in CHECKS] and not told["broken"]
    assert told["findings"][0]["level"] == "error" and told["findings"][0]["where"] == "[run] rewards"
    assert any("stage 1 rl" in line for line in told["plan"])
    assert main(["plan", str(SMALL), "--set", "learner.group_size=1", "--json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert "group_size = 1" in told["findings"][0]["what"] and not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_plan_of_the_recipe_takes_some_seconds(tmp_path: Path) -> None:
    """Twenty were asked; of the processor, as the clock is anybody's: it takes two to three, and loads no torch."""
    before = getrusage(RUSAGE_CHILDREN)
    done = headrace("plan", str(ROOT / "recipes" / "tiny.toml"), "--dir", str(tmp_path / "run"))
    after = getrusage(RUSAGE_CHILDREN)
    assert done.returncode == 0 and "no problem was found" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10.0


@pytest.mark.long
def test_a_run_that_cannot_work_does_not_start(tmp_path: Path) -> None:
    done = headrace("run", str(SMALL), "--plain", "--set", "run.rewards.vowels=0.0", "--dir", str(tmp_path / "run"))
    assert done.returncode == 2 and "every weight is 0" in done.stderr and not (tmp_path / "run").exists()


@pytest.mark.long
def test_checks_that_hang_or_die_hold_up_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small_copy(tmp_path)
    (tmp_path / "slow.py").write_text(
        "import os, time\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Slow:\n    die: bool = False\n    size = 4\n"
        "    def row(self, number):\n        os._exit(9) if self.die else time.sleep(3600)\n"
    )
    hangs: Looked = look_ahead(RunFile.read(file, ['data.prompts={use="slow.py:Slow"}']), 12.0)
    assert "ended after 12 s" in hangs.broken and "settings.rewards" in hangs.checks and hangs.seconds < 20
    dies = RunFile.read(file, ['data.prompts={use="slow.py:Slow", die=true}'])
    assert looked_at(dies) and "ended with status 9" in capsys.readouterr().out
    assert main(["plan", str(file), "--set", 'data.prompts={use="slow.py:Slow", die=true}']) == 3, (
        "not everything was checked"
    )
