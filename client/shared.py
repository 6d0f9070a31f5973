"""What the parts of the client's core share: who we are, our clock, our files, and the effects under way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from client.effects import Effect, FileState, Flush, History, Log, Persist, Remember, SendLockd
from client.figures import Figures
from client.unconfirmed import Unconfirmed
from common.clock import Clock, tick
from common.limits import AHEAD_US_MAX
from common.messages import Head, Member, ToLockd
from common.records import EMPTY, Record, Version

_OWN_COUNT_AHEAD_MAX = 1_000_000
"""Others may know so many more of our events than we: what a power cut took from our log."""
Failed = Callable[[str], None]
"""Called with why a change did not happen."""
NO_FILE = FileState(Head(EMPTY, 0, {}), 0, 0)
"""The state of a file that is not there: version 0, nothing promised."""


@dataclass(slots=True)
class Identity:
    """Who this process is, as its data directory remembers it and lockd confirms it.

    `host` is "" and `ops` 0 before the first session. `ops` is the number of the last op id given out.
    """

    name: str
    incarnation: str
    replica: str
    start_count: int
    endpoint: str
    durability: str
    host: str = ""
    group: str = ""
    epoch: int = 0
    epoch_id: str = ""
    changes: int = 0
    ops: int = 0


@dataclass(slots=True)
class Shared:
    """State that more than one part reads. `files` changes only when a Persist has come back.

    `reads` are our clocks at the last read of each file: lockd may lose what readers left. `lease_ns` is when the
    session ends if nothing renews it, by our clock. `troubles` is why each file's last change failed, if it did.
    """

    identity: Identity
    history: History
    files: dict[str, FileState]
    clock: Clock
    last_time_us: int
    members: Mapping[str, Member] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    clock_before: Clock = field(default_factory=dict)
    reads: dict[str, Clock] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)
    session: int = 0
    lease_ns: int = 0
    now_ns: int = 0
    offset_ns: int = 0
    out: list[Effect] = field(default_factory=list)
    requests: int = 0
    connected: bool = False
    figures: Figures = field(default_factory=Figures)
    unconfirmed: Unconfirmed = field(default_factory=Unconfirmed)
    _tickets: int = 0
    _pending: dict[int, tuple[str, FileState | None, Callable[[], None], Failed]] = field(default_factory=dict)

    def emit(self, effect: Effect) -> None:
        """Ask the driver for an effect, behind those asked for before."""
        self.out.append(effect)

    def tell_lockd(self, message: ToLockd) -> None:
        """Ask the driver to send to lockd. While there is no connection nothing is sent: see `say_again`."""
        if self.connected:
            self.out.append(SendLockd(message))

    def tell_lockd_one_way(self, message: ToLockd) -> None:
        """Send what lockd does not answer, and keep it until it is known to have come."""
        self.unconfirmed.keep(self.requests, message)
        self.tell_lockd(message)

    def say_again(self) -> None:
        """Send again what an earlier connection may have lost and nobody waits for."""
        for message in self.unconfirmed.again(self.requests):
            self.tell_lockd(message)

    def forget_session(self) -> None:
        """Take in that the session is lost, and with it all that was under way to lockd."""
        self.session = 0
        self.unconfirmed.clear()

    def remember(self) -> None:
        """Ask the driver to keep who we are, and how much we have seen of lockd's state."""
        us = self.identity
        self.out.append(Remember(us.replica, us.host, us.group, us.epoch, us.epoch_id, us.changes))

    def request(self) -> int:
        """Return a request number that was not used before."""
        self.requests += 1
        return self.requests

    def state(self, file: str) -> FileState:
        """Return what we have of a file, NO_FILE where we have nothing."""
        return self.files.get(file, NO_FILE)

    def host_of(self, replica: str) -> str:
        """Return a replica's host for the log; its id where it was never in the view."""
        member = self.members.get(replica)
        return member.host if member else self.hosts.get(replica, replica)

    def knows_too_much(self, clock: Clock) -> bool:
        """Tell whether a clock has a count of ours that we have never come near."""
        own = self.identity.host
        return clock.get(own, 0) > self.clock.get(own, 0) + _OWN_COUNT_AHEAD_MAX

    def stamp_us(self) -> int:
        """Return network time in microseconds, later than every stamp before, ours or seen."""
        self.last_time_us = max(self.last_time_us + 1, (self.now_ns + self.offset_ns) // 1000)
        return self.last_time_us

    def saw_time(self, time_us: int) -> None:
        """Take in a stamp that came with a message: what it causes is stamped later.

        Kulkarni et al., "Logical physical clocks" (2014). A stamp far ahead of us is a wrong one, and is left alone.
        """
        if time_us < (self.now_ns + self.offset_ns) // 1000 + AHEAD_US_MAX:
            self.last_time_us = max(self.last_time_us, time_us)

    def log(self, time_us: int, clock: Clock, verb: str, facts: str) -> None:
        """Take `clock`, which must be one tick of ours, as our clock, and log the event."""
        self.clock = clock
        self.out.append(Log(time_us, self.identity.host, clock, verb, facts))

    def tick(self) -> Clock:
        """Return our clock with the own component one higher."""
        return tick(self.clock, self.identity.host)

    def persist(
        self,
        file: str,
        keep: int,
        records: tuple[Record, ...],
        versions: tuple[Version, ...],
        tokens: tuple[int, int],
        then: Callable[[], None],
        failed: Failed,
    ) -> None:
        """Ask for one durable change (see Persist); `tokens` are promised and followed; call back at its end."""
        before = self.state(file)
        promised, follows = tokens
        if records:
            head = Head(versions[-1], follows, records[-1].clock)
            after = FileState(head, records[-1].length, promised)
        elif keep == before.head.version.seq:
            after = FileState(Head(before.head.version, follows, before.head.clock), before.length, promised)
        else:
            version = self.history.version_at(file, keep)
            assert version is not None
            newest = self.history.record_at(file, keep) if keep else None
            head = Head(version, follows, newest.clock if newest else {})
            after = FileState(head, newest.length if newest else 0, promised)
        self._tickets += 1
        self._pending[self._tickets] = (file, after, then, failed)
        hashes = tuple([version.hash for version in versions])
        self.out.append(Persist(self._tickets, file, keep, records, hashes, promised, follows))

    def flush(self, file: str, then: Callable[[], None], failed: Failed) -> None:
        """Ask whether the lines before this are in the event log; call back at its end."""
        self._tickets += 1
        self._pending[self._tickets] = (file, None, then, failed)
        self.out.append(Flush(self._tickets))

    def persisted(self, ticket: int) -> None:
        """Take in that a Persist is durable, or a Flush done."""
        file, after, then, _ = self._pending.pop(ticket)
        if after is not None:
            self.files[file] = after
            self.troubles.pop(file, None)
        then()

    def persist_failed(self, ticket: int, reason: str) -> None:
        """Take in that a Persist or Flush did not happen; the ticks before it are of nothing then, and taken back."""
        file, _, _, failed = self._pending.pop(ticket)
        self.clock = self.clock_before
        failed(reason)
        self.troubles[file] = reason
