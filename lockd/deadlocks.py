"""lockd's core: is there a wait that nothing can end? No I/O.

Theory of operation. An owner (a thread or task of a client) waits for one lock at a time, and holds others. So a wait
can only close a cycle when it begins, and only where its owner holds something: it is looked at then, once. Whether it
ends is found by reduction (Holt, "Some deadlock properties of computer systems", 1972): every owner that does not wait
will give back what it holds; whoever can be granted then will give back, too; who is left is deadlocked. That is exact
for exclusive and shared locks, for conversions and for semaphores, of which any one holder's end suffices.

What is not known to be held by one who waits counts as given back in time: a hold without an owner, one that its client
may keep unused, and everything of a client whose connection is down. So no alarm is false; a client that comes back is
looked at again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from common.printing import printable
from common.tokens import format_token
from lockd.locks import Hold, Lock, Waiter
from lockd.shared import Shared

Owner = tuple[int, int]
"""A session, and an owner within it."""


@dataclass(slots=True)
class _Queue:
    """A lock's waiters in their order; those before `done` will be granted it."""

    lock: Lock
    waiters: list[Waiter]
    done: int = 0


@dataclass(slots=True)
class _Reduction:
    """The waits that one wait depends on, and the owners who wait in them and are not known to go on."""

    shared: Shared
    queues: dict[str, _Queue] = field(default_factory=dict)
    stuck: dict[Owner, Waiter] = field(default_factory=dict)


def deadlock(shared: Shared, waiter: Waiter) -> str | None:
    """Return the cycle in words that a waiter's wait has closed, None where it can end."""
    owner = (waiter.session, waiter.owner)
    session = shared.sessions[waiter.session]
    if not waiter.owner or not session.owned.get(waiter.owner):
        return None
    found = _reduce(shared, session.waits[waiter.request])
    if owner not in found.stuck:
        return None
    return _cycle(found, owner)


def _reduce(shared: Shared, first: str) -> _Reduction:
    """Collect what a wait for the lock `first` depends on, and take out everybody who can go on."""
    found = _Reduction(shared)
    names = [first]
    while names:
        name = names.pop()
        if name in found.queues:
            continue
        lock = shared.locks[name]
        found.queues[name] = _Queue(lock, list(lock.queue.values()))
        for waiter in lock.queue.values():
            if waiter.owner and shared.sessions[waiter.session].connected:
                found.stuck[waiter.session, waiter.owner] = waiter
        for hold in lock.holds.values():
            holder = shared.sessions[hold.session]
            request = holder.waiting.get(hold.owner) if hold.owner and not hold.sticky else None
            if request is not None:
                names.append(holder.waits[request])
    changed = True
    while changed:
        changed = False
        for queue in found.queues.values():
            while queue.done < len(queue.waiters) and not any(_stuck_holders(found, queue, queue.done)):
                waiter = queue.waiters[queue.done]
                found.stuck.pop((waiter.session, waiter.owner), None)
                queue.done += 1
                changed = True
    return found


def _stuck_holders(found: _Reduction, queue: _Queue, place: int) -> Iterator[Hold]:
    """Yield the holds that the waiter at a place waits for, and of which none is known to end."""
    lock, waiter = queue.lock, queue.waiters[place]
    if waiter.owner == 0 or not found.shared.sessions[waiter.session].connected:
        return  # it may leave at any time, as far as is known
    stuck = [
        hold
        for hold in lock.holds.values()
        if hold.token != waiter.converts
        and not (waiter.mode == "shared" and hold.mode == "shared" and not lock.limit)
        and hold.owner
        and not hold.sticky
        and (hold.session, hold.owner) in found.stuck
    ]
    if not lock.limit or len(stuck) >= lock.limit:
        yield from stuck


def _cycle(found: _Reduction, owner: Owner) -> str | None:
    """Return the shortest cycle through an owner, in words: who waits for which lock, and who has it."""
    steps: dict[Owner, tuple[Owner, str]] = {}
    reached = [owner]
    for one in reached:
        for other, how in _waits_for(found, one):
            if other == owner:
                path = [how]
                while one != owner:
                    one, how = steps[one]
                    path.append(how)
                return ", and ".join(reversed(path))
            if other not in steps:
                steps[other] = one, how
                reached.append(other)
    return None  # it waits for those who are deadlocked without it


def _waits_for(found: _Reduction, owner: Owner) -> Iterator[tuple[Owner, str]]:
    """Yield the stuck owners for whom a stuck owner waits, and how, in words."""
    shared = found.shared
    waiter = found.stuck[owner]
    session = shared.sessions[waiter.session]
    queue = found.queues[session.waits[waiter.request]]
    place = queue.waiters.index(waiter)
    who = f"{_who(shared, owner)} waits for {printable(queue.lock.name)}"
    for hold in _stuck_holders(found, queue, place):
        other = (hold.session, hold.owner)
        yield other, f"{who}, held by {_who(shared, other)} under token {format_token(hold.token)}"
    for ahead in queue.waiters[:place]:
        other = (ahead.session, ahead.owner)
        if other in found.stuck:
            yield other, f"{who}, which {_who(shared, other)} waits for before it"


def _who(shared: Shared, owner: Owner) -> str:
    return f"{shared.sessions[owner[0]].host} ({owner[1]})"
