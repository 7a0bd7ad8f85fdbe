"""``kind = "distill"``: trains a student on texts of a teacher, which an earlier stage collected or a source provides.

The defaults are the published settings (DeepSeek-R1, arXiv 2501.12948, section 2.4 and its supplement): two passes, 64
documents a step, and a learning rate that depends on the student's size and decays along a cosine to a tenth.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import Field

from learner.stages.sft import SftStage
from learner.tables import OptimizerTable, SupervisedTable

if TYPE_CHECKING:
    from learner.learner import Learner

RATES = ((1.5e9, 1e-4), (7e9, 8e-5), (14e9, 7e-5), (32e9, 6e-5), (70e9, 2e-5))
"""A student's number of parameters, and its learning rate. The published 8B student, of another family, had 5e-5."""


class DistillStage(SftStage):
    """Like ``sft``, but without ``steps`` it makes ``epochs`` passes over ``data``, and without ``optimizer.lr`` the
    learning rate depends on the size of the model (``rate_of``).
    """

    epochs: float = Field(default=2.0, ge=0)
    documents_per_step: int = Field(default=64, ge=1)
    optimizer: OptimizerTable = OptimizerTable(schedule="cosine", final_lr=0.1)

    def trains_by(self, learner: Learner) -> SupervisedTable:
        """The table with steps and learning rate filled in if the run file leaves them open. Raises RunFileError for
        passes over endless data.
        """
        given = {"schedule": "cosine", **self.optimizer.model_dump(exclude_unset=True)}
        given.setdefault("lr", rate_of(learner.state.model.num_parameters()))
        return super().trains_by(learner).model_copy(update={"optimizer": OptimizerTable(**given)})


def rate_of(parameters: int) -> float:
    """The learning rate of the published student whose size is nearest to ``parameters``, by ratio."""
    return min(RATES, key=lambda known: abs(math.log(known[0] / max(1, parameters))))[1]
