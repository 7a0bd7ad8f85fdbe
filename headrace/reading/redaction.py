"""Removes secrets from a run file, so that it can be shown."""

from __future__ import annotations

import re
from typing import Any

NAMED = r"\w*(?:password|passphrase|secret)\w*"
SECRETS = (
    re.compile(rf"""(?i)({NAMED}\s*[=:]\s*["']?)[^&\s"']+"""),
    re.compile(r"""(://[^/\s:@"']*:)[^@/\s"']+(?=@)"""),
)
HIDDEN = "***"


def without_secrets(text: str) -> str:
    """``text`` with ``***`` for the values of what is named a password or a secret, and for the passwords in addresses."""
    for secret in SECRETS:
        text = secret.sub(rf"\1{HIDDEN}", text)
    return text


def tables_without_secrets(value: Any) -> Any:
    """The same for the tables of a run file."""
    if isinstance(value, dict):
        named = re.compile(NAMED, re.IGNORECASE)
        return {k: HIDDEN if named.fullmatch(k) else tables_without_secrets(v) for k, v in value.items()}
    if isinstance(value, list):
        return [tables_without_secrets(v) for v in value]
    return without_secrets(value) if isinstance(value, str) else value
