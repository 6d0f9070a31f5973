"""LockClient against a real lockd: what a program sees of its locks."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Cancelled, Deadlock, LockClient, LockLost, Misuse, NotAcquired, TimedOut, Token, Unreachable
from client.aio import held
from client.locking import Lock
from client.operator import break_lock, call_back, inspect

S = 1_000_000_000
PATIENCE_S = 20.0


class Daemon:
    """lockd as a process, to be killed and started again on its endpoint."""

    def __init__(self, data: Path, *options: str) -> None:
        self.data, self.options = data, options
        self.endpoint = "tcp://127.0.0.1:*"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-P", "-m", "lockd", "--bind", self.endpoint, "--data", str(self.data)]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().split()[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def grants(self) -> str:
        return (self.data / "grants.log").read_text("utf-8")


@pytest.fixture
def lockd(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "lockd", "--ttl", "1s", "--lock-delay", "500ms")
    yield daemon
    daemon.kill()


@pytest.fixture
def clients(lockd: Daemon) -> Iterator[Callable[[str], LockClient]]:
    made: list[LockClient] = []

    def make(name: str) -> LockClient:
        made.append(LockClient(lockd.endpoint, name=name))
        return made[-1]

    yield make
    for client in made:
        client.close()


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it did not come to be in time"
        time.sleep(0.002)


def waiters(lockd: Daemon, lock: str) -> int:
    return sum(len(state.queue) for state in inspect(lockd.endpoint, lock).locks)


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Run a function in a thread; the list gets what it returns or raises."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(function())
        except Exception as error:  # noqa: BLE001  (the test looks at it)
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, ended


def test_a_lock_is_held_alone_and_its_tokens_rise(clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    with a.lock("job") as lock:
        first = lock.token
        assert lock.held
        assert lock.check() == first
        assert str(first).count(".") == 1
        with pytest.raises(TimedOut, match=f"job is held by a under token {first}"):
            b.lock("job").acquire(0)
        assert not b.lock("job").try_acquire()
    with b.lock("job") as other:
        assert other.token > first
        assert Token.parse(str(other.token)) == other.token
        assert not a.lock("job").held


def test_who_waits_is_granted_when_the_holder_is_done(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    held_by_a = a.lock("job")
    held_by_a.acquire()
    thread, ended = in_thread(lambda: b.lock("job", wait=None).acquire())
    until(lambda: waiters(lockd, "job"))
    held_by_a.release()
    thread.join()
    assert isinstance(ended[0], Token)


def test_what_makes_no_sense_is_a_misuse(clients: Callable[[str], LockClient]) -> None:
    a = clients("a")
    lock = a.lock("job")
    for call in (lock.release, lock.check, lambda: lock.token, lock.upgrade):
        with pytest.raises(Misuse):
            call()
    lock.acquire()
    with pytest.raises(Misuse, match="held already, by this thread"):
        lock.acquire()
    thread, ended = in_thread(lock.release)
    thread.join()
    assert isinstance(ended[0], Misuse) and "another thread" in str(ended[0])
    with pytest.raises(Deadlock, match="a waits for job, held by a"):
        a.lock("job").acquire()
    lock.release()
    for name in ("", "a\nb", "x" * 600):
        with pytest.raises(ValueError, match="a lock's name"):
            a.lock(name)
    with pytest.raises(ValueError, match="limit 0"):
        a.semaphore("s", 0)
    with pytest.raises(ValueError, match="name one lock at least"):
        a.locks()
    a.close()
    with pytest.raises(Misuse, match="closed"):
        lock.acquire()


def test_a_reentrant_lock_is_released_as_often_as_it_was_acquired(clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    lock = a.lock("job", reentrant=True)
    with lock, lock:
        pass
    assert b.lock("job").acquire()


def test_shared_holders_go_together_and_one_may_upgrade(clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    ours, theirs = a.lock("doc", shared=True), b.lock("doc", shared=True)
    first = ours.acquire()
    theirs.acquire()
    with pytest.raises(TimedOut):
        ours.upgrade(0)
    assert ours.check() == first
    theirs.release()
    second = ours.upgrade()
    assert second > first and not theirs.try_acquire()
    assert ours.downgrade() > second
    assert theirs.acquire()


def test_the_second_who_upgrades_is_refused_as_a_deadlock(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    ours, theirs = a.lock("doc", shared=True), b.lock("doc", shared=True)
    theirs.acquire()

    def upgrade() -> Token:
        with ours:
            return ours.upgrade()

    thread, ended = in_thread(upgrade)
    until(lambda: waiters(lockd, "doc"))
    with pytest.raises(Deadlock, match="doc"):
        theirs.upgrade()
    assert theirs.held
    theirs.release()
    thread.join()
    assert isinstance(ended[0], Token)


def test_a_deadlock_of_two_is_told_to_one(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    left = b.lock("left")
    left.acquire()
    holds = threading.Event()

    def other() -> None:
        with a.lock("right"):
            holds.set()
            with a.lock("left"):
                pass

    thread, ended = in_thread(other)
    holds.wait(PATIENCE_S)
    until(lambda: waiters(lockd, "left"))
    with pytest.raises(Deadlock) as caught:
        b.lock("right").acquire()
    for name in ("left", "right"):
        assert f"waits for {name}, held by" in str(caught.value)
    left.release()
    thread.join()
    assert ended == [None]


def test_a_semaphore_has_places_for_so_many(clients: Callable[[str], LockClient]) -> None:
    a, b, c = clients("a"), clients("b"), clients("c")
    places = [each.semaphore("pool", 2) for each in (a, b, c)]
    assert [place.try_acquire() for place in places] == [True, True, False]
    places[0].release()
    assert places[2].acquire()
    with pytest.raises(NotAcquired, match="pool is a semaphore of 2 here, not a semaphore of 3"):
        a.semaphore("pool", 3).acquire()
    with pytest.raises(NotAcquired, match="pool is a semaphore of 2 here"):
        a.lock("pool").acquire()


def test_several_locks_are_held_all_or_none(clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    with a.locks("x", "y") as both:
        assert set(both.check()) == {"x", "y"}
        with pytest.raises(TimedOut):
            b.locks("w", "y").acquire(0)
        assert b.lock("w").acquire()
    assert b.lock("x").acquire()


def test_several_locks_are_all_given_back_though_one_is_not_held(clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    three = a.locks("x", "y", "z")
    three.acquire()
    with pytest.raises(Misuse, match="x is held already"):
        three.acquire()
    three.locks[1].release()
    with pytest.raises(TimedOut):
        b.locks("y", "z").acquire(0)
    with pytest.raises(Misuse, match="y is not held"):
        three.release()
    assert b.locks("x", "y", "z").acquire(PATIENCE_S)


def test_several_locks_of_which_one_was_lost_are_acquired_again_all_or_none(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    both = a.locks("left", "right", wait=0.1)
    both.acquire()
    break_lock(lockd.endpoint, "boss", "left", int(both.locks[0].token))
    until(both.locks[0].lost.is_set)
    both.locks[1].release()
    with b.lock("right"):
        with pytest.raises(TimedOut):
            both.acquire(PATIENCE_S / 5)
        assert not both.locks[0].held


def test_a_wait_ends_by_cancel_and_leaves_no_waiter(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    with a.lock("job"):
        wanted = b.lock("job", wait=None)
        thread, ended = in_thread(wanted.acquire)
        until(lambda: waiters(lockd, "job"))
        wanted.cancel()
        thread.join()
        assert isinstance(ended[0], Cancelled)
        until(lambda: not waiters(lockd, "job"))
    assert b.lock("job").acquire()


def test_many_threads_of_one_client_take_turns(clients: Callable[[str], LockClient]) -> None:
    a, counted = clients("a"), [0]

    def count() -> None:
        for _ in range(20):
            with a.lock("counter", wait=None):
                before = counted[0]
                time.sleep(0)
                counted[0] = before + 1

    threads = [in_thread(count) for _ in range(8)]
    for thread, _ in threads:
        thread.join()
    assert [ended for _, ended in threads] == [[None]] * 8
    assert counted == [160]


def test_a_sticky_lock_is_taken_again_without_a_message_until_it_is_wanted(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    lock = a.lock("job", sticky=True)
    tokens = set()
    for _ in range(100):
        with lock:
            tokens.add(lock.token)
    assert len(tokens) == 1
    assert b.lock("job").acquire() > max(tokens)
    until(lambda: lockd.grants().count("event=grant") == 2)
    with pytest.raises(TimedOut):
        lock.acquire(0)


def test_a_sticky_lock_in_use_is_given_back_when_it_is_done(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    with a.lock("job", sticky=True):
        thread, ended = in_thread(lambda: b.lock("job").acquire())
        until(lambda: waiters(lockd, "job"))
        assert not ended
    thread.join()
    assert isinstance(ended[0], Token)


def test_a_try_gets_a_lock_that_another_keeps_unused_and_not_one_in_use(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    kept = a.lock("job", sticky=True)
    with kept:
        pass
    (holder,) = inspect(lockd.endpoint, "job").locks[0].holders
    assert (holder.host, holder.sticky) == ("a", True)
    other = b.lock("job")
    assert other.try_acquire()
    other.release()
    with kept:
        assert not other.try_acquire(), "lockd has asked whether it is in use"
        assert not other.try_acquire(), "lockd knows that it is in use"
    until(other.try_acquire)


def test_who_keeps_an_idle_lock_gives_it_back_when_an_operator_asks(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    with clients("a").lock("job", sticky=True):
        pass
    assert call_back(lockd.endpoint, None, "job").hosts == ("a",)
    until(lambda: not inspect(lockd.endpoint, "job").locks)


def test_a_broken_lock_is_lost_at_once_and_a_guard_is_poisoned(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    told: list[str] = []
    lock = clients("a").lock("job", on_lost=lambda lost: told.append(lost.name))
    lock.acquire()
    guard = lock.guard({"x": 1})
    assert guard.get() == {"x": 1}
    broken = break_lock(lockd.endpoint, "boss", "job", int(lock.token))
    assert (broken.host, broken.mode) == ("a", "exclusive")
    assert lock.lost.wait(PATIENCE_S)
    until(lambda: told == ["job"])
    for call in (lock.check, guard.get):
        with pytest.raises(LockLost, match="boss broke it"):
            call()
    assert not lock.held
    other = clients("b").lock("job")
    assert not other.try_acquire()
    lock.release()  # which says that it has stopped
    assert other.acquire(PATIENCE_S)
    with pytest.raises(LockLost, match="not held any more"):
        guard.get()


def test_the_end_of_a_context_tells_that_its_lock_was_lost(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    lock = clients("a").lock("job")

    def work() -> None:
        with lock:
            break_lock(lockd.endpoint, "boss", "job", int(lock.token))
            assert lock.lost.wait(PATIENCE_S)

    with pytest.raises(LockLost, match="boss broke it"):
        work()


def test_a_restart_of_lockd_loses_no_lock(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, b = clients("a"), clients("b")
    kept, sticky = a.lock("kept"), a.lock("sticky", sticky=True)
    token = kept.acquire()
    with sticky:
        pass
    thread, ended = in_thread(lambda: b.lock("kept", wait=None).acquire())
    until(lambda: waiters(lockd, "kept"))
    lockd.kill()
    lockd.start()
    until(lambda: waiters(lockd, "kept"))
    assert kept.check() == token and not ended
    kept.release()
    thread.join()
    assert isinstance(ended[0], Token) and ended[0] > token
    assert b.lock("sticky").acquire() > token


def test_a_lease_that_ends_loses_the_lock_before_anybody_else_has_it(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    lock = clients("a").lock("job")
    lock.acquire()
    os.kill(lockd.process.pid, signal.SIGSTOP)
    try:
        assert lock.lost.wait(PATIENCE_S)
        with pytest.raises(LockLost, match="the lease ran out"):
            lock.check()
    finally:
        os.kill(lockd.process.pid, signal.SIGCONT)
    lock.release()
    assert lock.acquire(PATIENCE_S)


def test_a_session_lives_on_while_a_thread_computes(clients: Callable[[str], LockClient]) -> None:
    a = clients("a")
    with a.lock("job") as lock:
        end_ns = time.monotonic_ns() + 2 * a.ttl_ns
        while time.monotonic_ns() < end_ns:
            sum(range(1000))
        assert lock.check()


def test_a_child_of_a_fork_cannot_use_the_parents_locks(clients: Callable[[str], LockClient]) -> None:
    a = clients("a")
    lock, shared = a.lock("job"), a.lock("doc", shared=True)
    lock.acquire()
    shared.acquire()
    guard = lock.guard("secret")

    def leave() -> None:
        with contextlib.ExitStack() as stack:
            stack.push(lock)

    with a._session._mutex:  # as another thread of the parent may have it
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(int(PATIENCE_S))
                calls = (a.lock("other").acquire, lock.check, guard.get, shared.upgrade, lock.release, leave)
                refused = 0
                for call in calls:
                    try:
                        call()
                    except Misuse:
                        refused += 1
                a._session.cancel(1)
                a.close()
                code = 7 if refused == len(calls) and not lock.held else 8
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert lock.check() and lock.held


def test_a_program_that_ends_gives_its_locks_back(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    program = f"from client import LockClient\nLockClient({lockd.endpoint!r}).lock('job').acquire()\n"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)
    assert clients("b").lock("job").acquire()
    until(lambda: lockd.grants().count("event=grant") == 2)
    assert "event=expiry" not in lockd.grants()


def test_without_lockd_there_is_one_clear_error() -> None:
    with pytest.raises(Unreachable, match=r"no session with lockd at tcp://127.0.0.1:1 \(Connection refused\)"):
        LockClient("tcp://127.0.0.1:1", wait=0.2)
    with pytest.raises(ValueError, match="an endpoint reads"):
        LockClient("nonsense")


def test_a_name_in_use_is_refused(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    clients("a")
    with pytest.raises(Unreachable, match="the name a is in use"):
        LockClient(lockd.endpoint, name="a", wait=0.5)


def test_tasks_wait_without_holding_up_their_loop(lockd: Daemon, clients: Callable[[str], LockClient]) -> None:
    a, counted = clients("a"), [0]

    async def count() -> None:
        for _ in range(5):
            async with held(a.lock("counter", wait=None)) as lock:
                before = counted[0]
                await asyncio.sleep(0)
                counted[0] = before + 1
                assert lock.check()

    async def cancelled() -> None:
        async with held(a.lock("counter", wait=None)):
            waiting = asyncio.create_task(count())
            while not await asyncio.to_thread(waiters, lockd, "counter"):
                pass
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert not await asyncio.to_thread(waiters, lockd, "counter")

    async def main() -> None:
        await asyncio.gather(*[count() for _ in range(10)])
        await cancelled()

    asyncio.run(main())
    assert counted == [50]


@pytest.mark.parametrize(("times", "tasks"), [(1, 10), (2, 50)])
def test_a_task_cancelled_right_after_its_start_leaves_no_hold(
    times: int, tasks: int, lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")

    async def wait() -> None:
        async with held(b.lock("job", wait=None)):
            pass

    async def main() -> None:
        for _ in range(tasks):
            waiting = asyncio.create_task(wait())
            for _ in range(times):
                await asyncio.sleep(0)
                waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiting, PATIENCE_S)
        while await asyncio.to_thread(waiters, lockd, "job"):
            pass

    with a.lock("job"):
        asyncio.run(main())
    assert a.lock("job").acquire(PATIENCE_S)


def test_a_deadlock_of_two_tasks_is_told_to_one(clients: Callable[[str], LockClient]) -> None:
    a = clients("a")

    async def main() -> list[object]:
        both = asyncio.Barrier(2)

        async def nest(first: str, second: str) -> None:
            async with held(a.lock(first)):
                await both.wait()
                async with held(a.lock(second, wait=PATIENCE_S)):
                    pass

        return list(await asyncio.gather(nest("x", "y"), nest("y", "x"), return_exceptions=True))

    ended = asyncio.run(main())
    assert sorted(type(one).__name__ for one in ended) == ["Deadlock", "NoneType"]


class _Interrupt(Exception):
    """What the handler of a signal raises."""


def _interrupted(locks: Iterator[Lock], use: Callable[[Lock], object], seconds: float) -> int:
    """Use locks while the handler of a signal raises anywhere in it; return how often that was."""
    chance, times = random.Random(1), 0

    def interrupt(number: int, frame: object) -> None:
        nonlocal times
        times += 1
        raise _Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            lock = next(locks)
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 1e-3))
                while True:
                    use(lock)
            except _Interrupt:
                pass
            if lock.held:
                lock.release()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return times


_UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""What the standard library opens when it is interrupted, it leaves to be closed to the garbage collector."""


@_UNCLOSED
@pytest.mark.parametrize("sticky", [False, True], ids=["plain", "sticky"])
def test_signals_whose_handlers_raise_leave_nothing_behind(
    sticky: bool, lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    names = [f"job-{number}" for number in range(50)]
    ended = threading.Event()

    def others() -> None:
        while not ended.is_set():
            with a.lock("other", wait=None), b.lock("job-0", wait=None):
                pass

    def use(lock: Lock) -> None:
        lock.acquire()
        lock.release()

    thread, failed = in_thread(others)
    turns = itertools.cycle(names)
    assert _interrupted((a.lock(name, sticky=sticky, wait=None) for name in turns), use, 1.0) > 100
    ended.set()
    thread.join(PATIENCE_S)
    assert failed == [None]
    for name in names:
        with b.lock(name, wait=PATIENCE_S), a.lock("more"):
            pass
    until(lambda: not inspect(lockd.endpoint, "").locks)


@_UNCLOSED
def test_several_locks_are_held_all_or_none_also_where_they_are_interrupted(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a = clients("a")

    def use(last: Lock) -> None:
        several = a.locks("x", "y", "z")
        try:
            several.acquire()
            several.release()
            last.acquire()
            last.release()
        except _Interrupt:
            assert len({lock.held for lock in several.locks}) == 1
            if several.locks[0].held:
                several.release()
            raise

    assert _interrupted((a.lock("last") for _ in itertools.count()), use, 3.0) > 100
    until(lambda: not inspect(lockd.endpoint, "").locks)


@_UNCLOSED
def test_an_interrupted_conversion_leaves_nobody_who_waits_for_itself(
    lockd: Daemon, clients: Callable[[str], LockClient]
) -> None:
    a, b = clients("a"), clients("b")
    ended = threading.Event()

    def others() -> None:
        while not ended.is_set():
            with b.lock("job", shared=True, wait=None):
                pass

    def use(lock: Lock) -> None:
        with lock:
            try:
                lock.upgrade()
                lock.downgrade()
            except _Interrupt:
                assert lock.held != lock.lost.is_set()
                raise

    thread, failed = in_thread(others)
    locks = (a.lock("job", shared=True, wait=None) for _ in itertools.count())
    assert _interrupted(locks, use, 3.0) > 100  # no Deadlock was raised
    ended.set()
    thread.join(PATIENCE_S)
    assert failed == [None]
    with b.lock("job", wait=PATIENCE_S):
        pass
    until(lambda: not inspect(lockd.endpoint, "").locks)


@pytest.mark.parametrize("wait", [-2, -0.5, float("nan"), float("inf"), 1e30, "1"])
def test_a_wait_that_is_no_time_is_refused(wait: Any, clients: Callable[[str], LockClient]) -> None:
    client = clients("a")
    lock = client.lock("job")
    for call in (
        lambda: client.lock("job", wait=wait),
        lambda: lock.acquire(wait),
        lambda: client.locks("a", wait=wait),
    ):
        with pytest.raises(ValueError, match="it is seconds from 0 to 1e\\+09, or None to wait for ever"):
            call()
    assert repr(lock) == "<Lock job, not held>"
    with lock:
        assert repr(lock) == f"<Lock job, held under {lock.token}>"
    with pytest.raises(ValueError, match="lock b'job': a name is a str"):
        client.lock(b"job")  # type: ignore[arg-type]


def test_the_name_of_a_process_that_is_dead_is_waited_for(lockd: Daemon) -> None:
    program = f"from client import LockClient; LockClient({lockd.endpoint!r}, name='a'); print(flush=True); input()"
    dead = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert dead.stdout is not None
    assert dead.stdout.readline()
    with pytest.raises(Unreachable, match="the name a is in use"):
        LockClient(lockd.endpoint, name="a", wait=0.1)
    dead.kill()
    dead.communicate()
    with LockClient(lockd.endpoint, name="a", wait=PATIENCE_S) as client, client.lock("job"):
        pass
