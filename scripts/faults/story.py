"""Three faults to show, one after the other, each with what followed from it: `scripts/launch --chaos`.

A client is killed and comes back. A client is stopped just when the lock has been granted to it, for longer than its
lease: on waking it believes in the lock, and the others refuse its late write. lockd is killed and comes back.
"""

import itertools
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.grantlog import GrantLine, parse_grant
from common.tokens import format_token, token_epoch
from scripts.faults.fleet import Fleet, Member
from scripts.faults.network import Direct
from scripts.faults.run import READY_S, Run
from scripts.faults.schedule import LOCKD, Kind
from scripts.launching.plan import Plan
from scripts.launching.processes import Child
from scripts.launching.reports import OpBegan, OpEnded
from scripts.launching.view import View

KINDS: Final[tuple[Kind, ...]] = ("kill", "pause", "lockd-kill")
TTL: Final = "1s"
_TTL_S: Final = 1.0
_CALM_S: Final = 1.0
"""How long the group works undisturbed between two faults."""
_DOWN_S: Final = 0.5
"""How long a killed process is down."""
_BACK_S: Final = 20.0
"""How long anything may take to be as it was."""
_LOOKS_S: Final = 0.15
"""Until a grant stands in grants.log."""
_ASKED_US: Final = 300
"""How long a client takes from the begin of an op until lockd knows of it."""
_CATCHES_MAX: Final = 60
_LATE_MAX: Final = 8


class Story(Run):
    """One run."""

    def __init__(self, plan: Plan, directory: Path, view: View) -> None:
        """Prepare it; `run` does it."""
        super().__init__(plan, Fleet(plan, directory, Direct(), TTL, view), directory, view)
        self._awake: Callable[[], None] = _nothing

    def _work(self) -> bool:
        self._tell(f"{len(self._fleet.members)} clients are up, and work without a pause")
        return (
            self._calm()
            and self._kill_a_client()
            and self._calm()
            and self._stop_a_client()
            and self._calm()
            and self._kill_lockd()
            and self._calm()
        )

    def _finish(self) -> bool:
        fleet = self._fleet
        counts = ", ".join(f"{number} {outcome}" for outcome, number in fleet.outcomes.counts.items())
        self._tell(f"everybody comes to an end: ops were {counts}")
        return self._retire() and self._become_equal()

    # The three faults

    def _kill_a_client(self) -> bool:
        """Kill a client in the midst of its work, and start it again on its directory."""
        fleet, victim = self._fleet, list(self._fleet.members)[-1]
        child, member = fleet.child(victim), fleet.members[victim]
        if child is None:
            return self._miss(f"{victim} is not up")
        fleet.hold_down(victim)
        doing = member.doing
        child.end(signal.SIGKILL)
        over = self._faults.begins(victim, "kill -9")
        what = f"in the midst of {'an' if doing.verb == 'update' else 'a'} {doing.verb}" if doing else "between two ops"
        self._tell(f"kill -9 of {victim}, {what}")
        before = fleet.outcomes.counts["ok"]
        self._wait(_DOWN_S)
        self._follow(f"the others go on: ops ok in the {_DOWN_S:g} s since: {fleet.outcomes.counts['ok'] - before}")
        if doing is not None:
            self._follow("nobody was told how its op ended: it is unknown, and the verdict looks whether it happened")
        fleet.let_up(victim)
        over()
        if not fleet.until(lambda: member.is_ready, _BACK_S):
            return self._miss(f"{victim} is not back after {_BACK_S:g} s")
        began_us = _now_us()
        if not self._works_again(victim, began_us):
            return False
        self._follow(f"{victim} is started again on its directory; it has caught up, and has done an op that was ok")
        return True

    def _stop_a_client(self) -> bool:
        """Stop a client that has been granted its lock and does not know yet; wake it when its lease is over."""
        for _ in range(_LATE_MAX):
            caught = self._catch()
            if caught is None:
                return self._miss("no client could be stopped just before its grant; is this machine busy?")
            child, grant = caught
            if self._wake_late(child, grant):
                return self._works_again(child.name, _now_us())
            if self._fleet.calls:
                return False
            self._follow(f"{child.name} found out by itself that its lease was over; once more")
        return self._miss(f"in {_LATE_MAX} tries no late write came about")

    def _catch(self) -> tuple[Child, GrantLine] | None:
        """Stop clients that wait for a change's lock, until one of them got its grant in its sleep."""
        fleet = self._fleet
        stopped: list[Child] = []

        def look(name: str, op: OpBegan | OpEnded) -> None:
            # A change in front would wait for the ack of whom we stop: a read does not.
            doing = sorted([(one.doing.began_us, one) for one in fleet.members.values() if one.doing], key=_first)
            verbs = ["read" if one.doing and one.doing.verb == "read" else "change" for _, one in doing[:2]]
            if stopped or verbs != ["read", "change"] or _now_us() - doing[1][0] < _ASKED_US:
                return
            if child := fleet.child(doing[1][1].name):
                child.send(signal.SIGSTOP)
                self._awake = self._faults.begins(child.name, "stopped (SIGSTOP)")
                stopped.append(child)

        for _ in range(_CATCHES_MAX):
            fleet.on_begin = fleet.on_op = look
            fleet.until(lambda: bool(stopped), _BACK_S)
            fleet.on_begin = fleet.on_op = _let_be
            if not stopped:
                return None
            self._wait(_LOOKS_S)
            grant = self._grant_of(stopped[0].name)
            if grant is not None and not fleet.calls:
                return stopped[0], grant
            stopped.pop().send(signal.SIGCONT)
            self._awake()
            if fleet.calls:
                return None
        return None

    def _grant_of(self, name: str) -> GrantLine | None:
        """Return the exclusive grant that a client holds and has not read, if there is one."""
        held: dict[int, GrantLine] = {}
        for line in self._grants():
            if line.client == name and line.event == "grant":
                held[line.token] = line
            else:
                held.pop(line.token, None)
        log = (self._directory / name / "events.log").read_text("utf-8", "replace")
        for grant in held.values():
            if grant.mode == "exclusive" and f" token={format_token(grant.token)} " not in log:
                return grant
        return None

    def _wake_late(self, child: Child, grant: GrantLine) -> bool:
        """Wait until others have the lock, wake the client, and tell who refuses its write; return whether one did."""
        fleet, token, name = self._fleet, format_token(grant.token), child.name
        self._tell(f"{name} is stopped (SIGSTOP) while it waits for {grant.lock}; lockd grants it {token} in its sleep")
        newer: list[GrantLine] = []

        def others_went_on() -> bool:
            lines = self._grants()
            is_over = any(line.token == grant.token and line.event == "expiry" for line in lines)
            newer[:] = [
                line
                for line in lines
                if line.token > grant.token and (line.event, line.mode) == ("release", "exclusive")
            ]
            return is_over and bool(newer)

        if not fleet.until(others_went_on, _BACK_S):
            child.send(signal.SIGCONT)
            self._awake()
            return False
        self._follow(
            f"after its lease of {TTL} lockd takes the lock back; "
            f"{newer[0].client} writes under {format_token(newer[0].token)}"
        )
        # Its session is over, so the others may not know the sender by name.
        wanted = re.compile(rf" refused a push of \S+ to .*: its token {re.escape(token)} is fenced by (\S+)")
        self._tell(f"{name} wakes up (SIGCONT), finds its grant of {token}, and writes")
        fleet.wake(child, late=True)
        self._awake()
        refused: dict[str, str] = {}

        def was_refused() -> bool:
            for other in fleet.members:
                log = (self._directory / other / "client.log").read_text("utf-8", "replace")
                if found := wanted.search(log):
                    refused[other] = found[1]
            return bool(refused)

        if not fleet.until(was_refused, 2 * _TTL_S):
            return False
        self._wait(_LOOKS_S)
        was_refused()
        for other, promised in sorted(refused.items()):
            self._follow(f"{other} refused the write of {name}: its token {token} is fenced by {promised}")
        return True

    def _kill_lockd(self) -> bool:
        fleet = self._fleet
        child = fleet.child(LOCKD)
        if child is None:
            return self._miss("lockd is not up")
        before = fleet.outcomes.counts["ok"]
        epoch = self._newest_epoch()
        fleet.hold_down(LOCKD)
        child.end(signal.SIGKILL)
        over = self._faults.begins(LOCKD, "kill -9")
        self._tell("kill -9 of lockd")
        self._wait(_DOWN_S)
        done = fleet.outcomes.counts["ok"] - before
        self._follow(f"no lock is granted any more: ops ok in the {_DOWN_S:g} s since: {done}")
        fleet.let_up(LOCKD)
        over()
        if not fleet.until(lambda: fleet.lockd.is_ready, READY_S):
            return self._miss(f"lockd is not back after {READY_S:g} s")
        began_us = _now_us()
        for name in fleet.members:
            if not self._works_again(name, began_us):
                return False
        if not fleet.until(lambda: self._newest_epoch() > epoch, READY_S):
            return self._miss(f"grants.log tells of no grant in {READY_S:g} s")
        lines = self._grants()
        first = next(place for place, line in enumerate(lines) if token_epoch(line.token) > epoch)
        for line in itertools.takewhile(lambda line: line.event == "expiry", reversed(lines[:first])):
            self._follow(f"the lock of {line.client} under {format_token(line.token)} is void; who comes next settles")
        self._follow(f"lockd is back: its first grant is {format_token(lines[first].token)}, larger than all before")
        self._follow("every client is back in a session, and has done an op that was ok")
        return True

    # Looking

    def _grants(self) -> list[GrantLine]:
        lines = (self._directory / LOCKD / "grants.log").read_bytes().split(b"\n")[:-1]
        return [parse_grant(line.decode()) for line in lines]

    def _newest_epoch(self) -> int:
        """Return the epoch of the newest grant that lockd has written down; it is written behind."""
        return max(token_epoch(line.token) for line in self._grants())

    def _works_again(self, name: str, began_us: int) -> bool:
        """Wait until a client has done an op that began after this and was ok."""
        done: list[str] = []
        self._fleet.on_op = lambda who, op: (
            done.append(who) if who == name and op.outcome == "ok" and op.began_us > began_us else None
        )
        if self._fleet.until(lambda: bool(done), _BACK_S):
            return True
        return self._miss(f"{name} has done no op in {_BACK_S:g} s")

    def _calm(self) -> bool:
        self._wait(_CALM_S)
        return not self._fleet.calls

    def _wait(self, seconds: float) -> None:
        self._fleet.until(_never, seconds)

    def _follow(self, line: str) -> None:
        self._view.tell(f"          → {line}")


def _never() -> bool:
    return False


def _first(pair: tuple[int, Member]) -> int:
    return pair[0]


def _nothing() -> None:
    """Nobody is stopped."""


def _let_be(name: str, op: OpBegan | OpEnded) -> None:
    """Nothing is to be done about it."""


def _now_us() -> int:
    return time.monotonic_ns() // 1000
