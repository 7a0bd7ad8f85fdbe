"""The actor: takes prompts from the log, samples them, and publishes each sample as soon as it is finished.

At least once: a prompt is committed when all of its samples are durable. Actors go on sampling when the learner is away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from actors.config import ActorsTable
from actors.engine import Completion, Engine
from actors.environment import Turn
from actors.episodes import Episode, between, opening, together
from actors.intake import Intake
from actors.later import Later
from actors.pace import pace_of
from actors.prompting import render
from actors.rooms import Rooms, Said
from actors.work import Work
from broker.chat import Chats
from broker.daemon import keep_going
from broker.errors import ChatError, EngineError, EnvironmentFault, MessageError, RecordTooLarge
from broker.log import Record
from broker.messages import encode
from monitoring.daemon import Stop
from monitoring.metrics import ActorMetrics, BrokerMetrics, SystemMetrics

log_ = logging.getLogger("actor")
ATTEMPTS = 3  # attempts at a sample for which the engine returned impossible numbers, or whose environment failed
ABORTS = 3  # a turn that new weights have aborted this often is kept from then on: frequent updates would starve long answers
POLL_SECONDS = 0.05
ROOMS_SECONDS = 0.01  # interval at which to check what environments have said


class ActorWorker:
    """Joins one engine, and the environments in ``rooms``, to the log. Driven by ``run`` on the thread that samples."""

    def __init__(
        self, name: str, intake: Intake, engine: Engine, rooms: Rooms, table: ActorsTable,
        metrics: ActorMetrics, broker: BrokerMetrics, system: SystemMetrics,
    ) -> None:  # fmt: skip
        self._name, self._intake, self._engine, self._rooms = name, intake, engine, rooms
        self._chats = Chats(engine.tokenizer)
        self._pace = pace_of(table, engine, metrics)
        self._give_back = table.give_back
        self._asked = time.monotonic()  # when the engine could last be asked
        self._metrics, self._broker, self._system = metrics, broker, system
        self._work: dict[str, Work] = {}
        self._places: dict[int, tuple[str, int]] = {}
        """The group and index of each ticket of ``rooms``."""
        self._later: Later[tuple[str, int]] = Later()
        self._group_size = 1  # of the newest prompt: what the next one will probably take

    def run(self, stop: Stop) -> None:
        """Sample until ``stop``; what is running then is left to the redelivery of its prompt."""
        keep_going(self.round, stop, self._broker.unavailable)

    def round(self) -> None:
        """Take prompts, sample a while, hear environments, publish what is finished, commit."""
        if not self._takes_part():
            self._engine.poll(POLL_SECONDS)
            return
        self._pace.follow(sum(len(w.episodes) for w in self._work.values()), self._group_size)
        self._take()
        started, rested = time.monotonic(), self._engine.resting
        done = self._engine.poll(ROOMS_SECONDS if self._rooms.waiting else POLL_SECONDS)
        if rested or not self._work:
            self._system.waited("shift" if rested else "no_prompts", time.monotonic() - started)
        for completion in done:
            self._hear(completion)
        self._say(self._rooms.ready())
        for group_id, index in self._later.due():
            self._begin(self._work[group_id], [index])
        self._metrics.inflight.set(sum(len(w.missing) for w in self._work.values()))
        self._metrics.weight_version.set(self._engine.version)
        if self._intake.pending:
            self._intake.flush(at_once=not self._work)

    def _takes_part(self) -> bool:
        """Join or leave as the engine comes and goes: while it holds no weights to sample from, others do this actor's work."""
        now = time.monotonic()
        if self._engine.version >= 0:
            self._asked = now
            if not self._intake.joined:
                log_.info("the engine is back")
                self._intake.join()
        elif self._intake.joined and now - self._asked > self._give_back:
            log_.warning("the engine is away: %d prompts are given back", len(self._work))
            for group_id in list(self._work):
                self._forget(group_id)
            self._intake.leave()
        return self._intake.joined

    def _take(self) -> None:
        """Take prompts while the engine has room, and keep the membership alive in any case."""
        works = [
            w for w in self._work.values() if not self._rooms.outside(w.prompt.environment)
        ]  # agents come when they like
        opening = sum(len(work.missing) - len(work.episodes) for work in works)
        room = self._engine.room() + self._pace.ahead - opening
        while True:
            records = self._intake.take(max(1, room // self._group_size) if room > 0 else 0)
            for record in records:
                self._accept(record)
                room -= self._group_size
            if not records or room <= 0:
                return

    def _accept(self, record: Record) -> None:
        prompt = self._intake.read(record)
        if prompt is None:
            return None
        if (under_way := self._work.get(prompt.group_id)) is not None:
            if not under_way.is_of(record):
                self._intake.done(record)
            return None
        work = Work(record, prompt, set(range(prompt.group_size)))
        try:
            self._engine.check(prompt.sampling)
            self._begin(work, sorted(work.missing))
        except (EngineError, EnvironmentFault) as error:
            self._release(work)
            return self._intake.bury(record, prompt.group_id, str(error))
        self._group_size = prompt.group_size
        self._work[prompt.group_id] = work
        return None

    # -- episodes ------------------------------------------------------------------------------------------------------

    def _begin(self, work: Work, indices: Iterable[int]) -> None:
        """Begin these samples: in their environment if the prompt has one, else with the engine at once."""
        prompt = work.prompt
        if prompt.environment:
            for index in indices:
                ticket = work.tickets[index] = self._rooms.open(prompt, index)
                self._places[ticket] = (prompt.group_id, index)
                work.begun[index] = time.monotonic()
            return
        rendered = render(self._chats, prompt)
        self._ask(work, [Episode.begin(prompt, index, rendered) for index in indices])

    def _ask(self, work: Work, episodes: list[Episode]) -> None:
        """Have the engine sample first replies, those to one and the same prompt together."""
        work.episodes |= {episode.index: episode for episode in episodes}
        for request in together(episodes):
            self._engine.submit(request)

    def _hear(self, done: Completion) -> None:
        """A reply has come: the end of the sample, or something for its environment to answer."""
        work = self._work.get(done.group_id)
        if work is None or done.index not in work.missing:
            return None
        episode = work.episodes[done.index]
        if done.finish_reason == "abort":
            self._metrics.aborted("update").inc()
            episode.aborts += 1
            if episode.aborts == ABORTS:
                why = "sample %d of %s was ended by new weights %d times; it is kept from now on"
                log_.warning(why, done.index, done.group_id, ABORTS)
            return self._engine.submit(episode.request(keep=episode.aborts >= ABORTS))
        if done.finish_reason == "refused":
            return self._refuse(work, done.index, done.text)
        reply = episode.hear(done, self._engine.ends)
        self._pace.finished += 1
        self._metrics.generated_tokens.inc(len(done.tokens))
        self._metrics.prompt_tokens.inc(len(episode.tokens) - len(done.tokens))
        self._metrics.cached_prompt_tokens.inc(done.cached)
        if work.prompt.environment:
            self._rooms.step(work.tickets[done.index], reply, episode)
        if not work.prompt.environment or done.finish_reason != "stop":
            self._publish(work, episode)
        return None

    def _say(self, found: list[Said]) -> None:
        """Environments have spoken."""
        opened: dict[tuple[str, int], list[Episode]] = {}
        for said in found:
            self._metrics.environment_seconds.observe(said.seconds)
            if said.ticket not in self._places:  # given up a moment ago
                continue
            group_id, index = self._places[said.ticket]
            work = self._work[group_id]
            episode = work.episodes.get(index)
            try:
                if said.turn is None:
                    self._fail(work, index, said)
                elif episode is None and (said.turn.asked is None or not said.turn.asked.earlier):
                    together = -1 if said.turn.asked is None else index  # agents ask each its own
                    opened.setdefault((group_id, together), []).append(
                        self._opened(work, index, said.turn, said.seconds)
                    )
                else:
                    episode = episode or work.resume(index, said.turn)
                    episode.answered(said.turn, said.seconds)
                    self._answer(work, episode, said.turn)
            except (ChatError, EngineError, EnvironmentFault) as error:
                self._refuse(work, index, str(error))
        for (group_id, _), episodes in opened.items():
            if group_id in self._work:
                try:
                    self._ask(self._work[group_id], episodes)
                except EngineError as error:
                    self._refuse(self._work[group_id], episodes[0].index, str(error))

    def _opened(self, work: Work, index: int, turn: Turn, seconds: float) -> Episode:
        if turn.over:
            raise EnvironmentFault(
                f"environment {work.prompt.environment!r} ended an episode before any reply: {turn.why}"
            )
        if turn.asked is not None:  # until now its place has waited for an agent
            work.begun[index] = time.monotonic()
        return Episode.begin(work.prompt, index, opening(self._chats, work.prompt, turn), turn, seconds)

    def _refuse(self, work: Work, index: int, why: str) -> None:
        """What was said last in a sample cannot be answered: an agent hears why, anything else ends with its group."""
        ticket, episode = work.tickets.get(index), work.episodes.get(index)
        if ticket is None or not self._rooms.refuse(ticket, why):
            return self._give_up(work, index, why)
        if episode is not None and not episode.replies:
            del work.episodes[index]
        elif episode is not None and episode.segments[-1].role != "assistant" and episode.said is not None:
            episode.unsay(episode.said)
        return None

    def _answer(self, work: Work, episode: Episode, turn: Turn) -> None:
        """Go on with an episode, or end it: the environment says so, or a limit does."""
        limit = self._rooms.limit(work.prompt.environment)
        late = limit > 0 and time.monotonic() - work.begun[episode.index] > limit
        if not turn.over and (late or len(episode.replies) >= work.prompt.sampling.max_turns):
            episode.finish_reason = "turns"
        elif not turn.over:
            if not turn.messages:
                raise EnvironmentFault("an environment must say something to a reply, or end the episode")
            request = episode.say(turn, between(self._chats, episode, turn.messages))
            if request is not None:
                try:
                    return self._engine.submit(request)
                except EngineError:  # no room in the context for another reply
                    episode.unsay(turn)
            episode.finish_reason = "length"
        return self._publish(work, episode)

    def _fail(self, work: Work, index: int, said: Said) -> None:
        """An environment failed: the sample begins anew, a few times if the failure is its own, later if what it asks is away."""
        if said.unwanted:
            return self._intake.done(self._forget(work.prompt.group_id).record)
        self._metrics.aborted("lost" if said.lost else "outage" if said.away else "environment").inc()
        if said.away:
            return self._wait(work, index, said.why)
        if not said.lost:
            work.attempts[index] = work.attempts.get(index, 0) + 1
            if work.attempts[index] >= ATTEMPTS:
                return self._give_up(work, index, f"environment {work.prompt.environment!r}: {said.why}")
        return self._again(work, index)

    def _wait(self, work: Work, index: int, why: str) -> None:
        """Try a sample again when there was time for what is away to come back."""
        group_id = work.prompt.group_id
        pause = self._later.put((group_id, index))
        log_.warning("%s#%d: %s; it is tried again in %g s", group_id, index, why, pause)
        work.episodes.pop(index, None)
        self._close(work, index)

    def _again(self, work: Work, index: int) -> None:
        """Begin a sample anew."""
        work.episodes.pop(index, None)
        self._close(work, index)
        self._begin(work, [index])

    def _close(self, work: Work, index: int, why: str = "") -> None:
        ticket = work.tickets.pop(index, None)
        if ticket is not None:
            self._rooms.forget(ticket, why)
            self._places.pop(ticket, None)

    def _release(self, work: Work) -> None:
        for index in range(work.prompt.group_size):
            self._close(work, index)
            self._later.forget((work.prompt.group_id, index))

    def _forget(self, group_id: str) -> Work:
        """Nothing more is wanted of this group."""
        self._engine.cancel(group_id)
        work = self._work.pop(group_id)
        self._release(work)
        return work

    # -- results -------------------------------------------------------------------------------------------------------

    def _publish(self, work: Work, episode: Episode) -> None:
        index, group_id = episode.index, work.prompt.group_id
        try:
            self._intake.publish(group_id, encode(episode.trajectory(self._engine.name, self._name)))
        except (MessageError, RecordTooLarge) as error:
            work.attempts[index] = work.attempts.get(index, 0) + 1
            self._metrics.aborted("invalid").inc()
            if work.attempts[index] < ATTEMPTS:
                return self._again(work, index)
            return self._give_up(work, index, str(error))
        self._metrics.generation_seconds.observe(time.time() - episode.started)
        self._close(work, index, episode.finish_reason)
        del work.episodes[index]
        work.missing.discard(index)
        self._later.forget((group_id, index))
        if not work.missing:
            del self._work[group_id]
            self._intake.done(work.record)
        return None

    def _give_up(self, work: Work, index: int, why: str) -> None:
        """One sample can never be had, so its group is of no use."""
        self._forget(work.prompt.group_id)
        self._intake.bury(work.record, work.prompt.group_id, f"sample {index}: {why}")

    def close(self) -> None:
        self._intake.close()
        self._rooms.close()
