"""One lock as lockd's core sees it: its queue, its holds, its clocks, and for a file its in-sync state."""

from msgspec import Struct

from common.clock import Clock
from common.messages import Grant, Kind, Mode
from common.records import EMPTY, Version


class Waiter(Struct):
    """A place in the queue, since lockd's nanosecond `since_ns`; `owner`, `converts` and `sticky` as in its Acquire.

    One that `tries` wants the lock now or not at all: it stays a moment for what was recalled.
    """

    session: int
    request: int
    mode: Mode
    since_ns: int
    owner: int = 0
    converts: int = 0
    sticky: bool = False
    tries: bool = False


class Hold(Struct):
    """A grant that is in force, and the `answer` that told it: for a request that comes again.

    `clean` is the version it handed over, None where the file was unclean; `newest` the newest session then. `asked_ns`
    is when the request for it came; `kept` tells that ops were done under it since. While it is `sticky` nobody but its
    client knows whether it is in use; `recalled` tells that the client was asked.
    """

    session: int
    request: int
    token: int
    mode: Mode
    wanted: Mode
    clean: Version | None
    since_ns: int
    newest: int
    asked_ns: int
    owner: int = 0
    sticky: bool = False
    converts: int = 0
    recalled: bool = False
    kept: bool = False
    answer: Grant | None = None


class Delay(Struct):
    """A hold that was lost, and whose holder may not have heard of it: until then nobody else is granted the lock."""

    session: int
    mode: Mode
    until_ns: int


class FileState(Struct):
    """What lockd knows of a file beyond its lock.

    `clean` is the version that every in-sync replica holds, None while that is not known; `clean_token` the
    token that left it so. `reports` are the learners' newest (version, followed token). `heads` are what its
    in-sync replicas had as they came, where they are not known to be equal; `astray` tells that they are not.
    `acked` is the newest version that the whole set is known to have taken in, under `acked_token`: who has less is
    not the replica that it says it is, but an older copy. `settler` was asked last to settle it, and nobody is again
    before `settle_ns`. `patience` is until when the others wait for a learner, from when on they do so again, and
    which it is.
    """

    in_sync: tuple[str, ...]
    clean: Version | None = None
    clean_token: int = 0
    reports: dict[str, tuple[Version, int]] = {}
    heads: dict[str, Version] = {}
    astray: bool = False
    acked: Version = EMPTY
    acked_token: int = 0
    settle_ns: int = 0
    settler: str = ""
    patience: tuple[int, int, str] = (0, 0, "")


class Lock(Struct):
    """A named lock. The queue is in request order, by (session, request), but that conversions come before others.

    With a `limit` it is a semaphore. `delays` are by token, as `holds` are.
    """

    name: str
    kind: Kind
    file: FileState | None = None
    limit: int = 0
    queue: dict[tuple[int, int], Waiter] = {}
    holds: dict[int, Hold] = {}
    delays: dict[int, Delay] = {}
    writers_clock: Clock = {}
    readers_clock: Clock = {}

    def admits(self, mode: Mode, converts: int = 0) -> bool:
        """Tell whether a grant of `mode` can join the holds in force, but for the one that it `converts`."""
        others = len(self.holds) + len(self.delays) - bool(converts and converts in self.holds)
        if self.limit:
            return others < self.limit
        if not others:
            return True
        # Who holds it exclusively is alone, so that all are of the same mode.
        one = next(iter(self.holds.values()), None) or next(iter(self.delays.values()))
        return mode == "shared" == one.mode

    def in_the_way(self, mode: Mode, converts: int = 0) -> list[Hold]:
        """Return the holds that a grant of `mode` cannot be together with; of a semaphore any of which has to end."""
        return [
            hold
            for hold in self.holds.values()
            if hold.token != converts and (self.limit or not mode == hold.mode == "shared")
        ]


def new_file(in_sync: tuple[str, ...]) -> FileState:
    """Return the state of a file that nobody has written: clean, at version 0."""
    return FileState(in_sync, EMPTY)
