"""The commands that are a client: serve, run, and a one-shot op."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, Literal

from client.control import Order, Report
from client.directory import DirectoryLock, take
from client.node import Node, Result
from client.settings import Settings
from client.workload import Workload
from common.errors import EXIT_OK, EXIT_UNKNOWN, CommandError, refused
from common.eventlog import quote, shorten
from common.stopping import Stop

JOIN_NS: Final = 10_000_000_000
FAILURES_MAX: Final = 20
"""How often `run` tries one op before it gives up."""
TAIL_BYTES: Final = 256
"""How much of what a read saw is shown by `run`."""


def serve(settings: Settings) -> None:
    """Keep a replica up until SIGINT or SIGTERM."""
    with _up(settings, "serve") as (node, stop):
        while stop.caught is None:
            node.step()


def run(
    settings: Settings,
    workload: Callable[[str], Workload],
    ops: int,
    wait_ns: int,
    *,
    group: int,
    stay: bool,
    report: bool,
    stall_ns: int = 0,
) -> None:
    """Do `ops` random ops, once `group` replicas are up; then leave, or serve until a signal where `stay`."""
    with _up(settings, "run") as (node, stop):
        node.stall_ns = stall_ns
        if not report and 1 < group > node.replicas_most:
            _say(f"waiting until {group} replicas are up")
        while stop.caught is None and node.replicas_most < group:
            node.step()
        if report and stop.caught is None:
            _tell({"event": "complete"})
        runner = _Runner(node, workload(node.host), ops, wait_ns, report=report)
        while stop.caught is None and not runner.over:
            runner.go_on()
        if runner.over:
            runner.tell_end()
        while stay and stop.caught is None:
            node.step()
    if not runner.over:
        sys.stdout.flush()
        raise SystemExit(128 + (stop.caught or 0))
    if runner.unknown:
        raise CommandError(EXIT_UNKNOWN, f"{runner.unknown} of {ops} ops ended unknown: they may have happened")


def one_shot(settings: Settings, order: Order, lock: DirectoryLock, stop: Stop) -> Report:
    """Join, do one op and leave; the caller has taken the directory. Raises CommandError: nothing happened."""
    verb = order.verb
    assert verb in ("read", "write", "update", "restore")
    ended: list[Result] = []
    broken = ""
    try:
        with _node(settings, lock, stop) as node:
            try:
                node.join(JOIN_NS, lambda: stop.caught is not None)
                node.submit(
                    verb,  # type: ignore[arg-type]
                    order.file,
                    ended.append,
                    text=order.text,
                    of=order.of,
                    retry=order.retry,
                    wait_ns=order.wait_ms * 1_000_000,
                )
                while not ended and stop.caught is None:
                    node.step()
            finally:
                node.leave()
    except CommandError as error:
        if not ended or ended[0].finished.outcome == "failed":
            raise
        broken = str(error)
    result, finished = ended[0], ended[0].finished
    if broken and finished.outcome == "ok":
        _complain(broken)
    version, reason = finished.version, broken or finished.reason
    return Report(finished.outcome, finished.id, version.seq, version.hash.hex()[:12], reason, result.content)


@contextmanager
def _up(settings: Settings, role: Literal["serve", "run"]) -> Iterator[tuple[Node, Stop]]:
    """Take the directory, join the group and carry out orders; leave in good order at the end."""
    served, where = None, ""
    if settings.metrics is not None:
        from common.metrics import Metrics

        served = Metrics(*settings.metrics)  # first: where it cannot be had nothing has happened yet
        where = f", metrics on {served.url}"
    with closing(Stop()) as stop, _node(settings, _take(settings, role, stop), stop) as node:
        node.listen()
        if served is not None:
            from client.metrics import ClientMetrics

            served.serve(ClientMetrics(node.core))
        node.join(JOIN_NS, lambda: stop.caught is not None)
        if stop.caught is None:
            _say(f"ready {node.host} on {settings.data}, {_promise(settings)}{where}")
        try:
            yield node, stop
        except CommandError:
            node.leave()  # whoever waits for our acks need not wait for the end of our lease
            raise
        node.leave()


@contextmanager
def _node(settings: Settings, lock: DirectoryLock, stop: Stop) -> Iterator[Node]:
    """Start the client of a directory. Of one that lockd cannot know, nothing stays that was not there before."""
    node: Node | None = None
    try:
        node = Node(settings.data, settings.name, settings.lockd, settings.durability)
        node.watch(stop.descriptor)
        for line in node.repaired:
            _complain(line)
        yield node
    finally:
        try:
            if node is not None:
                node.close()
        finally:
            lock.release(keep=node is not None and node.may_be_known)


class _Runner:
    """Does one op after the other, each after its pause, and tells of each on stdout."""

    def __init__(self, node: Node, workload: Workload, ops: int, wait_ns: int, *, report: bool) -> None:
        self._node, self._workload, self._ops, self._wait_ns, self._report = (
            node,
            workload,
            ops,
            wait_ns,
            report,
        )
        self._done = 0
        self.unknown = 0
        self._failures = 0
        self._busy = False
        self._began_us = 0
        self._choice = workload.next()
        self._due_ns = node.now_ns() + self._choice.delay_ns

    @property
    def over(self) -> bool:
        """Tell whether all ops are done."""
        return self._done >= self._ops

    def go_on(self) -> None:
        """Begin the next op when it is due, and let the node work."""
        if not self._busy and self._node.now_ns() >= self._due_ns:
            choice = self._choice
            self._busy, self._began_us = True, _monotonic_us()
            if self._report:
                _tell({"event": "begin", "verb": choice.verb, "file": choice.file, "began_us": self._began_us})
            self._node.submit(
                choice.verb,
                choice.file,
                self._ended,
                text=choice.text,
                wait_ns=self._wait_ns,
                tail_bytes=TAIL_BYTES,
            )
        else:
            self._node.step(None if self._busy else self._due_ns)

    def tell_end(self) -> None:
        """Tell that all ops are done."""
        if self._report:
            _tell({"event": "done"})
        else:
            _say(f"done: {self._ops} ops")

    def _ended(self, result: Result) -> None:
        finished, choice = result.finished, self._choice
        ended_us = _monotonic_us()
        took_ms = (ended_us - self._began_us) / 1e3
        self._busy = False
        if finished.outcome == "failed":
            # It never happened, so it is still to be done, unless it cannot be.
            self._failures += 1
            if self._failures >= FAILURES_MAX:
                raise refused(f"{choice.verb} {choice.file} failed {FAILURES_MAX} times: {finished.reason}")
            self._due_ns = self._node.now_ns() + 100_000_000
        else:
            self._done += 1
            self._failures = 0
            self.unknown += finished.outcome == "unknown"
            self._choice = self._workload.next()
            self._due_ns = self._node.now_ns() + self._choice.delay_ns
        text = choice.text
        if choice.verb == "read":
            text = _last_line(result)
        if self._report:
            _tell(
                {
                    "event": "end",
                    "id": finished.id,
                    "verb": choice.verb,
                    "file": choice.file,
                    "seq": finished.version.seq,
                    "outcome": finished.outcome,
                    "reason": finished.reason,
                    "ms": round(took_ms, 3),
                    "bytes": result.length,
                    "text": shorten(text),
                    "hash": finished.version.hash.hex()[:12],
                    "began_us": self._began_us,
                    "ended_us": ended_us,
                }
            )
            return
        saw = f"saw {result.length} bytes, last line: " if choice.verb == "read" else ""
        shown = quote(shorten(text)) if text.isprintable() else json.dumps(shorten(text))
        _say(
            f"{finished.id} {choice.verb} {choice.file}@{finished.version.seq} {finished.outcome} "
            f"{took_ms:.1f} ms  {finished.reason or saw + shown}"
        )


def _monotonic_us() -> int:
    """Return the time of a clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000


def _last_line(result: Result) -> str:
    text = result.content.decode("utf-8", "replace").rstrip("\n")
    _, newline, last = text.rpartition("\n")
    whole = newline or len(result.content) == result.length
    return last if whole else f"…{last}"


def _take(settings: Settings, role: Literal["serve", "run"], stop: Stop) -> DirectoryLock:
    lock = take(settings.data, role, lambda: stop.caught is not None, named=settings.name is not None)
    if lock is None:
        if stop.caught is not None:
            raise SystemExit(EXIT_OK if role == "serve" else 128 + stop.caught)
        raise refused(f"{settings.data} is in use by another client; stop that one, or choose another --data")
    return lock


def _promise(settings: Settings) -> str:
    if settings.durability == "memory":
        return "durability memory: a power cut can take acknowledged ops"
    return "durability disk"


def _say(line: str) -> None:
    try:
        os.write(1, line.encode("utf-8", "replace") + b"\n")
    except OSError:
        return


def _tell(values: dict[str, object]) -> None:
    _say(json.dumps(values))


def _complain(line: str) -> None:
    print(f"client: {line}", file=sys.stderr)
