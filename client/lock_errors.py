"""What can happen to one who wants a lock: the errors of the locks' API."""

from typing import Self

from common.tokens import format_token, parse_token


class Token(int):
    """A fencing token: a 64-bit integer, larger with every grant of any lock; `str` writes it as `epoch.counter`."""

    def __str__(self) -> str:
        """Return `epoch.counter`, as all logs write it."""
        return format_token(self)

    def __repr__(self) -> str:
        """Return what makes it again."""
        return f"Token.parse({str(self)!r})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `epoch.counter`, as in LOCKSTEP_TOKEN. Raises ValueError."""
        return cls(parse_token(text))


class LockError(Exception):
    """Whatever goes wrong with a lock; the text says what, why and what to do."""


class Unreachable(LockError):
    """lockd cannot be reached, or refuses this client a session."""


class NotAcquired(LockError):
    """The lock was not granted: not in time, or the request was refused. Nothing is held."""


class TimedOut(NotAcquired):
    """The lock was not free in time."""


class Deadlock(NotAcquired):
    """The wait would never have ended; the text has the cycle of those who wait for each other."""


class Cancelled(NotAcquired):
    """Another thread called `cancel`."""


class LockLost(LockError):
    """The lock was held, and is lost: the lease ran out, lockd gave it to others, or an operator broke it."""


class Misuse(LockError):
    """The call makes no sense: a lock that is held is acquired again, or one that is not is released."""
