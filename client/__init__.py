"""A client: a session with lockd, and usually a replica of the group's files.

Programs that want locks take them from here: LockClient and the errors of its locks.
"""

from typing import TYPE_CHECKING, Any

from client.lock_errors import (
    Cancelled,
    Deadlock,
    LockError,
    LockLost,
    Misuse,
    NotAcquired,
    TimedOut,
    Token,
    Unreachable,
)

if TYPE_CHECKING:
    from client.locking import Guard, Lock, LockClient, Locks

__all__ = [
    "Cancelled",
    "Deadlock",
    "Guard",
    "Lock",
    "LockClient",
    "LockError",
    "LockLost",
    "Locks",
    "Misuse",
    "NotAcquired",
    "TimedOut",
    "Token",
    "Unreachable",
]


def __getattr__(name: str) -> Any:
    """Load what needs msgspec only for those who use it: most commands do not."""
    if name in ("Guard", "Lock", "LockClient", "Locks"):
        from client import locking

        return getattr(locking, name)
    raise AttributeError(f"module 'client' has no attribute {name!r}")
