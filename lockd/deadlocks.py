"""lockd's core: is there a wait that nothing can end? No I/O.

Theory of operation. An owner (a thread or task of a client) waits for one lock at a time, and holds others. So a wait
can only close a cycle when it begins, and only where its owner holds something: it is looked at then, once. Whether it
ends is found by reduction (Holt, "Some deadlock properties of computer systems", 1972): every owner that does not wait
will give back what it holds; whoever can be granted then will give back, too; who is left is deadlocked. That is exact
for exclusive and shared locks, for conversions and for semaphores, of which any one holder's end suffices.

What is not known to be held by one who waits counts as given back in time: a hold without an owner, or one that a
request without an owner converts; one that its client may keep unused; everything of a client whose connection is
down. So no alarm is false; a client that comes back is looked at again, and so are those who wait for a hold that is
said to be in use, or that is not converted after all. Nor does a try stand for a wait: it is over in a moment.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from common.printing import printable
from common.tokens import format_token
from lockd.locks import Hold, Lock, Waiter
from lockd.shared import Shared

Owner = tuple[int, int]
"""A session, and an owner within it."""

_STEPS_SHOWN_MAX: Final = 8
"""So many waits of a cycle are told in words."""


@dataclass(slots=True)
class _Queue:
    """A lock's waiters in their order; those before `done` will be granted it, and then have given it back.

    `holds` are those that are not known to end.
    """

    lock: Lock
    waiters: list[Waiter]
    holds: dict[int, Hold]
    done: int = 0


@dataclass(slots=True)
class _Step:
    """An owner's wait for another one: for its hold, or else for its turn before."""

    waits: Owner
    waiter: Waiter
    lock: Lock
    other: Owner
    hold: Hold | None


@dataclass(slots=True)
class _Reduction:
    """The waits that one wait depends on, and the owners who wait in them and are not known to go on."""

    shared: Shared
    queues: dict[str, _Queue] = field(default_factory=dict)
    stuck: dict[Owner, Waiter] = field(default_factory=dict)


class Look:
    """One look at who waits for whom, for as long as nobody begins or ends a wait or a hold.

    A reduction tells it of all waiters of each lock that it has come by, so that one lock takes one.
    """

    def __init__(self, shared: Shared) -> None:
        """Look at nothing yet."""
        self._shared = shared
        self._found: dict[str, _Reduction] = {}

    def cycle(self, waiter: Waiter) -> str | None:
        """Return the cycle in words that a waiter's wait has closed, None where it can end."""
        if not waiter.owner or waiter.tries:
            return None
        owner = (waiter.session, waiter.owner)
        found = self._at(self._shared.sessions[waiter.session].waits[waiter.request])
        cycle = _cycle(found, owner) if owner in found.stuck else []
        return _in_words(self._shared, cycle) if cycle else None

    def _at(self, name: str) -> _Reduction:
        """Return what is found of a lock."""
        shared = self._shared
        if name not in self._found:
            if any(_wait_of(shared, hold) is not None for hold in shared.locks[name].holds.values()):
                found = _reduce(shared, name)
                self._found |= dict.fromkeys(found.queues, found)
            else:
                self._found[name] = _Reduction(shared)  # its holders go on, and so does everybody in the queue
        return self._found[name]


def _wait_of(shared: Shared, hold: Hold) -> str | None:
    """Return the lock for which a hold's owner is known to wait, None where it may give the hold back now."""
    session = shared.sessions[hold.session]
    if not hold.owner or hold.sticky or not session.connected:
        return None
    request = session.waiting.get(hold.owner)
    return session.waits[request] if request is not None else None


def _reduce(shared: Shared, first: str) -> _Reduction:
    """Collect what a wait for the lock `first` depends on, and take out everybody who can go on."""
    found = _Reduction(shared)
    names = [first]
    while names:
        name = names.pop()
        if name in found.queues:
            continue
        lock = shared.locks[name]
        queue = found.queues[name] = _Queue(lock, list(lock.queue.values()), {})
        loose: set[int] = set()
        for waiter in queue.waiters:
            if waiter.owner and not waiter.tries and shared.can_be_served(lock, waiter):
                found.stuck[waiter.session, waiter.owner] = waiter
            else:
                loose.add(waiter.converts)
        for token, hold in lock.holds.items():
            if token not in loose and (other := _wait_of(shared, hold)) is not None:
                names.append(other)
                queue.holds[token] = hold
    changed = True
    while changed:
        changed = False
        for queue in found.queues.values():
            changed = _go_on(found, queue) or changed
    return found


def _go_on(found: _Reduction, queue: _Queue) -> bool:
    """Take the waiters out of a queue that are not known to wait for ever; return whether there were some."""
    before = queue.done
    for token, hold in list(queue.holds.items()):
        if (hold.session, hold.owner) not in found.stuck:
            del queue.holds[token]
    while queue.done < len(queue.waiters):
        waiter = queue.waiters[queue.done]
        owner = (waiter.session, waiter.owner)
        # Who may leave at any time, or cannot be served, is in nobody's way.
        if found.stuck.get(owner) is waiter:
            if any(_in_the_way(queue, waiter)):
                break
            del found.stuck[owner]
        queue.holds.pop(waiter.converts, None)  # another owner's, perhaps: it is the waiter's then
        queue.done += 1
    return queue.done > before


def _in_the_way(queue: _Queue, waiter: Waiter) -> Iterator[Hold]:
    """Yield the holds for which a waiter waits, of those that are not known to end."""
    lock = queue.lock
    if lock.limit:
        if len(queue.holds) >= lock.limit:
            yield from queue.holds.values()
        return
    for hold in queue.holds.values():
        if hold.token != waiter.converts and not (waiter.mode == hold.mode == "shared"):
            yield hold


def _cycle(found: _Reduction, owner: Owner) -> list[_Step]:
    """Return the shortest cycle through an owner, [] where it only waits for those who are deadlocked without it."""
    steps: dict[Owner, _Step] = {}
    reached = [owner]
    for one in reached:
        for step in _waits_for(found, one):
            if step.other == owner:
                path = [step]
                while path[-1].waits != owner:
                    path.append(steps[path[-1].waits])
                return path[::-1]
            if step.other not in steps:
                steps[step.other] = step
                reached.append(step.other)
    return []


def _waits_for(found: _Reduction, owner: Owner) -> Iterator[_Step]:
    """Yield the waits of a stuck owner for other stuck ones."""
    waiter = found.stuck[owner]
    queue = found.queues[found.shared.sessions[waiter.session].waits[waiter.request]]
    for hold in _in_the_way(queue, waiter):
        yield _Step(owner, waiter, queue.lock, (hold.session, hold.owner), hold)
    for ahead in queue.waiters[queue.done :]:
        if ahead is waiter:
            break
        other = (ahead.session, ahead.owner)
        if found.stuck.get(other) is ahead:
            yield _Step(owner, waiter, queue.lock, other, None)


def _in_words(shared: Shared, cycle: list[_Step]) -> str:
    """Tell of a cycle in one line: whose wait has closed it first, then for whom each of the others waits."""
    owners: dict[int, set[int]] = {}
    for step in cycle:
        owners.setdefault(step.waits[0], set()).add(step.waits[1])

    def who(owner: Owner) -> str:
        # Numbers of threads tell nobody anything, unless two of one client are in it.
        number = f" (owner {owner[1]})" if len(owners[owner[0]]) > 1 else ""
        return shared.sessions[owner[0]].host + number

    parts: list[str] = []
    for step in cycle[:_STEPS_SHOWN_MAX]:
        name = printable(step.lock.name)
        what = f"to upgrade {name}" if step.waiter.converts else f"for {name}"
        if step.hold is None:
            why = f"behind {who(step.other)}"
        elif step.lock.limit:
            why = f"of which {who(step.other)} has one of {step.lock.limit}, under token"
        elif step.hold.mode == "shared":
            why = f"held shared by {who(step.other)} under token"
        else:
            why = f"held by {who(step.other)} under token"
        token = f" {format_token(step.hold.token)}" if step.hold else ""
        parts.append(f"{who(step.waits)} waits {what}, {why}{token}")
    if len(cycle) > len(parts):
        parts.append(f"and so on, {len(cycle)} waits in all")
    return "; ".join(parts)
