"""TRL's GRPOTrainer on the task of recipes/tiny.toml, from the same base, with the same batch, rewards and rates.

python benchmarks/trl/grpo.py BASE --keep DIR [--steps N] [--rate 1e-3]: prints a line of JSON when training begins and one a step, with the seconds and the
processor seconds since then; the weights of each step go to DIR/weights-STEP while the clock stands. BASE is the checkpoint of a run's first
stage. Runs in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
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
        self.finish_reason, self.metadata = "stop" if finished else "length", dict[str, Any]()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("base")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, required=True)
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

    prompts = rows(SignedSums(seed=1), 60 * GROUPS)
    report = Report(model, tokenizer, options.keep, options.steps)
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=60, per_device_train_batch_size=GROUPS * SIZE,
        num_generations=SIZE, max_completion_length=ANSWER, temperature=1.0, top_k=0, beta=0.0, epsilon=0.2,
        loss_type="grpo", scale_rewards="group", reward_weights=[1.0, 0.2], learning_rate=options.rate, adam_beta2=0.95,
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
    """Prints what each step took; weights are kept outside of the clock."""

    def __init__(self, model: Any, tokenizer: Any, keep: Path, steps: int) -> None:
        self._model, self._tokenizer, self._keep, self._steps = model, tokenizer, keep, steps
        self._seconds = self._spent = 0.0

    def start(self) -> None:
        print(json.dumps({"began": time.time()}), flush=True)
        self._mark, self._used = time.monotonic(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._seconds += time.monotonic() - self._mark
        self._spent += time.process_time() - self._used
        row = {"step": state.global_step, "seconds": round(self._seconds, 3), "spent": round(self._spent, 3)}
        print(json.dumps(row), flush=True)
        place = self._keep / f"weights-{state.global_step}"
        self._model.save_pretrained(place)
        self._tokenizer.save_pretrained(place)
        control.should_training_stop = state.global_step >= self._steps
        self._mark, self._used = time.monotonic(), time.process_time()


if __name__ == "__main__":
    main()
