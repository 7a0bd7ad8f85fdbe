"""Plans training: decides which groups are trained, in which order, and writes each optimizer step as a durable manifest before it is executed.

Policy version = step number, so the staleness that a group will have when it is trained is known exactly when it is
planned: step ``s`` is taken by version ``s - 1``. The planner decides; it never touches the model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import groupby

from broker.errors import RunFault
from broker.log import Producer
from broker.messages import Dropped, Manifest, PlannerState, encode
from learner.planning.fates import Reason
from learner.planning.feed import Feed, Feeding, Question
from learner.planning.gates import Seen, gate
from learner.planning.groups import Group
from learner.planning.join import Join
from learner.planning.plans import Planned, StagePlan
from learner.planning.rewards import REWARD_RULE, Judged
from learner.tables import Training

log = logging.getLogger("learner")
HOPELESS_GROUPS = 256  # so many dead letters in a row end a run whose sources are endless
LOST_SECONDS = 20.0  # a sample that its actor has finished with and that has not arrived by then is asked for again


class Planner:
    """``planned`` is the newest version that a manifest orders, ``executed`` the newest that the learner holds; ``expired`` are groups that
    were outstanding, and whose prompts retention has removed."""

    def __init__(
        self,
        join: Join,
        feed: Feed,
        steps: Producer,
        topic: str,
        planned: int,
        started: float,
        fed: dict[int, int],
        published: Callable[[], int] | None = None,
        asked_again: Callable[[int], None] = lambda groups: None,
        expired: Sequence[str] = (),
    ) -> None:
        self.join, self.feed = join, feed
        self.planned = self.executed = planned
        self._asked_again = asked_again  # told how many groups' samples were lost
        self._published = published or (lambda: self.executed)
        self._steps, self._topic, self._started, self._fed = steps, topic, started, fed
        self._in_training = 0  # groups of manifests that are not executed yet: they hold their credits
        self._dropped = [Dropped(group_id, Reason.EXPIRED.value, 0) for group_id in expired]
        self._seen = Seen()
        self._buried, self._hopeless = 0, HOPELESS_GROUPS  # groups that died since one was answered, and how many may
        self._taken: dict[str, float] = {}  # when it was seen that actors are done with a group that lacks samples

    # -- credits -------------------------------------------------------------------------------------------------------

    def training(self) -> list[Group]:
        """The outstanding groups that are for training, oldest first."""
        return [g for g in self.join.groups.values() if g.prompt.purpose == "train"]

    def refill(self, stage: StagePlan) -> int:
        """Feed as many prompts as there are credits; returns how many.

        Outstanding groups, those in training included, stay <= (max_lag + 1) * groups_per_step: fed in order and trained in
        order, a group then meets the version that trains it at most ``max_lag`` versions later. A group's place in the
        queue determines the oldest version that may still answer it (``min_version``) and the step that it is meant for.
        """
        table = stage.training
        waiting = len(self.training())
        room = table.credits - waiting - self._in_training
        needed = (stage.last_step - self.planned) * table.groups_per_step - waiting
        count = min(room, needed)
        if count <= 0:
            return 0
        places = range(waiting, waiting + count)
        sizes = [f.schedule.source.size for f in stage.sources]
        known = [size for size in sizes if size is not None]
        self._hopeless = max(sum(known), table.credits) if len(known) == len(sizes) else HOPELESS_GROUPS
        self.feed.rows_again(self.join)
        questions: list[Question] = []
        for before, group in groupby(places, lambda place: self.planned + place // table.groups_per_step):
            floors = [max(0, before - table.max_lag)] * len(list(group))
            questions += self.feed.next_questions(stage.asked_for(before + 1), floors)
        self._feed(questions)
        return count

    def ask_collection(self, feeding: Feeding, questions: int, version: int) -> int:
        """Feed the first ``questions`` rows for a collection, except those already in the log; returns how many."""
        known = {g.id for g in self.join.groups.values()}
        schedule, name = feeding.schedule, feeding.ask.collection
        size = schedule.source.size
        rows = range(questions if size is None else min(questions, size))
        numbers = [n for n in rows if f"{schedule.name}-{schedule.row(n)[0]}@{name}" not in known]
        self._feed([Question(feeding, n, version) for n in numbers])
        return len(numbers)

    def _feed(self, questions: Sequence[Question]) -> None:
        version = min(self._published(), self.executed)
        groups = self.feed.feed(questions, self.join.groups.values(), version)
        for group in groups:
            partition, offset = group.position
            self._fed[partition] = max(self._fed.get(partition, 0), offset + 1)
        self.join.add(groups)

    # -- fates ---------------------------------------------------------------------------------------------------------

    def bury(self) -> None:
        """End the groups that dead letters have ended. Raises RunFault once a whole epoch has ended so: another would fare no better."""
        for group_id, error in list(self.join.dead.items()):
            group = self.join.groups.get(group_id)
            if group is None or group.prompt.purpose == "train":
                del self.join.dead[group_id]
            if group is not None and group.prompt.purpose == "train":
                self._drop(group, Reason.DEAD_LETTER)
                self._buried += 1
                if self._buried >= self._hopeless:
                    raise RunFault(
                        f"the last {self._buried} prompts all became dead letters, the newest because: {error}"
                    )

    def ask_again(self, now: float) -> list[str]:
        """Ask again for lost samples: the actors have finished the prompt, and the samples did not arrive. Returns the groups' ids."""
        done = self.join.prompts_done()
        lacking = [
            g
            for g in self.join.groups.values()
            if not g.sampled and g.position.offset < done.get(g.position.partition, 0)
        ]
        self._taken = {g.id: self._taken.get(g.id, now) for g in lacking}
        lost = [g for g in lacking if now - self._taken[g.id] > LOST_SECONDS]
        if lost:
            log.warning(
                "asking again for %d groups, %s among them: their prompts are done, and samples are missing",
                len(lost),
                lost[0].id,
            )
            for partition, offset in self.feed.again(lost):
                self._fed[partition] = max(self._fed.get(partition, 0), offset + 1)
            self._asked_again(len(lost))
            self._taken.update((g.id, now + LOST_SECONDS) for g in lost)  # it takes a while until they come
        return [g.id for g in lost]

    def expire(self, table: Training, now: float) -> None:
        """Drop groups that are incomplete at their deadline. It counts from when the group was fed, this learner started, the log came back, or
        a rewarder of its mix recovered, whichever came last."""
        self.join.outages.look(now)
        for group in self.training():
            begun = max(group.fed, self._started, self.join.outages.over(group.prompt.rewards, now))
            if not group.complete and now - begun > table.deadline:
                self._drop(group, Reason.INCOMPLETE)

    def release(self, rewarders: frozenset[str]) -> None:
        """Stop waiting for the votes of these rewarders, in evaluations and collections too; the others' votes decide."""
        freed = sum(group.excuse(rewarders) for group in self.join.groups.values()) if rewarders else 0
        if freed:
            log.warning("%d groups no longer wait for %s, which left the run file", freed, ", ".join(sorted(rewarders)))

    def restart_deadlines(self, now: float) -> None:
        """Nobody could answer while the log was away: all deadlines are counted anew from ``now``."""
        self._started = now

    def _drop(self, group: Group, reason: Reason) -> None:
        self.join.remove(group.id)
        self._dropped.append(Dropped(group.id, reason.value, group.tokens))

    # -- plans ---------------------------------------------------------------------------------------------------------

    def plan(self, stage: StagePlan) -> Planned | None:
        """The next step's manifest, durable; None while groups are missing for it, or while it waits for a late one."""
        table, step = stage.training, self.planned + 1
        ready = self._judged(table, step)[: table.groups_per_step]
        if len(ready) < table.groups_per_step:
            return None
        chosen = {group.id for group, _ in ready}
        late = self._late([g for g in self.training() if g.id not in chosen], table, step)
        if late and table.late == "wait":
            return None
        for group in late:
            self._drop(group, Reason.STALE)
        for group, _ in ready:
            self.join.remove(group.id)
        for group, judged in ready:
            self._seen.add(group, judged, table)
        self._in_training += len(ready)
        return self._write(step, stage.index, "step", ready)

    def train_again(self, stage: int, aside: Manifest, groups: tuple[tuple[Judged, ...], ...]) -> Planned:
        """The next step's manifest, durable: that of a step that was set aside, with its groups as they were judged then."""
        self._in_training += len(groups)
        written = self._write(self.planned + 1, stage, "step", again=aside)
        return replace(written, groups=groups)

    def _judged(self, table: Training, step: int) -> list[tuple[Group, list[Judged]]]:
        """The complete groups that may be trained, those that become too old soonest first. The other complete groups end here.

        Once as many groups without variance were dropped for this step as ``max_resampling`` allows, they fill its places.
        """
        ready, flat = [], []
        may_drop = table.max_resampling * table.groups_per_step - sum(
            d.reason == Reason.ZERO_VARIANCE for d in self._dropped
        )
        for group in self.training():
            if group.complete:
                self._buried = 0
                judged = group.judged()
                reason = gate(group, judged, table, step)
                if not reason:
                    ready.append((group, judged))
                elif reason is Reason.ZERO_VARIANCE and may_drop < 1:
                    flat.append((group, judged))
                else:
                    may_drop -= reason is Reason.ZERO_VARIANCE
                    self._drop(group, reason)
                    self._seen.add(group, judged, table)
        ready += flat[: max(0, table.groups_per_step - len(ready))]
        return sorted(ready, key=lambda item: item[0].oldest_version)

    def _late(self, rest: list[Group], table: Training, step: int) -> list[Group]:
        """The incomplete groups of ``rest`` that could no longer be trained in time if ``step`` were taken without them.

        A group of version v can be trained up to step v + max_lag + 1. What is left must fit the steps after this one,
        earliest deadline first; what is too old already cannot be helped by waiting.
        """
        last = [(g.oldest_version + table.max_lag + 1, g) for g in rest]
        last = sorted((item for item in last if item[0] >= step), key=lambda item: item[0])
        for place, (deadline, _) in enumerate(last):
            if step + 1 + place // table.groups_per_step > deadline:
                return [g for end, g in last if end <= deadline and not g.complete]
        return []

    def close(self, stage: int, wanted: Collection[str]) -> Planned:
        """End a stage: the remaining groups are dropped, except those of collections that somebody still wants, and the next stage begins
        after this manifest."""
        for group in list(self.join.groups.values()):
            if group.prompt.purpose == "train" or group.prompt.collection not in wanted:
                self._drop(group, Reason.STAGE_END)
        return self._write(self.planned, stage, "close")

    def weights(self, stage: int, directory: str) -> Planned:
        """Order the next policy version to be the weights in ``directory``."""
        return self._write(self.planned + 1, stage, "weights", weights=directory)

    def executed_step(self, manifest: Manifest) -> None:
        """The learner now has this manifest's version; the credits of its groups are returned."""
        self.executed = manifest.step
        self._in_training -= len(manifest.groups)

    def _write(
        self, step: int, stage: int, kind: str, ready: Sequence[tuple[Group, list[Judged]]] = (), weights: str = "",
        again: Manifest | None = None,
    ) -> Planned:  # fmt: skip
        manifest = Manifest(
            step=step,
            stage=stage,
            kind=kind,
            groups=tuple(group.ref(judged) for group, judged in ready) if again is None else again.groups,
            dropped=tuple(self._dropped),
            weights=weights,
            state=self.state(),
            metrics={**self._seen.metrics(self._dropped), **self.join.shadows.drain()},
            created=time.time(),
            reward_rule=REWARD_RULE if again is None else again.reward_rule,
            again=0 if again is None else again.step,
        )
        self._steps.send(self._topic, str(step).encode(), encode(manifest))
        position = self._steps.flush()[-1]
        self._dropped, self._seen, self.planned = [], Seen(), step
        return Planned(manifest, tuple(tuple(judged) for _, judged in ready), position.offset + 1)

    def state(self) -> PlannerState:
        trajectories, rewards, deadletters = self.join.low()
        prompts = dict(self._fed)
        for group in self.join.groups.values():
            partition, offset = group.position
            prompts[partition] = min(prompts.get(partition, offset), offset)
        return PlannerState(
            cursor=self.feed.cursor,
            outstanding=tuple(self.join.groups),
            fed=dict(self._fed),
            prompts=prompts,
            trajectories=trajectories,
            rewards=rewards,
            deadletters=deadletters,
            eras=dict(self.feed.eras),
            missing={name: tuple(numbers) for name, numbers in self.feed.missing.items() if numbers},
        )
