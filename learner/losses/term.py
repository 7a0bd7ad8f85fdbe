"""What a term of an objective gets and gives: the numbers of the tokens in, the loss of each token out.

A term is a frozen dataclass whose fields are its options, with a ``__call__`` from ``Tokens`` to ``Term``. Terms do their arithmetic with the
tensors' own methods and import no torch, so that a command line can check their options.

Notation: pi the current policy, mu the behaviour policy (that sampled), prox the policy before the batch, ``w = pi / mu``, ``r = pi / prox``,
``rho = prox / mu``, A advantage, sg stop-gradient. Losses are minimised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from learner.losses.sequences import Sequences

RATIO_LIMIT = 60.0  # |log w| is cut here: exp(60) is far below the largest float32


@dataclass(frozen=True, slots=True)
class Tokens:
    """One number per token. All tensors have one shape and are clean: finite where tokens count, zero elsewhere. Only ``logprobs`` is differentiated.

    ``logprobs``: log pi. ``behavior``: log mu. ``prox``: log prox, equal to log pi where a batch is one step. ``sequences`` sums over the
    sequence that each token belongs to.
    """

    logprobs: Tensor
    behavior: Tensor
    advantages: Tensor
    prox: Tensor
    sequences: Sequences


@dataclass(frozen=True, slots=True)
class Term:
    """``loss`` of each token; ``weight``, the factor of its advantage's gradient after all clips, caps and masks; and ``flags``, by name: the
    tokens that were clipped, capped or masked."""

    loss: Tensor
    weight: Tensor
    flags: dict[str, Tensor] = field(default_factory=dict)


class TermOf(Protocol):
    """A term. It may also have ``pulls`` (bool: a part of it does not depend on the advantage), ``uses_prox`` (bool), and ``renamed``: hints
    for options that it does not have any more, by name."""

    def __call__(self, tokens: Tokens, /) -> Term: ...


def log_ratio(logprobs: Tensor, behavior: Tensor) -> Tensor:
    """``log pi - log mu``, cut to +-60."""
    return (logprobs - behavior).clamp(-RATIO_LIMIT, RATIO_LIMIT)


def above(least: float, /, **options: float) -> None:
    """Raises ValueError unless each option is a finite number above ``least``."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= least:
            raise ValueError(f"{name} = {value!r}: must be a number above {least:g}")


def at_least(least: float, /, **options: float) -> None:
    """Raises ValueError unless each option is a finite number of at least ``least``."""
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
            raise ValueError(f"{name} = {value!r}: must be a number of at least {least:g}")


def one_of(known: tuple[str, ...], /, **options: str) -> None:
    """Raises ValueError unless each option is one of ``known``."""
    for name, value in options.items():
        if value not in known:
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(known)}")
