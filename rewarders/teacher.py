"""A teacher's verdict on every token: the log-probability that another model gives the tokens that were sampled.

The objective ``distill`` uses it for on-policy distillation: the student answers, and its gradient comes from the
reverse KL divergence to the teacher, token by token (Agarwal et al., arXiv 2306.13649; Gu et al., arXiv 2306.08543).
The teacher reads the sample's own tokens, so both must have one vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.calls import CallRefused, Server
from broker.errors import MessageError, RunFileError
from broker.messages import FloatArray, Trajectory
from rewarders.beside import is_made_later, located
from rewarders.rewarder import GroupRewarder, Reward

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Teacher(GroupRewarder):
    """A causal model of transformers at ``model`` (a directory or id) in the rewarder's own process, in batches of ``batch`` samples.

    Each trainable token gets log p(token | all before it), in float32, at the temperature that the sample was drawn at (1 where it was
    greedy). ``student`` is the directory or id of the policy's tokenizer: it must be the teacher's. ``device`` is ``auto``, ``cpu`` or a device
    of torch; ``dtype`` the type that the model computes in; ``rows`` tokens at a time go through its head. Directories are looked for
    beside the run file first. One in the run's own directory (``{run}/checkpoints/stage-1-zero``) may be made by a stage later: then it is
    loaded for the first sample.

    Raises RunFileError where there is no such model, or its vocabulary is another.
    """

    model: str
    student: str
    device: str = "auto"
    dtype: str = "float32"
    batch: int = 16
    rows: int = 1024

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rows < 1:
            raise MessageError(f"batch = {self.batch}, rows = {self.rows}; both must be at least 1")
        import torch  # noqa: F401  (seconds that belong to the start, not to the first sample)
        import transformers  # noqa: F401

        _ = self._places
        if not is_made_later(self.model):
            _ = self._loaded

    @cached_property
    def _places(self) -> tuple[str, str]:
        """Where the teacher and the student's tokenizer lie; only while the rewarder is made is it known for which run file."""
        return located(self.model), located(self.student)

    @cached_property
    def _loaded(self) -> Any:
        """The model in evaluation mode."""
        import torch
        from transformers import AutoModelForCausalLM

        where, student = self._places
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        try:
            model, report = AutoModelForCausalLM.from_pretrained(where, dtype=self.dtype, output_loading_info=True)
            model = model.to(device).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise RunFileError(f"model = {self.model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
        if report["missing_keys"]:
            some = ", ".join(sorted(report["missing_keys"])[:3])
            raise RunFileError(f"model = {self.model!r} is no whole language model: it lacks {some}")
        check_vocabulary(where, student)
        self._check_head(model)
        return model

    def judge(self, samples: Sequence[Trajectory]) -> Sequence[Reward]:
        return [Reward.taught(values, f"teacher {Path(self.model).name}") for values in self.logprobs(samples)]

    def logprobs(self, samples: Sequence[Trajectory]) -> list[FloatArray]:
        """The teacher's log-probabilities, for each sample float32 ``[trainable tokens]``."""
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].tokens))  # little padding
        values: list[FloatArray] = [np.zeros(0, np.float32)] * len(samples)
        for first in range(0, len(order), self.batch):
            places = order[first : first + self.batch]
            for i, given in zip(places, self._batch([samples[i] for i in places]), strict=True):
                values[i] = given
        return values

    def _batch(self, samples: Sequence[Trajectory]) -> list[FloatArray]:
        import torch

        model = self._loaded
        size = int(model.config.get_text_config().vocab_size)
        for sample in samples:
            if (highest := int(sample.tokens.max())) >= size:
                raise MessageError(f"token {highest} of {sample.id} is none of the {size} of model = {self.model!r}")
        longest = max(len(s.tokens) for s in samples)
        ids_BT = np.zeros((len(samples), longest), np.int64)
        real_BT, trained_BT = np.zeros_like(ids_BT), np.zeros_like(ids_BT, dtype=np.bool_)
        for row, s in enumerate(samples):
            ids_BT[row, : len(s.tokens)], real_BT[row, : len(s.tokens)] = s.tokens, 1
            trained_BT[row, : len(s.tokens)] = s.mask()
        temperatures_B = torch.tensor([s.sampling.temperature or 1.0 for s in samples], device=model.device)
        tokens_BT, wanted_BT = torch.from_numpy(ids_BT).to(model.device), torch.from_numpy(trained_BT).to(model.device)
        with torch.inference_mode():
            mask_BT = torch.from_numpy(real_BT).to(model.device)
            hidden_BTD = model.base_model(input_ids=tokens_BT, attention_mask=mask_BT, use_cache=False)[0]
            before = wanted_BT[:, 1:]  # the state behind a token gives the next one
            chosen_M = self._chosen(
                hidden_BTD[:, :-1][before],
                tokens_BT[:, 1:][before],
                temperatures_B[:, None].expand_as(before)[before],
            )
        counts = [s.response_tokens for s in samples]
        return [part.numpy() for part in chosen_M.cpu().split(counts)]

    def _chosen(self, hidden_MD: Tensor, tokens_M: Tensor, temperature_M: Tensor) -> Tensor:
        """float32 ``[M]``: the log-probability of each token in the distribution behind its state."""
        import torch

        head = self._loaded.get_output_embeddings()
        parts = [torch.zeros(0, device=hidden_MD.device)]
        for first in range(0, len(tokens_M), self.rows):
            here = slice(first, first + self.rows)
            logits_RV = head(hidden_MD[here]).float() / temperature_M[here, None]
            parts.append(logits_RV.log_softmax(-1).gather(-1, tokens_M[here, None])[:, 0])
        return torch.cat(parts)

    def _check_head(self, model: Any) -> None:
        """Raises RunFileError for a model that does more to its logits than its head (caps, scales): they would not be its own here."""
        import torch

        ids = torch.arange(1, 5, device=model.device)[None]
        with torch.inference_mode():
            wanted = model(input_ids=ids, use_cache=False).logits.float()
            given = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False)[0]).float()
        if not bool(((wanted - given).abs() <= 1e-4 * wanted.abs().max()).all()):
            raise RunFileError(
                f"model = {self.model!r} scales or caps its logits behind the head; serve it and use rewarders.teacher:TeacherServer"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherServer(Server):
    """A teacher that an SGLang server holds, asked by ``POST /generate`` for the log-probabilities of its input.

    Servers give them at temperature 1; a sample that was drawn at another is an error. The server's vocabulary must be the policy's: it is
    asked with token ids. The other options are those of ``Server``. Raises Outage where the server is away, CallRefused where its
    answer is of no use.
    """

    def __call__(self, sample: Trajectory) -> Reward:
        temperature = sample.sampling.temperature or 1.0
        if temperature != 1.0:
            raise MessageError(
                f"{sample.id} was sampled at temperature {temperature:g}, and a server scores at 1: set sampling.temperature = 1.0, "
                "or use rewarders.teacher:Teacher"
            )
        ids = sample.tokens.tolist()
        answer = self.caller.post(
            "/generate",
            {
                "input_ids": ids,
                "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
                "return_logprob": True,
                "logprob_start_len": 0,
            },
        )
        try:
            rows = [(value, int(token)) for value, token, *_ in answer["meta_info"]["input_token_logprobs"]]
            values = np.array([0.0 if value is None else float(value) for value, _ in rows], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise CallRefused(f"{self.url}/generate gives no log-probabilities: {str(answer)[:200]}") from error
        if [token for _, token in rows] != ids:
            raise CallRefused(
                f"{self.url}/generate gives {len(rows)} log-probabilities of other tokens than the {len(ids)} sent"
            )
        return Reward.taught(values[sample.mask()], f"teacher at {self.url}")


def check_vocabulary(teacher: str, student: str) -> None:
    """Raises RunFileError unless both tokenizers have the same tokens under the same ids."""
    from transformers import AutoTokenizer

    known = []
    for where in (teacher, student):
        try:
            known.append(AutoTokenizer.from_pretrained(where).get_vocab())
        except (OSError, ValueError) as error:
            raise RunFileError(f"{where!r} has no tokenizer: {str(error).splitlines()[0]}") from error
    mine, theirs = known
    other = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if other:
        token = other[0]
        raise RunFileError(
            f"model = {teacher!r} has another vocabulary than student = {student!r}: {len(other)} tokens differ, {token!r} is "
            f"{mine.get(token)} there and {theirs.get(token)} here; a teacher must read the student's own tokens"
        )
