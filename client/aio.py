"""Locks for asyncio: the waits of LockClient in threads, so that the event loop goes on.

    async with held(client.lock("jobs/nightly")) as lock:
        print(lock.token)

It costs a thread per wait, and so more than LockClient does by itself; releases are done at once.
"""

import asyncio
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from client.lock_errors import LockLost
from client.locking import Lock, new_owner

_CANCEL_EVERY_S: Final = 0.01
_owners: "weakref.WeakKeyDictionary[asyncio.Task[Any], int]" = weakref.WeakKeyDictionary()


def _this_task() -> int:
    """Return the owner that this task is to lockd, for all its locks: deadlocks are looked for among owners."""
    task = asyncio.current_task()
    return new_owner() if task is None else _owners.setdefault(task, new_owner())


@asynccontextmanager
async def held(lock: Lock, wait: float | None = -1.0) -> AsyncIterator[Lock]:
    """Hold a lock in an `async with`: acquired at its beginning by this task, released at its end.

    `wait` is as in Lock.acquire. A task that is cancelled waits no more, and holds nothing. Raises NotAcquired, Misuse,
    and at the end LockLost where the lock was lost meanwhile, and nothing else went wrong.
    """
    owner = _this_task()
    loop = asyncio.get_running_loop()
    acquired: asyncio.Future[None] = loop.create_future()
    mutex = threading.Lock()
    gone = has_it = False

    def tell(error: BaseException | None) -> None:
        if acquired.done():
            return
        if error is None:
            acquired.set_result(None)
        else:
            acquired.set_exception(error)
            acquired.exception()  # whoever is cancelled twice does not look at it

    def acquire() -> None:
        nonlocal has_it
        error: BaseException | None = None
        try:
            if not gone:
                lock.acquire(wait, owner=owner)
                with mutex:
                    has_it = not gone
                if not has_it:
                    lock.release(owner=owner)  # nobody in the task does it any more
        except BaseException as caught:  # noqa: BLE001  (it is raised again in the task)
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, error)

    def cancel() -> None:
        """Cancel until it is over: the thread may not have begun to wait."""
        if not acquired.done():
            lock.cancel()
            loop.call_later(_CANCEL_EVERY_S, cancel)

    threading.Thread(target=acquire, name=f"wait for {lock.name}", daemon=True).start()
    try:
        await asyncio.shield(acquired)
    except asyncio.CancelledError:
        with mutex:
            gone = True
        if has_it:
            lock.release(owner=owner)
        else:
            cancel()
            await asyncio.wait([acquired])
        raise
    lost: LockLost | None = None
    try:
        yield lock
        try:
            lock.check()
        except LockLost as error:
            lost = error
    finally:
        lock.release(owner=owner)
    if lost is not None:
        raise lost
