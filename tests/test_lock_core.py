"""The core of a client that only locks, beside lockd's: what neither of them may forget. No I/O."""

import pytest

from client.lock_core import Hold, LockCore, Wait
from common.grantlog import GrantLine
from common.messages import Mode
from lockd.core import Lockd
from lockd.effects import Durable, Effect, LogGrant, Persist, Send, SessionEnded, SessionOpened
from tests.test_lockd_core import EPOCHS, GROUP, TTL_NS, S


class Pair:
    """lockd and a client `a`, and another one `b`; what they say to each other comes when `talk` is called."""

    def __init__(self, lock_delay_ns: int = 0) -> None:
        self.now_ns = 1000 * S
        self.epoch = 0
        self.sessions: dict[int, SessionOpened] = {}
        self.holds: dict[int, GrantLine] = {}
        self.lock_delay_ns = lock_delay_ns
        self.to_client: list[Send] = []
        self.a, self.b = LockCore("a", "a" * 16), LockCore("b", "b" * 16)
        self.start()
        for core in (self.a, self.b):
            core.connected(self.now_ns)
        self.talk()

    def start(self, ttl_ns: int = TTL_NS) -> None:
        """Start lockd, for the first time or anew; connections go down with the one before."""
        self.epoch += 1
        durable = Durable(GROUP, self.epoch, EPOCHS, max(self.sessions, default=0), sessions=dict(self.sessions))
        durable.holds = list(self.holds.values())
        self.lockd = Lockd(durable, ttl_ns, self.lock_delay_ns)
        self.to_client.clear()
        for core in (self.a, self.b):
            core.disconnected()
        self._do(self.lockd.begin(self.now_ns))

    def say(self, core: LockCore) -> None:
        """Bring lockd what a client has said."""
        out, core.out = core.out, []
        for message in out:
            self._do(self.lockd.handle(core.incarnation.encode(), message, self.now_ns))

    def hear(self, core: LockCore) -> None:
        """Bring a client what lockd has said to it."""
        route = core.incarnation.encode()
        mine = [send for send in self.to_client if send.route == route]
        self.to_client = [send for send in self.to_client if send.route != route]
        for send in mine:
            core.received(send.message, self.now_ns)

    def talk(self, *cores: LockCore) -> None:
        """Bring everything to where it goes, until nothing is left, for these clients or both."""
        cores = cores or (self.a, self.b)
        routes = [core.incarnation.encode() for core in cores]
        while any(core.out for core in cores) or any(send.route in routes for send in self.to_client):
            for core in cores:
                self.say(core)
                self.hear(core)

    def pass_time(self, duration_ns: int, *cores: LockCore) -> None:
        """Let time pass, for lockd and these clients, who talk meanwhile."""
        end_ns = self.now_ns + duration_ns
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.now_ns + S // 20)
            for core in cores:
                core.tick(self.now_ns)
                self.say(core)
            if (self.lockd.deadline_ns() or end_ns + 1) <= self.now_ns:
                self._do(self.lockd.handle_timer(self.now_ns))
            for core in cores:
                self.hear(core)

    def ask(
        self, core: LockCore, lock: str, mode: Mode = "exclusive", converts: int = 0, wait_ns: int | None = None
    ) -> Wait:
        wait = Wait(lock, mode, 1, None if wait_ns is None else self.now_ns + wait_ns, converts=converts)
        core.acquire(wait, self.now_ns)
        return wait

    def have(self, core: LockCore, lock: str, mode: Mode = "exclusive") -> Hold:
        wait = self.ask(core, lock, mode)
        self.talk(core)
        assert wait.hold is not None
        return wait.hold

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.to_client.append(effect)
                case Persist(changes):
                    for change in changes:
                        if isinstance(change, SessionOpened):
                            self.sessions[change.session] = change
                        elif isinstance(change, SessionEnded):
                            self.sessions.pop(change.session, None)
                case LogGrant(line):
                    self.holds.pop(line.token, None)
                    if line.event == "grant":
                        self.holds[line.token] = line


def test_a_conversion_whose_time_is_over_waits_for_lockds_word_and_not_in_circles() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door", "shared")
    pair.have(pair.b, "door", "shared")
    wait = pair.ask(pair.a, "door", converts=hold.token, wait_ns=S // 10)
    pair.talk()
    pair.a.disconnected()
    pair.now_ns += S // 2
    pair.a.tick(pair.now_ns)
    assert not wait.done, "it may have been granted"
    assert pair.a.deadline_ns() > pair.now_ns


def test_a_downgrade_that_lockd_may_have_made_is_not_cancelled() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door")
    wait = pair.ask(pair.a, "door", "shared", converts=hold.token)
    pair.say(pair.a)
    other = pair.have(pair.b, "door", "shared")
    pair.start()  # the answer to the first is lost
    pair.a.connected(pair.now_ns)
    pair.say(pair.a)
    pair.hear(pair.a)
    assert pair.a.state == "joining"
    pair.a.cancel(wait.request)
    assert not wait.done, "it would go on as if its hold were exclusive"
    pair.b.connected(pair.now_ns)
    pair.talk()
    assert wait.cause == "lost"
    assert hold.lost and not other.lost


def test_a_downgrade_can_be_abandoned_with_its_hold() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door")
    wait = pair.ask(pair.a, "door", "shared", converts=hold.token)
    pair.a.abandon(wait)
    pair.a.give_back(hold)
    pair.talk()
    assert wait.done and not pair.a.holds and not pair.lockd.locks


@pytest.mark.parametrize(
    "reaches", ["before lockd grants it", "when lockd has granted it", "lockd without the request"]
)
def test_behind_a_conversion_that_was_abandoned_the_lock_is_asked_for_when_lockd_has_answered(reaches: str) -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door", "shared")
    other = pair.have(pair.b, "door", "shared")
    conversion = pair.ask(pair.a, "door", converts=hold.token)
    if reaches == "lockd without it":
        pair.a.out.clear()  # a signal came between keeping it and saying it
    else:
        pair.say(pair.a)
    if reaches == "when lockd has granted it":
        pair.b.give_back(other)
        pair.say(pair.b)
    pair.a.abandon(conversion)
    pair.a.drop(hold)
    wait = pair.ask(pair.a, "door")
    pair.talk()
    if other.token in pair.b.holds:
        pair.b.give_back(other)
        pair.talk()
    assert wait.hold, wait.reason
    assert conversion.done and pair.a.holds == {wait.hold.token: wait.hold}
    assert list(pair.lockd.locks["door"].holds) == [wait.hold.token]


def test_a_lock_that_is_new_goes_to_nobody_whose_connection_is_down() -> None:
    pair = Pair()
    pair.have(pair.a, "one")
    pair.have(pair.b, "other")
    pair.start()
    pair.a.connected(pair.now_ns)
    pair.talk(pair.a)
    pair.ask(pair.a, "door")
    pair.say(pair.a)  # it is kept until b is back
    pair.lockd.disconnected(pair.a.incarnation.encode(), pair.now_ns)
    pair.b.connected(pair.now_ns)
    pair.talk(pair.b)
    pair.have(pair.b, "door")


def test_a_lease_that_ends_before_a_claim_is_answered_takes_the_claim_along() -> None:
    pair = Pair(lock_delay_ns=2 * S)
    hold = pair.have(pair.a, "door")
    pair.now_ns += S // 2
    pair.start()
    pair.now_ns += S // 5
    pair.a.connected(pair.now_ns)
    pair.say(pair.a)
    pair.hear(pair.a)
    pair.say(pair.a)  # the hello, with the claim
    pair.b.connected(pair.now_ns)
    pair.talk(pair.b)
    pair.pass_time(pair.a.lease_ns - pair.now_ns, pair.b)
    pair.a.tick(pair.now_ns)
    assert "the lease ran out" in hold.lost
    pair.hear(pair.a)
    wait = pair.ask(pair.b, "door")
    pair.talk()
    pair.pass_time(2 * S - S // 20, pair.a, pair.b)
    assert not wait.done, "who had it may still be about to stop"
    pair.pass_time(S // 20, pair.a, pair.b)
    assert wait.hold


def test_nothing_is_claimed_whose_lease_is_over() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door")
    pair.pass_time(2 * TTL_NS, pair.b)
    pair.b.give_back(pair.have(pair.b, "door"))
    pair.talk(pair.b)
    pair.start()
    # It has stood still, and hears of the new lockd before it looks at the time.
    pair.a.connected(pair.now_ns)
    pair.talk(pair.a)
    pair.b.connected(pair.now_ns)
    pair.talk()
    assert hold.lost and not pair.lockd.locks


def test_a_lockd_started_anew_with_a_shorter_ttl_shortens_the_lease() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door")
    pair.pass_time(S // 2, pair.a, pair.b)
    pair.start(TTL_NS // 10)
    for core in (pair.a, pair.b):
        core.connected(pair.now_ns)
    pair.talk()
    assert pair.a.state == "joined" and not hold.lost
    assert pair.a.lease_ns == pair.now_ns + TTL_NS // 10, "lockd ends it then"


def test_a_welcome_that_is_lost_with_its_connection_loses_no_lock() -> None:
    pair = Pair()
    hold = pair.have(pair.a, "door")
    pair.start()
    for core in (pair.a, pair.b):
        core.connected(pair.now_ns)
    pair.talk(pair.b)
    pair.say(pair.a)
    pair.hear(pair.a)  # Stale
    pair.say(pair.a)  # the hello, which opens a session
    pair.to_client.clear()
    pair.a.disconnected()
    pair.a.connected(pair.now_ns + S // 2)
    pair.talk()
    assert pair.a.state == "joined" and not hold.lost and pair.a.holds


def test_who_asks_while_the_client_is_closed_is_answered_at_once() -> None:
    pair = Pair()
    pair.a.leave()
    wait = pair.ask(pair.a, "door")
    assert wait.done and wait.cause == "lost" and "closed" in wait.reason
    assert not pair.a.waits
