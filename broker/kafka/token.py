"""OAuth tokens for SASL/OAUTHBEARER from a file that somebody else keeps fresh (a sidecar, a projected service-account token)."""

from __future__ import annotations

from pathlib import Path

from kafka.net.sasl.oauth import AbstractTokenProvider


class TokenFile(AbstractTokenProvider):
    """Read at every login: the file may be replaced at any time."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def token(self) -> str:
        return self._path.read_text(encoding="ascii").strip()
