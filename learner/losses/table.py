"""``learner.objective`` of a run file: a name, a name with options, or a term of one's own. Imports no torch."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, PrivateAttr, field_validator, model_validator

from broker import plugins
from broker.errors import RunFileError
from broker.runfile import Table
from broker.spelling import nearest
from learner.losses.objectives import OBJECTIVES, SHARED, Objective

log = logging.getLogger("learner")
DEFAULT = "async"


class ObjectiveTable(Table):
    """``objective = "grpo"``, ``{ name = "grpo", high = 0.28 }`` or ``{ use = "mine.py:Mine", margin = 0.1, aggregation = "constant" }``.

    Further keys are options of the objective's term, or of ``Objective``. One that would never be read is refused.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = ""
    use: str = ""
    _base: Path = PrivateAttr(default=Path())

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name and name not in OBJECTIVES:
            raise ValueError(f"no objective of that name{nearest(name, list(OBJECTIVES))}")
        return name

    @model_validator(mode="after")
    def _readable(self) -> ObjectiveTable:
        if self.use and self.name:
            raise ValueError(f"name = {self.name!r} and use = {self.use!r} are two objectives: keep one of them")
        if not self.use:
            self.named()
        return self

    def beside(self, base: Path) -> ObjectiveTable:
        """The same, with ``use`` looked for beside the run file in ``base``."""
        found = self.model_copy()
        found._base = base
        return found

    def check(self, where: str) -> None:
        """Look at a term of one's own without running any of it. Raises RunFileError."""
        if self.use:
            plugins.check(self.use, [o for o in self.options if o not in SHARED], self._base, where)

    def allows_single(self) -> bool:
        """Whether a sample alone teaches something: a teacher does, a reward does not."""
        usual = 0.0 if self.use else OBJECTIVES[self.name or DEFAULT].distill
        return float(self.options.get("distill", usual)) > 0

    def named(self) -> Objective:
        name = self.name or DEFAULT
        return OBJECTIVES[name].having(self.options, f"objective {name!r}")


def objective_of(table: ObjectiveTable) -> Objective:
    """The objective that a run file asks for. Raises RunFileError if a term of one's own cannot be made."""
    if not table.use:
        objective = table.named()
        if table.name == "r1" and not getattr(objective.term, "dual", 0):
            _warn_of_r1()
        return objective
    where = "[learner] objective"
    shared = {option: value for option, value in table.options.items() if option in SHARED}
    own = {option: value for option, value in table.options.items() if option not in SHARED}
    term = plugins.build(table.use, own, table._base, where)
    if not callable(term):
        raise RunFileError(f"{where} use = {table.use!r}: a term needs __call__(self, tokens) -> Term")
    try:
        return Objective(term).having(shared, f"objective {table.use!r}")
    except ValueError as error:
        raise RunFileError(f"{where} {error}") from None


@cache
def _warn_of_r1() -> None:
    """Once a process."""
    log.warning(
        "objective 'r1' has its published settings, without a dual clip: a negative token that the policy has left gets an unbounded "
        "gradient; keep max_lag at 0 or 1, or set dual = 3"
    )
