"""The rules that a client's locks rest on, each with a way to do without it: a seed has to notice.

Run as `python -m tests.lock_sim --rules` it tells for each how many seeds that took.
"""

from typing import Any, Final

from client.lock_core import Hold, LockCore, Wait
from client.unconfirmed import Unconfirmed
from common.messages import FromLockd, Grant, Mode, Pong, Recall, ToLockd, Welcome
from lockd.locks import Delay, Lock
from lockd.queues import Queues
from lockd.restart import Restart
from lockd.shared import Session, Shared
from tests.sim.campaign import Rules

_FOR_EVER_NS: Final = 10**15


def count_from_the_answer(
    core: LockCore, message: FromLockd, now_ns: int, *, _received: Any = LockCore.received
) -> None:
    if isinstance(message, Pong) and message.request in core._pings:
        core._pings[message.request] = now_ns
    if isinstance(message, Welcome):
        core._hello_ns = now_ns
    _received(core, message, now_ns)


def never_end_the_lease(core: LockCore, message: FromLockd, now_ns: int, *, _received: Any = LockCore.received) -> None:
    _received(core, message, now_ns)
    if core.lease_ns:
        core.lease_ns = now_ns + _FOR_EVER_NS


def keep_what_is_recalled(
    core: LockCore, message: Any, now_ns: int, *, _in_session: Any = LockCore._in_session
) -> None:
    hold = core.holds.get(message.token) if isinstance(message, Recall) else None
    if hold is None or not hold.idle:
        _in_session(core, message, now_ns)


def keep_the_recalled_when_done(core: LockCore, hold: Hold, *, _release: Any = LockCore.release) -> None:
    hold.recalled = False
    _release(core, hold)


def keep_what_nobody_waits_for(core: LockCore, grant: Grant, *, _granted: Any = LockCore._granted) -> None:
    wait = core.waits.get(grant.request)
    if wait is None and grant.request and grant.token not in core.holds:
        core.holds[grant.token] = Hold(grant.lock, grant.token, grant.mode, 0, 0, grant.sticky)
    else:
        _granted(core, grant)


def keep_what_is_abandoned(core: LockCore, wait: Wait) -> None:
    wait.abandoned = True
    core.cancel(wait.request)


def repeat_nothing(unconfirmed: Unconfirmed, newest_request: int) -> list[ToLockd]:
    return []


def think_all_has_come(unconfirmed: Unconfirmed, request: int) -> None:
    unconfirmed._messages.clear()


def delay_nothing(shared: Shared, lock: Lock, token: int, delay: Delay) -> None:
    pass


def delay_nothing_after_a_restart(restart: Restart, now_ns: int) -> None:
    pass


def wait_for_nobody(restart: Restart, now_ns: int) -> None:
    restart._shared.expected.clear()
    restart._void(list(restart._before), now_ns)


def let_all_in(lock: Lock, mode: Mode, converts: int = 0) -> bool:
    return True


def recall_nothing(queues: Queues, lock: Lock, but: int = 0) -> None:
    pass


def say_nothing_again(queues: Queues, session: Session, now_ns: int) -> None:
    pass


RULES: Final[Rules] = {
    "the lease counts from when a message was sent": (LockCore, "received", count_from_the_answer),
    "a lease that is not renewed ends": (LockCore, "received", never_end_the_lease),
    "an idle hold goes back when it is recalled": (LockCore, "_in_session", keep_what_is_recalled),
    "one in use goes back when it is done": (LockCore, "release", keep_the_recalled_when_done),
    "what nobody waits for goes back": (LockCore, "_granted", keep_what_nobody_waits_for),
    "what is granted to an abandoned wait goes back": (LockCore, "abandon", keep_what_is_abandoned),
    "what may be lost is said again": (Unconfirmed, "again", repeat_nothing),
    "an answer proves nothing of an earlier connection": (Unconfirmed, "answered", think_all_has_come),
    "a lost lock is granted behind the lock delay": (Shared, "delay", delay_nothing),
    "so are all locks after a restart": (Restart, "_delay_plain", delay_nothing_after_a_restart),
    "nothing is granted before the claims are known": (Restart, "begin", wait_for_nobody),
    "an exclusive hold is alone": (Lock, "admits", let_all_in),
    "who may keep a lock is asked for it": (Queues, "recall", recall_nothing),
    "what is recalled, lost or taken over is said again": (Queues, "say_again", say_nothing_again),
}
