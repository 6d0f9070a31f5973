"""Locks for asyncio: the waits of LockClient in threads, so that the event loop goes on.

    async with held(client.lock("jobs/nightly")) as lock:
        print(lock.token)

It costs a thread per wait, and so more than LockClient does by itself; releases are done at once.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from client.lock_errors import LockLost
from client.locking import Lock, new_owner


@asynccontextmanager
async def held(lock: Lock, wait: float | None = -1.0) -> AsyncIterator[Lock]:
    """Hold a lock in an `async with`: acquired at its beginning by this task, released at its end.

    `wait` is as in Lock.acquire. A task that is cancelled waits no more, and holds nothing. Raises NotAcquired, Misuse,
    and at the end LockLost where the lock was lost meanwhile, and nothing else went wrong.
    """
    owner = new_owner()
    loop = asyncio.get_running_loop()
    acquired: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if acquired.done():
            return
        if error is None:
            acquired.set_result(None)
        else:
            acquired.set_exception(error)

    def acquire() -> None:
        error: BaseException | None = None
        try:
            lock.acquire(wait, owner=owner)
        except BaseException as caught:  # noqa: BLE001  (it is raised again in the task)
            error = caught
        loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=acquire, name=f"wait for {lock.name}", daemon=True).start()
    try:
        await asyncio.shield(acquired)
    except asyncio.CancelledError:
        lock.cancel()
        try:
            await acquired
        except Exception:  # noqa: BLE001  (nothing is held, and nobody waits for it any more)
            pass
        else:
            lock.release(owner=owner)
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
