"""A client: a session with lockd, and usually a replica of the group's files.

Programs that want locks take them from here: LockClient, its locks, and the errors of both.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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

_WITH_SESSION: Final = ("Guard", "Lock", "LockClient", "Locks")


def __getattr__(name: str) -> Any:
    """Load only what is asked for: most commands need none of it."""
    if name not in __all__:
        raise AttributeError(f"module 'client' has no attribute {name!r}")
    module = "client.locking" if name in _WITH_SESSION else "client.lock_errors"
    return getattr(importlib.import_module(module), name)
