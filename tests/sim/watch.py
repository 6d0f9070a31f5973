"""What must hold after every step, whatever the seed."""

from collections import Counter

from client.effects import Log, Persist
from common.grantlog import GrantLine
from common.messages import Grant, Settle, Stale
from common.records import Version
from common.tokens import format_token, token_epoch
from lockd import effects as lockd_effects
from lockd.locks import Lock
from tests.sim.processes import Broken, ClientProcess, Directory, LockdProcess


class Recount:
    """lockd's figures, counted anew from what one lockd has had its driver do."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._compared: Counter[str] = Counter()
        self._sums_us: Counter[str] = Counter()
        self._epoch = 0
        self._in_sync: dict[str, tuple[str, ...]] = {}
        self._opened: set[int] = set()

    def check(self, lockd: LockdProcess, effects: list[lockd_effects.Effect]) -> None:
        """Take in what is done, and compare."""
        if self._epoch != lockd.core.epoch:
            self._epoch, self._in_sync = lockd.core.epoch, dict(lockd.disk.in_sync)
        for effect in effects:
            match effect:
                case lockd_effects.LogGrant(line):
                    self._line(line)
                case lockd_effects.Persist(changes):
                    for change in changes:
                        self._change(change)
                case lockd_effects.Send(_, Settle()):
                    self._counts["settles"] += 1
                case lockd_effects.Send(_, Stale()):
                    self._counts["stale"] += 1
                case lockd_effects.Send(_, Grant(clean=None)):
                    # A grant that is told again is no other one; only the first comes with its line.
                    if any(isinstance(each, lockd_effects.LogGrant) for each in effects):
                        self._counts["unclean"] += 1
                case _:
                    pass
        if self._counts == self._compared:
            return
        self._compared = self._counts.copy()
        figures = lockd.core.figures
        found = {
            "grant": sum(figures.grants.values()),
            "exclusive": figures.grants["exclusive"],
            "expiry": sum(figures.expiries.values()),
            "release": sum(figures.holds.counts) - sum(figures.expiries.values()) + figures.expiries["restart"],
            "unclean": figures.unclean_grants,
            "opened": figures.sessions_opened,
            "ended": sum(figures.sessions_ended.values()) - figures.sessions_ended["absent"],
            "left": figures.drops,
            "joined": figures.admissions,
            "settles": figures.settles,
            "stale": figures.stale,
        }
        wanted = {what: self._counts[what] for what in found}
        if found != wanted:
            raise Broken(f"lockd's figures are {found}, its effects add up to {wanted}")
        sums_us = {"waits": figures.waits.sum_us, "holds": figures.holds.sum_us}
        wanted_us = {what: self._sums_us[what] for what in sums_us}
        # The lines round to a microsecond, the histograms cut.
        if any(abs(sums_us[what] - wanted_us[what]) > self._counts["grant"] for what in sums_us):
            raise Broken(f"lockd's histograms add up to {sums_us} µs, its lines to {wanted_us}")

    def _line(self, line: GrantLine) -> None:
        self._counts[line.event] += 1
        more = dict(line.more)
        if line.event == "grant":
            self._counts[line.mode] += 1
            self._sums_us["waits"] += _us(more["waited_ms"])
        elif token_epoch(line.token) == self._epoch:
            self._sums_us["holds"] += _us(more["held_ms"])

    def _change(self, change: lockd_effects.Change) -> None:
        match change:
            case lockd_effects.SessionOpened(session):
                self._counts["opened"] += 1
                self._opened.add(session)
            case lockd_effects.SessionEnded(session):
                self._counts["ended"] += session in self._opened
            case lockd_effects.InSyncChanged(file, replicas):
                before = self._in_sync.get(file)
                if before and replicas:
                    self._counts["left"] += len(set(before) - set(replicas))
                    self._counts["joined"] += len(set(replicas) - set(before))
                self._in_sync[file] = replicas
            case _:
                pass


def _us(text_ms: str) -> int:
    return round(float(text_ms) * 1000)


class Watch:
    """Looks at all processes at once, which nobody in the group can.

    - tokens only rise, and an exclusive hold is alone at lockd;
    - grants come in the order of requests, but for learners, who wait until they are admitted;
    - what lockd says of an in-sync set is durable;
    - no replica ever goes back in what it promised or follows;
    - no replica takes in anything under a smaller token than one it has met, even in an earlier life;
    - what was acknowledged is a prefix of every in-sync replica's history, live or not;
    - where a file is clean and nobody may change it, its whole in-sync set is at that version;
    - network time is lockd's, but for the time a message may take;
    - lockd's figures are what its effects add up to.
    """

    def __init__(self, clock_error_us_max: int | None) -> None:
        self.acknowledged: dict[str, Version] = {}
        self.directories: list[Directory] = []
        self._clock_error_us_max = clock_error_us_max
        self._token = 0
        self._queues: dict[str, list[tuple[int, int]]] = {}
        self._changed: set[str] = set()
        self._in_sync: dict[str, tuple[str, ...]] = {}
        self._tokens: dict[tuple[str, str], tuple[int, int]] = {}
        self._met: dict[tuple[str, str], int] = {}
        self._clean: dict[str, Version | None] = {}
        self._recount = Recount()

    def copied(self, directory: Directory) -> None:
        """Take in that lockd has let a copied directory in, as the replica that it was copied from or as another."""
        self.directories = [other for other in self.directories if other.replica != directory.replica] + [directory]
        for tokens in (self._tokens, self._met):
            for key in [key for key in tokens if key[0] == directory.replica]:
                del tokens[key]

    def lockd_stepped(self, lockd: LockdProcess, effects: list[lockd_effects.Effect]) -> None:
        """Check figures, tokens, holds, turns and in-sync sets."""
        self._recount.check(lockd, effects)
        for effect in effects:
            if isinstance(effect, lockd_effects.LogGrant) and effect.line.event == "grant":
                if effect.line.token <= self._token:
                    raise Broken(f"the token {format_token(effect.line.token)} is not larger than all before")
                self._token = effect.line.token
        for lock in lockd.core.locks.values():
            if len(lock.holds) > 1 and any(hold.mode == "exclusive" for hold in lock.holds.values()):
                raise Broken(f"{lock.name} is held exclusively, and not alone: {lock.holds}")
            assert lock.file is not None
            self._check_turns(lockd, lock, lock.file.in_sync)
            at_rest = not any(hold.mode == "exclusive" for hold in lock.holds.values())
            clean = lock.file.clean if at_rest else None
            if clean != self._clean.get(lock.name):
                self._clean[lock.name] = clean
                self._changed.add(lock.name)
            if lock.file.in_sync != lockd.disk.in_sync[lock.name]:
                raise Broken(f"the in-sync set of {lock.name} is not durable")
            if lock.file.in_sync != self._in_sync.get(lock.name):
                self._in_sync[lock.name] = lock.file.in_sync
                self._changed.add(lock.name)

    def _check_turns(self, lockd: LockdProcess, lock: Lock, in_sync: tuple[str, ...]) -> None:
        granted = {(hold.session, hold.request) for hold in lock.holds.values()}
        before = self._queues.get(lock.name, [])
        last = max((place for place, key in enumerate(before) if key in granted), default=0)
        for session, request in before[:last]:
            if (session, request) in lock.queue:
                member = lockd.core.sessions[session].member
                connected = lockd.core.sessions[session].connected
                if connected and member is not None and member.replica in in_sync:
                    raise Broken(f"{lock.name}: request {request} of {member.host} was passed over")
        self._queues[lock.name] = list(lock.queue)

    def logged(self, client: ClientProcess, effect: Log) -> None:
        """Check network time."""
        error_us = effect.time_us - client.world.schedule.now_ns // 1000
        if self._clock_error_us_max is not None and abs(error_us) > self._clock_error_us_max:
            raise Broken(f"{client.name}'s network time is off by {error_us} µs")

    def persisted(self, client: ClientProcess, effect: Persist) -> None:
        """Check the tokens that a replica keeps."""
        key = client.directory.replica, effect.file
        promised, follows = self._tokens.get(key, (0, 0))
        if effect.promised < promised or effect.follows < follows or effect.follows > effect.promised:
            raise Broken(
                f"{client.name} goes from promised {format_token(promised)}, follows {format_token(follows)} "
                f"to {format_token(effect.promised)}, {format_token(effect.follows)} in {effect.file}"
            )
        if effect.promised < self._met.get(key, 0):
            met = format_token(self._met[key])
            raise Broken(f"{client.name} promises {format_token(effect.promised)} in {effect.file}, but has met {met}")
        self._tokens[key] = effect.promised, effect.follows
        self._changed.add(effect.file)

    def met(self, client: ClientProcess, file: str, token: int) -> None:
        """Note that a replica has taken a push to heart."""
        key = client.directory.replica, file
        self._met[key] = max(token, self._met.get(key, 0))

    def lockd_died(self) -> None:
        """Forget what lockd thought: the grants that it made last may be on their way."""
        self._clean.clear()
        self._recount = Recount()

    def acknowledge(self, file: str, version: Version) -> None:
        """Note that a user was told of this version: nothing before it may ever be lost."""
        before = self.acknowledged.get(file)
        if before is None or version.seq > before.seq:
            self.acknowledged[file] = version
            self._changed.add(file)
        elif version.seq == before.seq and version.hash != before.hash:
            raise Broken(f"{file} has two versions {version.seq}: {before} and {version}")

    def check(self) -> None:
        """Check that what was acknowledged is in all in-sync replicas; the hash stands for all before it."""
        for file in self._changed:
            version, clean = self.acknowledged.get(file), self._clean.get(file)
            for directory in self.directories:
                if directory.replica not in self._in_sync.get(file, ()):
                    continue
                if clean is not None and directory.head(file) != clean:
                    raise Broken(
                        f"{file} is clean at {clean}, but {directory.name}, in sync, is at {directory.head(file)}"
                    )
                if version is not None:
                    held = directory.journal.version_at(file, version.seq)
                    if held is None or held.hash != version.hash:
                        raise Broken(
                            f"{directory.name} is in sync with {file}, but has {held} where {version} was acknowledged"
                        )
        self._changed.clear()
