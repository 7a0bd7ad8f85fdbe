"""The part of the audit that follows prompts and endings side by side, to see that every group that is fed ends exactly once.

Only the groups that have no end yet are held. A group that ends and is not among them is a suspect. What the log says elsewhere
about suspects is looked up when everything has been read; a sound log has none.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from broker.log import Log
from broker.messages import (
    Artefact,
    Dropped,
    Evaluation,
    GroupRef,
    Manifest,
    PlannerState,
    Position,
    Prompt,
    Seal,
)
from broker.topics import Topics
from headrace.reading.audit import Audit
from headrace.reading.elsewhere import FATES, Elsewhere, End
from headrace.reading.history import History, whole
from headrace.reading.prompts import Prompts
from headrace.reading.records import read, records
from learner.planning.fates import Fate, Reason, fate_of

SKEW_SECONDS = 60.0  # allowed difference between clocks: a prompt is fed before its group ends
SET_ASIDE_REACH = 8  # number of recent manifests whose groups are kept: one of them may be set aside after its successors were written


def samples_in(groups: Iterable[GroupRef]) -> int:
    return sum(len(group.samples) for group in groups)


@dataclass(slots=True)
class Fates:
    """Takes the records of the steps topic in order. ``open`` are the groups without an end, with their prompts where the log has them."""

    log: Log
    topics: Topics
    audit: Audit
    open: dict[str, tuple[Prompt, Position] | None] = field(default_factory=dict)
    version: int = 0
    newest: tuple[int, PlannerState] = (-1, PlannerState())
    """Offset and state of the newest manifest."""
    suspects: list[End] = field(default_factory=list)
    rewritten: list[tuple[Manifest, str]] = field(default_factory=list)
    _recent: deque[tuple[int, tuple[GroupRef, ...]]] = field(default_factory=lambda: deque(maxlen=SET_ASIDE_REACH))
    _aside: deque[int] = field(default_factory=lambda: deque(maxlen=SET_ASIDE_REACH))
    _again: set[int] = field(default_factory=set)
    _whole: bool = True
    _fed: dict[int, int] = field(default_factory=dict)
    _sealed: dict[int, int] = field(default_factory=dict)
    _prompts: Prompts = field(default_factory=lambda: Prompts(iter(()), {}, {}))

    def begin(self, seal: Seal | None = None) -> Fates:
        """Begin with the first record, or after ``seal``. Prompts that arrive during the audit are not part of it."""
        topic = self.topics.prompts
        begins = self.log.begins(topic)
        self._whole = not any(begins.values())  # else retention may have removed the prompt of an ended group
        self._fed = dict(begins)
        if seal is not None:
            self.version = seal.version
            self.open = dict.fromkeys(seal.outstanding)
            self._fed |= seal.prompts
            self._sealed = dict(seal.prompts)
        found = ((r.position, r.timestamp, read(r)) for r in records(self.log, topic, self._fed))
        self._prompts = Prompts(found, dict(self._fed), self.log.ends(topic))
        return self

    # -- prompts -------------------------------------------------------------------------------------------------------

    def _feed(self, fed: Mapping[int, int]) -> None:
        """Read prompts until everything below these offsets was seen."""
        while any(self._fed.get(p, 0) < offset for p, offset in fed.items()):
            if not self._next():
                return

    def _look_ahead(self, group_id: str, at: float) -> bool:
        """Whether a prompt of the group was fed up to about the time ``at``."""
        while group_id not in self.open and self._next(at + SKEW_SECONDS):
            pass
        return group_id in self.open

    def _next(self, until: float = float("inf")) -> bool:
        """Take one more prompt; False if there is none that was fed before ``until``."""
        found = self._prompts.next(until)
        if found is None:
            return False
        position, _, message = found
        self._fed[position.partition] = position.offset + 1
        if isinstance(message, Prompt):  # what is no prompt is another client's: the actors dead-letter it
            self._prompt(message, position)
        return True

    def _prompt(self, prompt: Prompt, position: Position) -> None:
        if prompt.group_id not in self.open:
            self.audit.fed += 1
            self.open[prompt.group_id] = prompt, position
            return
        known = self.open[prompt.group_id]
        if known is not None and asked(known[0]) != asked(prompt):
            self.audit.problem(f"group {prompt.group_id} was fed twice, with different content")

    # -- ends ----------------------------------------------------------------------------------------------------------

    def take(self, offset: int, at: float, message: Manifest | Evaluation | Artefact) -> None:
        if isinstance(message, Manifest):
            self._manifest(offset, at, message)
            return
        where = f"{message.TYPE} {message.name}"
        self._end_all(message.group_ids, FATES[message.TYPE], where, at)
        self._drop(message.dropped, where, at)

    def _manifest(self, offset: int, at: float, manifest: Manifest) -> None:
        if manifest.kind == "set_aside":
            self._set_aside(manifest.step)
            return
        where = f"manifest {manifest.kind} {manifest.step}"
        self._feed(manifest.state.fed)
        self._follows(manifest, where)
        ids = tuple(group.group_id for group in manifest.groups)
        if manifest.again:
            self._train_again(manifest, ids, where)
        else:
            self._end_all(ids, Fate.TRAINED, where, at)
        self._drop(manifest.dropped, where, at)
        if manifest.kind == "step":
            self.audit.steps += 1
            self.audit.samples_trained += samples_in(manifest.groups)
            self._recent.append((manifest.step, manifest.groups))
        self.newest = offset, manifest.state
        if not self._whole:
            for group_id in manifest.state.outstanding:
                if group_id not in self.open:
                    self.open[group_id] = None
                    self.audit.fed += 1

    def _follows(self, manifest: Manifest, where: str) -> None:
        if manifest.origin is not None and self.newest[0] < 0:
            self.version = manifest.step
            return
        expected = self.version + (manifest.kind != "close")
        if manifest.kind != "close" and manifest.step <= self.version:
            self.rewritten.append((manifest, where))
        elif manifest.step != expected:
            self.audit.problem(f"{where} stands where version {expected} is due")
        self.version = max(self.version, manifest.step)

    def _set_aside(self, step: int) -> None:
        """The groups that the manifest of this step ended as trained were not trained after all; its version is the previous one, unchanged."""
        groups = self._groups_of(step)
        if not groups:
            self.audit.problem(f"step {step} is set aside, but no manifest orders it")
        if step in self._aside:  # it was said again after a restart
            return
        self._aside.append(step)
        self.audit.steps -= bool(groups)
        self.audit.samples_trained -= samples_in(groups)
        self._move(len(groups))

    def _groups_of(self, step: int) -> tuple[GroupRef, ...]:
        """The groups that the manifest of a step has ended; none where nothing orders it."""
        groups = next((groups for number, groups in self._recent if number == step), None)
        if groups is None:  # it lies further back, or in front of the seal
            heads = [h for h in History.around(self.log, self.topics, step, step).manifests if h.step == step]
            found = [m for m in whole(self.log, self.topics, heads) if m.kind == "step"]
            groups = tuple(group for m in found[:1] for group in m.groups)
        return groups

    def _train_again(self, manifest: Manifest, ids: tuple[str, ...], where: str) -> None:
        """A step that was set aside is tried again: its groups have ended untrained, and are trained after all."""
        if manifest.again in self._again or not self._was_set_aside(manifest.again):
            self.audit.problem(f"{where} trains the groups of step {manifest.again} again, which was not set aside")
        if set(ids) != {group.group_id for group in self._groups_of(manifest.again)}:
            self.audit.problem(f"{where} says that it is step {manifest.again} again, and has other groups")
        self._again.add(manifest.again)
        self._move(-len(ids))

    def _was_set_aside(self, step: int) -> bool:
        return step in self._aside or step in History.around(self.log, self.topics, step, step).aside

    def _move(self, groups: int) -> None:
        """Count ``groups`` groups as set aside instead of trained (below 0: the other way round)."""
        self.audit.trained -= groups
        self.audit.dropped += groups
        reasons = self.audit.dropped_by_reason
        reasons[Reason.SET_ASIDE.value] = reasons.get(Reason.SET_ASIDE.value, 0) + groups
        if not reasons[Reason.SET_ASIDE.value]:
            del reasons[Reason.SET_ASIDE.value]

    def _drop(self, dropped: Iterable[Dropped], where: str, at: float) -> None:
        for group_id, reason, _ in dropped:
            self.audit.dropped_by_reason[reason] = self.audit.dropped_by_reason.get(reason, 0) + 1
            self._end_all([group_id], fate_of(reason), where, at)

    def _end_all(self, ids: Iterable[str], fate: str, where: str, at: float) -> None:
        for group_id in ids:
            if group_id in self.open or self._look_ahead(group_id, at):
                del self.open[group_id]
                self.audit.ended(fate)
            else:
                self.suspects.append(End(group_id, fate, where))

    # -- when all is read ----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Read the remaining prompts, and report what is wrong with each suspect, if anything."""
        while self._next():
            pass
        _, state = self.newest
        known = set(state.outstanding)
        due = {
            group_id: found[0] if found is not None else None
            for group_id, found in self.open.items()
            if group_id not in known and self._is_due(found, state)
        }
        if self.suspects or self.rewritten or due:
            self._inquire(due)
        self.audit.outstanding = len(self.open)

    def _is_due(self, found: tuple[Prompt, Position] | None, state: PlannerState) -> bool:
        """Whether a group was fed before the newest manifest was written, which must know it then."""
        if found is not None:
            return found[1].offset < state.fed.get(found[1].partition, 0)
        return all(state.fed.get(p, 0) >= offset for p, offset in self._sealed.items())

    def _inquire(self, due: Mapping[str, Prompt | None]) -> None:
        ids = {end.group_id for end in self.suspects} | due.keys()
        elsewhere = Elsewhere(ids, {m.step for m, _ in self.rewritten})
        elsewhere.look(self.log, self.topics)
        for manifest, where in self.rewritten:
            first, *again = elsewhere.manifests[manifest.step]
            if again:
                same = first == replace(manifest, created=0.0)
                self.audit.problem(f"{where} is written twice{'' if same else ', with different content'}")
            else:
                self.audit.problem(f"{where} stands behind manifests of later versions")
        self._judge_suspects(elsewhere)
        for group_id, prompt in due.items():
            if not elsewhere.ends[group_id]:
                self.audit.problem(
                    f"group {group_id} is lost: it has no fate, and the newest manifest does not know it"
                )
                continue
            del self.open[group_id]  # it was fed again after its end
            self.audit.fed -= 1
            if prompt is not None and any(
                asked(other) != asked(prompt) for other in elsewhere.prompts(self.log, self.topics, group_id)
            ):
                self.audit.problem(f"group {group_id} was fed twice, with different content")
        for (group_id, index), times in elsewhere.samples.items():
            if times > 1:
                self.audit.problem(f"sample {group_id}#{index} was trained {times} times")

    def _judge_suspects(self, elsewhere: Elsewhere) -> None:
        times = Counter(end.group_id for end in self.suspects)
        for end in self.suspects:
            ends = elsewhere.ends[end.group_id]
            known = len(ends) > times[end.group_id]  # it ended properly before this
            if known or end != ends[0] or times[end.group_id] < 0:
                self.audit.problem(f"group {end.group_id} is {ends[0].fate} and, by {end.where}, {end.fate} again")
            else:
                times[end.group_id] = -1
                self.audit.fed += 1
                self.audit.ended(end.fate)
                if self._whole:
                    self.audit.problem(f"group {end.group_id} is {end.fate}, but was never fed")

    @property
    def fed(self) -> dict[int, int]:
        """The offset of the first prompt of each partition that was not taken."""
        return dict(self._fed)


def asked(prompt: Prompt) -> Prompt:
    """The prompt without what may differ between two feedings of one group."""
    return replace(prompt, version=0, min_version=0, created=0.0)
