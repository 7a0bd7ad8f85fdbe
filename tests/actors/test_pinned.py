"""A version that is read while newer ones replace it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from actors.pinned import pin, pinned
from broker.errors import EngineError
from broker.weights import process


@pytest.fixture
def version(tmp_path: Path) -> Path:
    made = tmp_path / "weights" / "v-00000001"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"numbers")
    return made


def test_what_is_pinned_stays_when_the_version_goes(version: Path, tmp_path: Path) -> None:
    with pinned(version, tmp_path / "pinned" / "actor-0") as model:
        process.remove(version)
        assert not version.exists() and (model / "model.safetensors").read_bytes() == b"numbers"
    assert not model.exists() and not list(version.parent.iterdir())


def test_a_pin_of_an_earlier_life_is_replaced(version: Path, tmp_path: Path) -> None:
    place = tmp_path / "pinned"
    place.mkdir()
    (place / "of an older one").touch()
    assert sorted(f.name for f in pin(version, place).iterdir()) == ["config.json", "model.safetensors"]


def test_a_version_that_goes_meanwhile_is_never_half_pinned(
    version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are deleted one after the other, but under another name."""
    seen: list[bool] = []
    deletes = shutil.rmtree

    def slowly(path: Path, ignore_errors: bool = False) -> None:
        if ".old" in Path(path).name:
            (Path(path) / "config.json").unlink()
            seen.append(version.exists())
            with pytest.raises(EngineError, match="there are no weights at"):
                pin(version, tmp_path / "pinned")
        deletes(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", slowly)
    process.remove(version)
    assert seen == [False] and not list(version.parent.iterdir())


def test_links_that_fail_are_copies(version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*of: object, **more: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    assert (pin(version, tmp_path / "pinned") / "model.safetensors").read_bytes() == b"numbers"
