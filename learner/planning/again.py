"""Finds a step that was set aside in the log, with its records, so that it can be tried again."""

from __future__ import annotations

from contextlib import closing

from broker.errors import DataError, DecodeError, LogError
from broker.log import Log
from broker.messages import Manifest, Position, decode
from broker.topics import Topics
from learner.planning.join import each
from learner.planning.records import ManifestReader
from learner.planning.rewards import Judged

Found = tuple[Manifest, tuple[tuple[Judged, ...], ...]]


def set_aside(log: Log, topics: Topics, offset: int, stage: int) -> Found:
    """The manifest at ``offset`` of the steps topic, with its groups. Raises DataError with the reason if it cannot be trained in
    ``stage``: only a step that was set aside can, once, in its own stage, and while the log still has its samples."""
    with closing(log.reader(topics.steps, {0: offset})) as reader:
        try:
            manifest = decode(reader.get([Position(0, offset)])[0].value)
        except (LogError, DecodeError) as error:
            raise DataError(f"its manifest cannot be read: {error}") from error
        if not isinstance(manifest, Manifest) or manifest.kind != "step":
            raise DataError("it is the manifest of no step")
        if manifest.stage != stage:
            raise DataError(f"it belongs to stage {manifest.stage}, and stage {stage} is under way")
        aside = False
        for record in each(reader, log.ends(topics.steps)):
            try:
                later = decode(record.value)
            except DecodeError:
                continue
            if isinstance(later, Manifest) and later.step == manifest.step and later.kind == "set_aside":
                aside = True
            if isinstance(later, Manifest) and later.again == manifest.step:
                raise DataError(f"it was tried again already, as step {later.step}")
    if not aside:
        raise DataError("it was not set aside")
    with closing(ManifestReader(log, topics)) as records:
        try:
            return manifest, records.groups(manifest)
        except LogError as error:
            raise DataError(f"its samples cannot be read any more: {error}") from error
