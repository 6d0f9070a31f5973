"""Tasks that use locks, as the threads of a program do through client/locking.py."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from client.lock_core import Hold, Wait
from common.messages import Mode
from common.tokens import format_token
from tests.lock_sim.processes import ClientProcess
from tests.lock_sim.world import Inside
from tests.sim.processes import Broken

_MS: Final = 1_000_000
_HOLDS_MAX: Final = 2

Locks = dict[str, int]
"""The locks that there are, each with its limit: 0 of one that is no semaphore."""


@dataclass(slots=True)
class _Held:
    """A hold that the task uses; of a lost one the time, true time, by which the task is out, and how it used it."""

    hold: Hold
    until_ns: int | None = None
    mode: Mode | None = None


class Task:
    """Takes locks, converts them, gives them back; at times it gives up waiting, or is interrupted."""

    def __init__(self, client: ClientProcess, owner: int, locks: Locks, ops: int, random: Random) -> None:
        """Begin in a moment; it takes locks `ops` times."""
        self.client = client
        self.done = False
        self.wait: Wait | None = None
        self._owner = owner
        self._locks = locks
        self._ops = ops
        self._random = random
        self._holds: list[_Held] = []
        self._abandoned: list[Wait] = []
        self._thoughts = 0
        self._busy_ns = random.choice((1, 10, 100, 1000)) * _MS
        self._sticky = random.random() < 0.5
        self._think()

    def __str__(self) -> str:
        """Return what it does."""
        waits = f"waits for {self.wait.lock}" if self.wait else "does not wait"
        held = ", ".join(f"{each.hold.lock} under {format_token(each.hold.token)}" for each in self._holds)
        return f"task {self._owner} of {self.client.name} {waits} and holds {held or 'nothing'}"

    def inside(self) -> Iterator[Inside]:
        """Yield which locks it is inside of now."""
        now_ns = self.client.world.schedule.now_ns
        for each in self._holds:
            hold = each.hold
            until_ns = self.client.out_by_ns if each.until_ns is None else each.until_ns
            if now_ns < until_ns:
                mode = each.mode or self._used_as(hold)
                yield Inside(self.client.name, hold.lock, hold.token, mode, hold.limit)
        for wait in self._abandoned:
            if wait.hold is not None and self.client.core.holds.get(wait.hold.token) is wait.hold:
                raise Broken(f"{self.client.name} holds {wait.lock}, for which nobody waits any more")

    def answered(self, wait: Wait) -> bool:
        """Take in that a wait has ended; the thread that waits wakes in a moment, or has been interrupted."""
        if wait is not self.wait:
            return False
        if wait.converts:
            self._wake(wait)
        else:
            delay_ns = int(self._random.random() ** 4 * 5 * _MS)
            self.client.world.schedule.after(delay_ns, self.client.call, lambda _: self._wake(wait))
        return True

    def lost(self, hold: Hold, until_ns: int) -> None:
        """Take in that a hold is lost; if it is this task's, that stops by `until_ns`, and then gives it back."""
        for each in self._holds:
            if each.hold is hold:
                each.until_ns, each.mode = until_ns, self._used_as(hold)
                self._think(int(self._random.random() * self.client.world.lock_delay_ns))

    def _used_as(self, hold: Hold) -> Mode:
        """Return how it uses a hold: one that is being converted, in either direction, as a shared one."""
        return "shared" if self.wait is not None and self.wait.converts == hold.token else hold.mode

    def _think(self, at_most_ns: int | None = None) -> None:
        self._thoughts += 1
        delay_ns = int(self._random.random() * self._busy_ns) if at_most_ns is None else at_most_ns
        thought = self._thoughts
        self.client.world.schedule.after(delay_ns, self.client.call, lambda now_ns: self._go_on(now_ns, thought))

    def _go_on(self, now_ns: int, thought: int) -> None:
        if thought != self._thoughts or self._waits_or_is_done():
            return
        for each in [each for each in self._holds if each.hold.lost]:
            self._release(each)
        draw = self._random.random()
        if self._ops <= 0 or self.client.world.calm:
            for each in list(self._holds):
                self._release(each)
            self.done = True
        elif not self._holds or (draw < 0.25 and len(self._holds) < min(_HOLDS_MAX, len(self._locks))):
            self._acquire(now_ns)
        elif 0.25 <= draw < 0.5 and not self._holds[-1].hold.limit:
            self._convert(now_ns)
        else:
            self._release(self._random.choice(self._holds))
        if not self._waits_or_is_done():
            self._think()

    def _waits_or_is_done(self) -> bool:
        return self.wait is not None or self.done

    def _release(self, held: _Held) -> None:
        self._holds.remove(held)
        if held.hold.sticky and self._random.random() < 0.8:
            self.client.core.release(held.hold)
        else:
            self.client.core.give_back(held.hold)

    def _acquire(self, now_ns: int) -> None:
        self._ops -= 1
        self.client.world.ops += 1
        used = [each.hold.lock for each in self._holds]
        lock = self._random.choice([lock for lock in self._locks if lock not in used])
        limit = self._locks[lock]
        mode: Mode = "shared" if limit or self._random.random() < 0.4 else "exclusive"
        sticky = self._sticky and not limit
        wait = Wait(lock, mode, self._owner, self._deadline_ns(now_ns), limit, 0, sticky)
        if sticky and self.client.core.take_idle(wait, now_ns):
            assert wait.hold is not None
            self._holds.append(_Held(wait.hold))
            return
        self._begin(wait, now_ns)

    def _convert(self, now_ns: int) -> None:
        hold = self._holds[-1].hold
        mode: Mode = "shared" if hold.mode == "exclusive" else "exclusive"
        deadline_ns = None if mode == "shared" else self._deadline_ns(now_ns)
        self._begin(Wait(hold.lock, mode, self._owner, deadline_ns, 0, hold.token, self._sticky), now_ns)

    def _begin(self, wait: Wait, now_ns: int) -> None:
        self.wait = wait
        self.client.core.acquire(wait, now_ns)
        schedule, draw = self.client.world.schedule, self._random.random()
        if draw < 0.1:
            after_ns = int(self._random.random() ** 3 * 1000 * _MS)
            schedule.after(after_ns, self.client.call, lambda _: self.client.core.cancel(wait.request))
        elif draw < 0.2:
            after_ns = int(self._random.random() ** 3 * 1000 * _MS)
            schedule.after(after_ns, self.client.call, lambda _: self._abandon(wait))

    def _deadline_ns(self, now_ns: int) -> int | None:
        """Draw for how long to wait: not at all, a moment, for some time, or for ever."""
        wait_ms = self._random.choice((0, self._random.randint(1, 100), 5000, None, None))
        return None if wait_ms is None else now_ns + wait_ms * _MS

    def _wake(self, wait: Wait) -> None:
        if self.wait is not wait:
            return
        self.wait = None
        if wait.hold is not None:
            self._holds = [each for each in self._holds if each.hold.token != wait.converts]
            self._holds.append(_Held(wait.hold, 0 if wait.hold.lost else None))
        self._think()

    def _abandon(self, wait: Wait) -> None:
        """Be interrupted; of a conversion it is not known what became of it, so the lock goes back as a whole."""
        if self.wait is not wait:
            return
        self.wait = None
        self._abandoned.append(wait)
        self.client.core.abandon(wait)
        for each in [each for each in self._holds if each.hold.token == wait.converts]:
            self._holds.remove(each)
            self.client.core.give_back(each.hold)
        self._think()
