"""All that crosses a process boundary: messages, the log, control, and weights.

Importing this package loads neither torch nor a log implementation: rewarders start from it in well under a second.
"""

from broker import messages
from broker.open import open_log

__all__ = ["messages", "open_log"]
