"""All that crosses a process boundary: messages, the log, control, and weights.

Importing this package loads nothing more: the children that judge and play start from it, in a tenth of a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker import messages as messages
    from broker.open import open_log as open_log

__all__ = ["messages", "open_log"]


def __getattr__(name: str) -> Any:
    if name == "messages":
        return importlib.import_module("broker.messages")
    if name == "open_log":
        return importlib.import_module("broker.open").open_log
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
