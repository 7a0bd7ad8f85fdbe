"""TRL's GRPOTrainer on the task of recipes/tiny.toml, from the same base, with the same batch, rewards and rates.

python benchmarks/trl/grpo.py BASE [--steps N]: prints a line of JSON a step: seconds (evaluations left out), reward, and every
few steps held-out pass@1. BASE is the checkpoint of a run's first stage. Runs in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from learner.data.sums import SignedSums
from rewarders.format import Format
from rewarders.math import MathAccuracy

GROUPS, SIZE, ANSWER = 16, 16, 96


class Sample:
    """What the rewarders look at."""

    def __init__(self, text: str, answer: str, finished: bool) -> None:
        self.text, self.answer, self.kind = text, answer, "math"
        self.finish_reason = "stop" if finished else "length"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--steps", type=int, default=38)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--eval-every", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32)
    accuracy, form = MathAccuracy(), Format(boxed=True)
    end = tokenizer.eos_token_id

    def judge(rewarder: Any, completions: list[Any], answers: list[str], ids: list[list[int]]) -> list[float]:
        out = []
        for completion, answer, tokens in zip(completions, answers, ids, strict=True):
            verdict = rewarder(Sample(completion[0]["content"], answer, len(tokens) < ANSWER or tokens[-1] == end))
            out.append(0.0 if verdict is None else float(verdict.value))
        return out

    def correct(completions: list[Any], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return judge(accuracy, completions, answer, completion_ids)

    def formed(completions: list[Any], answer: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return judge(form, completions, answer, completion_ids)

    prompts = rows(SignedSums(seed=1), options.steps * GROUPS)
    held_out = rows(SignedSums(seed=1_000_000), 200)
    report = Report(model, tokenizer, accuracy, held_out, options.eval_every)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=options.steps, per_device_train_batch_size=GROUPS * SIZE,
        num_generations=SIZE, max_completion_length=ANSWER, temperature=1.0, top_k=0, beta=0.0, epsilon=0.2,
        loss_type="grpo", scale_rewards="group", reward_weights=[1.0, 0.2], learning_rate=1e-3, adam_beta2=0.95,
        lr_scheduler_type="linear", warmup_steps=0, max_grad_norm=1.0, use_cpu=True, bf16=False, gradient_checkpointing=False,
        logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, seed=0, shuffle_dataset=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model, reward_funcs=[correct, formed], args=config, train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer, callbacks=[report],
    )  # fmt: skip
    report.start()
    trainer.train()


def rows(source: SignedSums, count: int) -> list[dict[str, Any]]:
    found = (source.row(i) for i in range(count))
    return [{"prompt": [{"role": m.role, "content": m.content} for m in r.messages], "answer": r.answer} for r in found]


class Report(TrainerCallback):  # type: ignore[misc]
    """Prints what each step took; evaluations stand outside of the clock."""

    def __init__(
        self, model: Any, tokenizer: Any, accuracy: MathAccuracy, held_out: list[dict[str, Any]], every: int
    ) -> None:
        self._model, self._tokenizer, self._accuracy = model, tokenizer, accuracy
        self._held_out, self._every = held_out, every
        self._seconds = 0.0

    def start(self) -> None:
        self._mark = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = time.monotonic() - self._mark
        self._seconds += step
        line: dict[str, Any] = {
            "step": state.global_step,
            "step_seconds": round(step, 3),
            "seconds": round(self._seconds, 2),
        }
        if state.global_step % self._every == 0 or state.global_step == args.max_steps:
            line["pass_at_1"] = self.evaluate()
        print(json.dumps(line), flush=True)
        self._mark = time.monotonic()

    def evaluate(self) -> float:
        self._model.eval()
        right = 0
        tokenizer = self._tokenizer
        tokenizer.padding_side = "left"
        for start in range(0, len(self._held_out), 100):
            part = self._held_out[start : start + 100]
            texts = [
                tokenizer.apply_chat_template(r["prompt"], tokenize=False, add_generation_prompt=True) for r in part
            ]
            batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.no_grad():
                out = self._model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=ANSWER)
            for row, text in zip(
                part,
                tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True),
                strict=True,
            ):
                verdict = self._accuracy(Sample(text, row["answer"], True))
                right += verdict is not None and verdict.value >= 1.0
        self._model.train()
        return right / len(self._held_out)


if __name__ == "__main__":
    main()
