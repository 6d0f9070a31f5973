"""lockd's locks without a file beside a dumb model: who is granted what and when, and which waits can never end.

The model keeps each lock as two lists. Whether a wait can end it finds by trying every future: whoever does not wait
may give back what it holds, at any time and in any order. `python -m tests.test_deadlocks --schedules N` runs many.
"""

import argparse
import concurrent.futures
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import pytest

from common.messages import (
    Acquire,
    Cancel,
    Grant,
    Hello,
    InUse,
    Mode,
    Ping,
    Recall,
    Refused,
    Release,
    ToLockd,
    Welcome,
)
from common.records import EMPTY
from lockd import deadlocks
from lockd.core import Lockd
from lockd.effects import Durable, Effect, Send
from lockd.locks import Hold, Waiter
from lockd.shared import Shared

CLIENTS: Final = 3
OWNERS: Final = 2
"""Of each client; besides, some requests tell of no owner."""
LIMITS: Final = {"x": 0, "y": 0, "z": 0, "pool": 2}
STEPS: Final = 24
FOUND: Final = (6688, 6826, 21939, 51117, 229873, 244290)
"""Schedules that have found something once."""
MS: Final = 1_000_000
TRY_NS: Final = 200 * MS
_PART: Final = 1000
_PROGRESS_S: Final = 10.0

Who = tuple[int, int]
"""A client, and an owner within it; owner 0 is nobody in particular."""
Event = tuple[Literal["granted", "kept", "late", "cancelled", "lost"], int, int]
"""What a client is told of a request: granted, or granted to keep it unused; refused in the end, and why."""


class Has(NamedTuple):
    """A hold, by the number of its request. One that is not `sure` may be in use or not: only its client knows."""

    who: Who
    number: int
    mode: Mode
    sure: bool = True
    asked: bool = False


class Wants(NamedTuple):
    """A request that waits, until `until_ns`; it `converts` the hold of that number, if not 0.

    One that `tries` waits for what nobody may be using, and for nothing else.
    """

    who: Who
    number: int
    mode: Mode
    converts: int
    keep: bool
    until_ns: int
    tries: bool = False


class One(NamedTuple):
    """A lock."""

    limit: int
    holds: tuple[Has, ...] = ()
    queue: tuple[Wants, ...] = ()


Locks = dict[str, One]


def fits(lock: One, wants: Wants) -> bool:
    """Tell whether there is room for one more among those that hold a lock."""
    others = [has for has in lock.holds if has.number != wants.converts]
    if lock.limit:
        return len(others) < lock.limit
    if wants.mode == "exclusive":
        return not others
    return all(has.mode == "shared" for has in others)


def let_in(lock: One, down: frozenset[int]) -> tuple[One, list[Event]]:
    """Grant a lock to its waiters in their order, but for clients that are down, as long as the next one fits."""
    events: list[Event] = []
    while True:
        ready = [wants for wants in lock.queue if wants.who[0] not in down]
        if not ready or not fits(lock, ready[0]):
            return lock, events
        wants = ready[0]
        queue = tuple([each for each in lock.queue if each is not wants])
        kept = wants.keep and not queue and not lock.limit
        holds = [has for has in lock.holds if has.number != wants.converts]
        holds.append(Has(wants.who, wants.number, wants.mode, sure=not kept))
        lock = One(lock.limit, tuple(holds), queue)
        events.append(("kept" if kept else "granted", wants.who[0], wants.number))


def never_served(numbers: set[int], locks: Locks, down: frozenset[int]) -> set[int]:
    """Return which of these requests are granted in no future."""
    served: set[int] = set()
    seen = set()
    futures = [locks]
    while futures and not numbers <= served:
        now = futures.pop()
        key = tuple(now.values())
        if key in seen:
            continue
        seen.add(key)
        waiting = {wants.who for lock in now.values() for wants in lock.queue if wants.who[1]}
        for name, lock in now.items():
            # It may give up waiting, for all that is known.
            fickle = [wants for wants in lock.queue if not wants.who[1] or wants.tries]
            taken = [wants.converts for wants in fickle]  # whose they will be nobody tells
            changed = [
                lock._replace(holds=tuple([each for each in lock.holds if each is not has]))
                for has in lock.holds
                if has.who not in waiting or not has.sure or has.who[0] in down or has.number in taken
            ]
            changed += [
                lock._replace(queue=tuple([each for each in lock.queue if each is not wants])) for wants in fickle
            ]
            for after in changed:
                after, events = let_in(after, down)
                served.update([number for _, _, number in events])
                futures.append({**now, name: after})
    return numbers - served


@dataclass
class Model:
    """All locks by the plain rules, and what the clients have to be told."""

    locks: Locks = field(default_factory=lambda: {name: One(limit) for name, limit in LIMITS.items()})
    down: frozenset[int] = frozenset()
    events: list[Event] = field(default_factory=list)
    recalled: list[int] = field(default_factory=list)

    def put(self, name: str, lock: One) -> None:
        """Make this a lock's state, let in who fits, and ask for what is kept and wanted."""
        lock, events = let_in(lock, self.down)
        self.events += events
        ready = [wants for wants in lock.queue if wants.who[0] not in self.down]
        if ready:
            asked = [has for has in lock.holds if not has.sure and not has.asked and has.number != ready[0].converts]
            self.recalled += [has.number for has in asked]
            lock = lock._replace(holds=tuple([has._replace(asked=has.asked or has in asked) for has in lock.holds]))
        self.locks[name] = lock

    def ask(self, name: str, wants: Wants, now_ns: int) -> None:
        """Put a request into the queue: the last one, but conversions before all others."""
        lock = self.locks[name]
        ahead = [each for each in lock.queue if each.converts or not wants.converts]
        behind = [each for each in lock.queue if not each.converts and wants.converts]
        self.put(name, lock._replace(queue=(*ahead, wants, *behind)))
        lock = self.locks[name]
        if wants.until_ns <= now_ns and wants in lock.queue:
            if self.may_come_back(lock, wants):
                tries = wants._replace(until_ns=now_ns + TRY_NS, tries=True)
                queue = tuple([tries if each is wants else each for each in lock.queue])
                self.locks[name] = lock._replace(queue=queue)
            else:
                self.leave(wants, "late")

    def may_come_back(self, lock: One, wants: Wants) -> bool:
        """Tell whether nobody is known to use what stands in the way, and all who have it can be asked."""
        ready = [each for each in lock.queue if each.who[0] not in self.down]
        others = [has for has in lock.holds if has.number != wants.converts]
        return ready[:1] == [wants] and not any(has.sure or has.who[0] in self.down for has in others)

    def leave(self, wants: Wants, why: Literal["late", "cancelled", "lost", ""]) -> None:
        """Take a request out of its queue, and tell why."""
        (name,) = (name for name, lock in self.locks.items() if wants in lock.queue)
        if why:
            self.events.append((why, wants.who[0], wants.number))
        lock = self.locks[name]
        self.put(name, lock._replace(queue=tuple([each for each in lock.queue if each != wants])))

    def give(self, number: int) -> None:
        """Give a hold back; what was to convert it is refused."""
        name, lock = self.lock_of(number)
        gone = [wants for wants in lock.queue if wants.converts == number]
        self.events += [("lost", wants.who[0], wants.number) for wants in gone]
        holds = tuple([has for has in lock.holds if has.number != number])
        self.put(name, One(lock.limit, holds, tuple([wants for wants in lock.queue if wants not in gone])))

    def use(self, number: int, owner: int) -> None:
        """A hold that was asked for is in use, by an owner of its client."""
        name, lock = self.lock_of(number)
        holds = [has._replace(who=(has.who[0], owner), sure=True) for has in lock.holds if has.number == number]
        self.locks[name] = lock._replace(holds=(*[has for has in lock.holds if has.number != number], *holds))
        for wants in [wants for wants in lock.queue if wants.tries]:
            if wants in self.waiting() and not self.may_come_back(self.locks[name], wants):
                self.leave(wants, "late")

    def late(self, now_ns: int) -> None:
        """Refuse the first of those who have waited for as long as they wanted to: the others may be served then."""
        late = [wants for wants in self.waiting() if wants.until_ns <= now_ns]
        if late:
            self.leave(min(late, key=lambda wants: (wants.until_ns, wants.who[0], wants.number)), "late")

    def back(self, client: int) -> None:
        """A client is connected again."""
        self.down -= {client}
        waits = sorted([wants.number for wants in self.waiting() if wants.who[0] == client])
        for number in waits:
            for name, lock in self.locks.items():
                if any(wants.number == number for wants in lock.queue):
                    self.put(name, lock)

    def gone(self, client: int) -> None:
        """A client's connection is down: who stands behind it waits no more for it."""
        self.down |= {client}
        waits = sorted([wants.number for wants in self.waiting() if wants.who[0] == client])
        for number in waits:
            for name, lock in self.locks.items():
                if any(wants.number == number for wants in lock.queue):
                    self.put(name, lock)

    def waiting(self) -> list[Wants]:
        """Return all who wait."""
        return [wants for lock in self.locks.values() for wants in lock.queue]

    def holding(self) -> list[Has]:
        """Return all who hold."""
        return [has for lock in self.locks.values() for has in lock.holds]

    def lock_of(self, number: int) -> tuple[str, One]:
        """Return the lock that is held by a request."""
        return next((name, lock) for name, lock in self.locks.items() if number in [has.number for has in lock.holds])

    def stuck(self) -> set[int]:
        """Return the requests that are granted in no future, of owners who are known to wait, and not only to try."""
        known = [wants for wants in self.waiting() if wants.who[1] and not wants.tries]
        up = {wants.number for wants in known if wants.who[0] not in self.down}
        return never_served(up, self.locks, self.down)


class Group:
    """lockd's core and its clients: the real one, which the model is compared with."""

    def __init__(self) -> None:
        """Open a session for each client."""
        self.core = Lockd(Durable("0123456789abcdef", 1, {1: ("1" * 16, 0)}), 3_000 * MS)
        self.now_ns = 1_000_000 * MS
        self.tokens: dict[int, int] = {}
        self.told: list[Effect] = []
        self.sessions: dict[int, int] = {}
        self.deadlocks = self.schedules = 0
        self.numbers = 10
        for client in range(CLIENTS):
            name = f"c{client}"
            hello = Hello(client + 1, name, f"{client:0>16}", None, "", 0, "", 0, 0, ())
            self.send(client, hello)
            (welcome,) = [sent.message for sent in self.sent() if isinstance(sent.message, Welcome)]
            self.sessions[client] = welcome.session

    def send(self, client: int, message: ToLockd) -> None:
        """Have lockd take a message in."""
        self.told += self.core.handle(b"%d" % client, message, self.now_ns)

    def say(self, client: int, kind: type, *values: object) -> None:
        """Send a message that names epoch and session."""
        self.send(client, kind(1, self.sessions[client], *values))

    def pass_time(self, now_ns: int) -> None:
        """Have lockd's timer ring."""
        while (due_ns := self.core.deadline_ns()) is not None and due_ns <= now_ns:
            self.now_ns = max(self.now_ns, due_ns)
            self.told += self.core.handle_timer(self.now_ns)
        self.now_ns = now_ns

    def sent(self) -> list[Send]:
        """Return what was sent since the last time."""
        told, self.told = self.told, []
        return [effect for effect in told if isinstance(effect, Send)]


@dataclass
class Schedule:
    """One run of both, step by step."""

    group: Group
    chance: random.Random
    model: Model = field(default_factory=Model)
    story: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Do random steps, then give everything back. Raises AssertionError."""
        group, model = self.group, self.model
        group.schedules += 1
        for client in range(CLIENTS):
            group.say(client, Ping, 1)
        group.sent()
        for _ in range(STEPS):
            self.step()
            self.compare()
        for client in sorted(model.down):
            self.reconnect(client)
            self.compare()
        for wants in model.waiting():
            if wants in model.waiting():
                self.cancel(wants)
                self.compare()
        for has in model.holding():
            self.give(has)
            self.compare()
        assert not group.core.locks and not group.core.waiters
        for session in group.core.sessions.values():
            assert not (session.waits or session.holds or session.granted or session.waiting or session.owned)

    def step(self) -> None:
        """Let something happen."""
        chance, model = self.chance, self.model
        what = chance.random()
        if what < 0.06:
            # Who is down for long has no session any more.
            pass_ns = TRY_NS if what < 0.015 and not model.down else chance.randrange(1, 3) * MS // 2
            self.group.pass_time(self.group.now_ns + pass_ns)
            self.story.append("time passes")
            return
        client = chance.randrange(CLIENTS)
        if client in model.down:
            self.reconnect(client)
            return
        if what < 0.10:
            self.story.append(f"c{client} is down")
            self.group.told += self.group.core.disconnected(b"%d" % client, self.group.now_ns)
            model.gone(client)
            return
        asked = [has for has in model.holding() if has.who[0] == client and has.asked and not has.sure]
        if asked and what < 0.4:
            self.answer(asked[0])
            return
        who = client, chance.choice((0, *range(1, OWNERS + 1), *range(1, OWNERS + 1)))
        waits = [wants for wants in model.waiting() if wants.who == who]
        if waits and (who[1] or len(waits) > 1):
            if what > 0.8:
                self.cancel(chance.choice(waits))
            return
        holds = [has for has in model.holding() if has.who == who]
        if holds and what < 0.42:
            self.give(chance.choice(holds))
        else:
            self.ask(who)

    def ask(self, who: Who) -> None:
        """Ask for a lock, or to convert one."""
        chance, model, group = self.chance, self.model, self.group
        name = chance.choice(list(LIMITS))
        lock = model.locks[name]
        mode: Mode = "shared" if lock.limit or chance.random() < 0.4 else "exclusive"
        converts = 0
        mine = [has for has in lock.holds if has.who[0] == who[0] and (has.who == who or chance.random() < 0.1)]
        if mine and not lock.limit and chance.random() < 0.8:
            one = chance.choice(mine)
            if not any(wants.converts == one.number for wants in lock.queue):
                converts = one.number
        wait_ms = chance.choice((0, 1, 5, 60_000, 60_000, 60_000))
        group.numbers += 1
        keep = chance.random() < 0.3
        until_ns = group.now_ns + wait_ms * MS
        wants = Wants(who, group.numbers, mode, converts, keep, until_ns)
        self.story.append(f"c{who[0]}.{who[1]} asks for {name} as {group.numbers}: {wants}")
        token = group.tokens[converts] if converts else 0
        say = (group.numbers, name, "plain", mode, wait_ms, who[1], lock.limit, token, keep)
        group.say(who[0], Acquire, *say)
        model.ask(name, wants, group.now_ns)

    def cancel(self, wants: Wants) -> None:
        """Have a request leave the queue."""
        self.story.append(f"c{wants.who[0]} cancels {wants.number}")
        self.group.say(wants.who[0], Cancel, wants.number)
        self.model.leave(wants, "cancelled" if wants.converts else "")

    def give(self, has: Has) -> None:
        """Give a lock back."""
        self.story.append(f"c{has.who[0]} gives {has.number} back")
        name, _ = self.model.lock_of(has.number)
        self.group.numbers += 1
        token = self.group.tokens[has.number]
        self.group.say(has.who[0], Release, self.group.numbers, name, token, EMPTY, {}, False, (), False, False)
        self.model.give(has.number)

    def answer(self, has: Has) -> None:
        """Answer a Recall: the lock is given back, or somebody uses it, who may even wait for another one."""
        owner = self.chance.randrange(OWNERS + 2)
        if owner > OWNERS:
            self.give(has)
            return
        self.story.append(f"c{has.who[0]}.{owner} uses {has.number}")
        self.group.say(has.who[0], InUse, self.group.tokens[has.number], owner)
        self.model.use(has.number, owner)

    def reconnect(self, client: int) -> None:
        """Have a client come back."""
        self.story.append(f"c{client} is back")
        self.group.say(client, Ping, 1)
        self.model.back(client)

    def compare(self) -> None:
        """Compare what the clients were told with the model; and no wait may be left that cannot end."""
        group, model = self.group, self.model
        told = 0
        recalled = []
        for sent in group.sent():
            client, message = int(sent.route), sent.message
            if isinstance(message, Refused) and message.cause == "deadlock":
                wants = next((wants for wants in model.waiting() if wants.number == message.request), None)
                assert wants, f"a false alarm, for one who does not wait: {message.reason}"
                assert wants.number in model.stuck(), f"a false alarm: {message.reason}"
                self.story.append(f"    {message.reason}")
                group.deadlocks += 1
                model.leave(wants, "")
                continue
            event: Event
            if isinstance(message, Recall):
                recalled += [number for number, token in group.tokens.items() if token == message.token]
                continue
            if isinstance(message, Grant):
                group.tokens[message.request] = message.token
                event = "kept" if message.sticky else "granted", client, message.request
            elif isinstance(message, Refused):
                late = "no grant in time" in message.reason
                why: Literal["late", "cancelled", "lost"] = "late" if late else "cancelled"
                event = "lost" if message.cause == "lost" else why, client, message.request
            else:
                continue
            if told == len(model.events):
                model.late(group.now_ns)
            assert told < len(model.events), f"the model does not know of {event}"
            assert event == model.events[told]
            told += 1
        if told == len(model.events):
            model.late(group.now_ns)
        assert told == len(model.events), f"lockd does not know of {model.events[told]}"
        assert sorted(recalled) == sorted(model.recalled)
        model.events, model.recalled = [], []
        for name, one in model.locks.items():
            real = group.core.locks.get(name)
            assert [w.request for w in real.queue.values()] == [w.number for w in one.queue] if real else not one.queue
            assert sorted(group.tokens[h.number] for h in one.holds) == (sorted(real.holds) if real else [])
        assert not model.stuck(), f"not found to be deadlocked: {model.stuck()}"


def run_one(group: Group, seed: int) -> None:
    """Run the schedule of a seed. Raises AssertionError with its steps."""
    schedule = Schedule(group, random.Random(seed))
    group.tokens.clear()
    try:
        schedule.run()
    except AssertionError as error:
        story = "\n".join(schedule.story)
        raise AssertionError(f"seed {seed}: {error}\n{story}") from error


def run_all(group: Group, seeds: range) -> None:
    """Run schedules one after another. Raises AssertionError."""
    for seed in seeds:
        run_one(group, seed)


def test_who_is_granted_what_and_which_waits_never_end_is_as_the_model_has_it() -> None:
    group = Group()
    run_all(group, range(400))
    for seed in FOUND:
        run_one(group, seed)
    assert group.deadlocks > 40


def _all_are_in_the_way(queue: deadlocks._Queue, _waiter: Waiter) -> Iterator[Hold]:
    return iter(queue.holds.values())


def _whoever_is_named_waits(shared: Shared, hold: Hold) -> str | None:
    session = shared.sessions[hold.session]
    request = session.waiting.get(hold.owner)
    return session.waits[request] if request is not None else None


@pytest.mark.parametrize(
    ("name", "wrong", "noticed"),
    [
        ("lockd.deadlocks._in_the_way", _all_are_in_the_way, "a false alarm"),
        ("lockd.deadlocks._wait_of", _whoever_is_named_waits, "a false alarm"),
        ("lockd.deadlocks.Look.cycle", lambda _look, _waiter: None, "not found to be deadlocked"),
    ],
)
def test_a_wrong_rule_is_noticed(name: str, wrong: object, noticed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name, wrong)
    group = Group()
    with pytest.raises(AssertionError, match=noticed):
        run_all(group, range(5000))


def _campaign(first: int, count: int) -> tuple[int, int]:
    """Run schedules; return how many, and how many deadlocks there were."""
    group = Group()
    run_all(group, range(first, first + count))
    return count, group.deadlocks


def main() -> int:
    """Run a campaign; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.test_deadlocks", description="Run many schedules.")
    parser.add_argument("--schedules", type=int, default=100_000, metavar="N", help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="in so many processes")
    options = parser.parse_args()
    began = shown = time.monotonic()
    done = alarms = 0
    end = options.first + options.schedules
    parts = [(first, min(_PART, end - first)) for first in range(options.first, end, _PART)]
    with concurrent.futures.ProcessPoolExecutor(options.processes) as pool:
        for part in concurrent.futures.as_completed([pool.submit(_campaign, *part) for part in parts]):
            try:
                count, found = part.result()
            except AssertionError as error:
                print(error, flush=True)
                pool.shutdown(cancel_futures=True)
                return 1
            done, alarms = done + count, alarms + found
            now = time.monotonic()
            if now - shown > _PROGRESS_S or done == options.schedules:
                shown, rate = now, done / (now - began)
                told = f"{done} schedules, {alarms} deadlocks: none missed, no false alarm"
                print(f"{told}, {rate:.0f} schedules/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
