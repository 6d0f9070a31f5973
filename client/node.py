"""The client's driver: sockets, storage and logs around the core; one thread, one poller, no decisions."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, assert_never

import zmq
from msgspec import Struct, structs

from client.core import Client
from client.directory import default_name, listen
from client.disk import Timed
from client.effects import (
    Answer,
    Begin,
    Connect,
    Disconnect,
    Effect,
    Event,
    Finished,
    Flush,
    FromDaemon,
    FromPeer,
    Joined,
    JoinRefused,
    Leave,
    LockdConnected,
    LockdDisconnected,
    Log,
    Note,
    OpVerb,
    PeerAnswer,
    Persist,
    Persisted,
    PersistFailed,
    ReadFile,
    Reconnect,
    Remember,
    SendLockd,
    SendReplica,
    Submit,
    Timer,
)
from client.journal import Journal
from client.orders import OrderDesk
from client.reach import reach
from client.settings import DEFAULT_LOCKD
from client.shared import Identity
from client.storage_errors import FatalStorageError, StorageError
from common.diagnostics import Diagnostics, Strangers
from common.errors import EXIT_CRASHED, CommandError, refused
from common.eventlog import format_event
from common.histogram import Histogram
from common.messages import Ack, Fenced, Fetched, FromLockd, FromReplica, Push, ToReplica
from common.moments import SteadyClock
from common.sockets import caller, connect, connections, fan, listener, receive, send, states
from common.wire import WireError, decode, encode

Durability = Literal["disk", "memory"]
_WAIT_NS_MAX: Final = 60_000_000_000


class Result(Struct, frozen=True):
    """How an op ended, and for a read its file's length in bytes and (the end of) its content."""

    finished: Finished
    length: int
    content: bytes


class _Wanted(Struct):
    """Whom to tell of an op's beginning and end, and how much of a read's content to keep; None keeps it all.

    `trouble` is why the content cannot be read.
    """

    begin: Callable[[str], bool] | None
    done: Callable[[Result], None]
    tail_bytes: int | None
    verb: OpVerb
    began_ns: int
    length: int = 0
    content: bytes = b""
    trouble: str = ""


class Node:
    """A running client: joins with `join`, works with `submit` and `step`, ends with `leave` and `close`."""

    def __init__(self, directory: Path, name: str | None, lockd: str | None, durability: Durability) -> None:
        """Open the directory's journal and logs and the sockets; None is as the directory remembers it.

        Raises CommandError.
        """
        self._directory = directory
        self._clock = SteadyClock()
        self._wanted: dict[int, _Wanted] = {}
        self._submitted = 0
        self._joined = self._met_lockd = False
        self._join_refused = ""
        self._desk: OrderDesk | None = None
        self._last: tuple[object, bytes] = (None, b"")
        self._broken = ""
        self.stall_ns = 0
        """How long to stand still before an op is pushed, in nanoseconds: a fault on demand."""
        self._routes: dict[str, bytes] = {}
        self._endpoints: dict[str, str] = {}
        self._connections = 0
        self._syncs = Histogram()
        self._strangers = Strangers()
        self._open(directory, name, lockd, durability)
        self._context = zmq.Context[zmq.Socket[bytes]]()
        self._fan: zmq.Socket[bytes] | None = None
        self._open_sockets(self.lockd)

    def _open(self, directory: Path, name: str | None, lockd: str | None, durability: Durability) -> None:
        try:
            self._journal, repaired = Journal.open(directory, durability, Timed(self._syncs))
            self._events = self._journal.events
            self._diagnostics = Diagnostics(directory / "client.log")
            self._states = self._journal.states()
            replica, start_count = self._journal.begin_start()
            meta = self._journal.meta
            name = name or str(meta.get("name", "")) or default_name(directory)
            self.lockd = lockd or str(meta.get("lockd", "")) or DEFAULT_LOCKD
        except StorageError as error:
            raise _cannot_start(error) from None
        except FatalStorageError as error:
            raise CommandError(EXIT_CRASHED, f"{error}; mend that, then start again") from None
        except OSError as error:
            raise refused(f"{directory} cannot be used ({error.strerror}); choose another --data") from None
        self._diagnostics.note(f"start {start_count} of this directory, process {os.getpid()}")
        for line in repaired:
            self._diagnostics.note(line)
        self.repaired = repaired
        self._identity = self._recall(name, replica, start_count, durability)

    def _recall(self, name: str, replica: str, start_count: int, durability: Durability) -> Identity:
        meta = self._journal.meta
        return Identity(
            name=name,
            incarnation=os.urandom(8).hex(),
            replica=replica,
            start_count=start_count,
            endpoint="",
            durability=durability,
            host=str(meta.get("host", "")),
            group=str(meta.get("group", "")),
            epoch=int(meta.get("epoch", 0)),
            epoch_id=str(meta.get("epoch_id", "")),
            changes=int(meta.get("changes", 0)),
            ops=self._events.end.ops,
        )

    def _open_sockets(self, lockd: str) -> None:
        identity = self._identity
        self._route = identity.replica + identity.incarnation
        self._lockd = caller(self._context, self._route.encode())
        self._link = connections(self._lockd)
        self._listener = listener(self._context)
        try:
            self._listener.bind(f"tcp://{_own_address(lockd)}:*")
            self._lockd.connect(lockd)
        except (zmq.ZMQError, OSError) as error:
            self._context.destroy(linger=0)
            raise refused(f"lockd at {lockd} cannot be reached ({error}); check --lockd") from None
        endpoint = self._listener.get(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        identity.endpoint = self.endpoint = endpoint.rstrip(b"\0").decode()
        states, end = self._states, self._events.end
        newest = self._events.newest()
        self.core = Client(identity, self._journal, states, end.clock, end.time_us, newest, end.reads)
        self.figures = self.core.figures
        self.figures.syncs = self._syncs
        self._poller = zmq.Poller()
        # First, so that the core knows of a new connection before it sees a message that came along it.
        self._poller.register(self._link, zmq.POLLIN)
        self._poller.register(self._lockd, zmq.POLLIN)

    @property
    def host(self) -> str:
        """Return this client's component in vector clocks."""
        return self.core.host

    @property
    def replicas_most(self) -> int:
        """Return how many live replicas the group had at once, this one included, at the most."""
        return self.core.replicas_most

    @property
    def may_be_known(self) -> bool:
        """Tell whether lockd may know this replica: it was told of it, and has not refused it."""
        return self._joined or (self._met_lockd and not self._join_refused)

    def now_ns(self) -> int:
        """Return the node's time, steady nanoseconds."""
        return self._clock.now_ns()

    def watch(self, descriptor: int) -> None:
        """Let `step` return when this descriptor becomes readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def note(self, text: str) -> None:
        """Write one line to client.log."""
        self._diagnostics.note(text)

    def join(self, wait_ns: int, given_up: Callable[[], bool]) -> None:
        """Open a session, within `wait_ns`. Raises CommandError; returns early where `given_up()`."""
        reach(self.lockd, given_up)
        deadline = self.now_ns() + wait_ns
        self._feed(Timer())
        while not self._joined and not given_up():
            if self.now_ns() > deadline:
                raise refused(
                    f"lockd at {self.lockd} does not answer: it stands still, it waits for other replicas (--rebuild), "
                    "or it is something else; look into its lockd.log, or set --lockd"
                )
            self.step(deadline)

    def listen(self) -> None:
        """Carry out one-shot commands that come over the socket in the directory. Raises CommandError."""
        try:
            self._desk = OrderDesk(listen(self._directory), self._poller, self.submit)
        except OSError as error:
            raise refused(f"{self._directory} cannot hold a socket ({error.strerror})") from None

    def submit(
        self,
        verb: OpVerb,
        file: str,
        done: Callable[[Result], None],
        *,
        text: str = "",
        of: int = 0,
        wait_ns: int,
        tail_bytes: int | None = None,
        retry: tuple[str, ...] = (),
        begin: Callable[[str], bool] | None = None,
    ) -> None:
        """Ask for an op and call `done` at its end; a read keeps its last `tail_bytes`, or all.

        When the op has its lock, `begin` is called with its id. If it returns False, the op fails.
        """
        self._submitted += 1
        self._wanted[self._submitted] = _Wanted(begin, done, tail_bytes, verb, self.now_ns())
        self._feed(Submit(self._submitted, verb, file, text, of, wait_ns, retry))

    def step(self, until_ns: int | None = None) -> None:
        """Wait for something to do, until `until_ns` at most, and do it. Raises CommandError."""
        due_ns = self.core.deadline_ns()
        now_ns = self.now_ns()
        due = due_ns is not None and due_ns <= now_ns
        wait_ns = _WAIT_NS_MAX if due_ns is None else min(_WAIT_NS_MAX, due_ns - now_ns)
        if until_ns is not None and until_ns - now_ns < wait_ns:
            wait_ns = until_ns - now_ns
        ready = self._poller.poll(wait_ns // 1_000_000 + 1 if wait_ns > 0 else 0)
        at_desk = False
        for source, _ in ready:
            if source is self._lockd:
                self._from_lockd(receive(self._lockd, routed=False))
            elif source is self._fan:
                self._from_fan(receive(self._fan))
            elif source is self._listener:
                self._from_listener(receive(self._listener))
            elif source is self._link:
                for up in states(self._link):
                    self._met_lockd = True
                    self._feed(LockdConnected() if up else LockdDisconnected())
            else:
                at_desk = True
        if at_desk and self._desk is not None:
            self._desk.serve(dict(ready))
        if due:
            if self._events.is_deleted:
                self._broken = f"{self._events.path} was deleted while this client ran"
                raise CommandError(EXIT_CRASHED, f"{self._broken}; start it again, as a new replica")
            self._feed(Timer())
        if self._join_refused:
            raise refused(f"lockd refused {self._identity.name}: {self._join_refused}")

    def leave(self) -> None:
        """End the session in good order."""
        self._feed(Leave(self._broken))

    def close(self) -> None:
        """Close everything; what was sent still leaves."""
        if self._strangers.total:
            self._diagnostics.note(f"{self._strangers.total} malformed messages were dropped")
        if self._desk is not None:
            self._desk.close()
            (self._directory / "socket").unlink(missing_ok=True)
        self._lockd.disable_monitor()
        self._context.destroy(linger=500)
        try:
            self._journal.close()
        except FatalStorageError as error:
            raise CommandError(EXIT_CRASHED, f"{error}; mend that, then start again") from None
        else:
            if not self._broken:
                self._diagnostics.note("ended in order")
        finally:
            self._diagnostics.close()

    # Messages in

    def _from_lockd(self, frames: list[bytes]) -> None:
        try:
            message: FromLockd = decode(frames[-1], FromLockd)  # type: ignore[arg-type]
        except WireError as error:
            self._malformed(b"lockd", error)
            return
        self._feed(FromDaemon(message))

    def _from_fan(self, frames: list[bytes]) -> None:
        try:
            message: FromReplica = decode(frames[-1], FromReplica)  # type: ignore[arg-type]
        except WireError as error:
            self._malformed(frames[0], error)
            return
        if isinstance(message, Fenced):
            self.figures.pushes_fenced["ours"] += 1
        elif isinstance(message, Fetched):
            self.figures.bytes_taken_in += len(frames[-1])
        self._feed(PeerAnswer(frames[0][:16].decode("ascii", "replace"), message))

    def _from_listener(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 2:
                raise WireError(f"it has {len(frames) - 1} frames, not one")
            message: ToReplica = decode(frames[1], ToReplica)  # type: ignore[arg-type]
        except WireError as error:
            self._malformed(frames[0], error)
            return
        if isinstance(message, Push):
            self.figures.bytes_taken_in += len(frames[1])
        self._feed(FromPeer(frames[0], message))

    def _malformed(self, sender: bytes, error: WireError) -> None:
        self.figures.malformed += 1
        if self._strangers.count(sender):
            self._diagnostics.note(f"dropped a message of {sender!r}: {error}")

    # Effects out

    def _feed(self, event: Event) -> None:
        try:
            effects = self.core.handle(event, self.now_ns())
            while effects:
                effects = self._do(effects)
        except (StorageError, FatalStorageError) as error:
            self._broken = str(error)
            self._diagnostics.note(f"{error}; this client ends")
            raise CommandError(EXIT_CRASHED, f"{error}; mend that, then start again") from None

    def _do(self, effects: list[Effect]) -> list[Effect]:
        """Do the effects in order; return what the core asks for after a Persist or Flush, the last of them."""
        log_size, refusal = self._events.size, ""
        for effect in effects:
            match effect:
                case SendLockd():
                    self._send(self._lockd, encode(effect.message))
                case SendReplica():
                    route = self._routes.get(effect.replica)
                    if route is not None and self._fan is not None:
                        frame = self._encode_once(effect.message)
                        if isinstance(effect.message, Push):
                            self.figures.pushes_sent += 1
                            self.figures.bytes_pushed += len(frame)
                        self._send(self._fan, route, frame)
                case Answer():
                    if isinstance(effect.message, Ack):
                        self.figures.pushes_taken_in += 1
                    elif isinstance(effect.message, Fenced):
                        self.figures.pushes_fenced["theirs"] += 1
                    self._send(self._listener, effect.route, encode(effect.message))
                case Log():
                    if not refusal:
                        line = format_event(effect.time_us, effect.host, effect.clock, effect.verb, effect.facts)
                        refusal = self._append(line)
                case Persist(ticket):
                    assert effect is effects[-1], "what comes behind would be lost"
                    return self._persist(effect, ticket, log_size, refusal)
                case Flush(ticket):
                    assert effect is effects[-1], "what comes behind would be lost"
                    if refusal:
                        return self._take_back(ticket, log_size, refusal)
                    return self.core.handle(Persisted(ticket), self.now_ns())
                case Begin(op, id_):
                    refusal = refusal or self._begin(op, id_)
                case ReadFile(op, file):
                    self._read(op, file)
                case Finished(op):
                    self._finish(op, effect)
                case Connect(member):
                    self._connect(member.replica, member.endpoint, member.incarnation)
                case Disconnect(replica):
                    self._disconnect(replica)
                case Remember(replica):
                    self._route = replica + self._identity.incarnation
                    self._remember(effect)
                case Reconnect():
                    self._lockd.disconnect(self.lockd)
                    self._lockd.connect(self.lockd)
                case Joined():
                    self._joined = True
                    if self._listener not in self._poller:
                        self._poller.register(self._listener, zmq.POLLIN)
                case JoinRefused(reason):
                    self._join_refused = reason
                    self._diagnostics.note(f"lockd refused {self._identity.name}: {reason}; this client ends")
                case Note(text):
                    self._diagnostics.note(text)
                case _:
                    assert_never(effect)
        if refusal:
            raise CommandError(EXIT_CRASHED, f"{refusal}, start again")
        return []

    def _send(self, target: zmq.Socket[bytes], *frames: bytes) -> None:
        try:
            send(target, *frames)
        except zmq.Again:
            self._diagnostics.note("a message was dropped: its receiver does not read what it is sent")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def _encode_once(self, message: ToReplica) -> bytes:
        """Encode a push once for all its receivers."""
        if self._last[0] is not message:
            if self.stall_ns and isinstance(message, Push) and message.records:
                time.sleep(self.stall_ns / 1e9)
            self._last = (message, encode(message))
        return self._last[1]

    def _append(self, line: str) -> str:
        """Append to the event log; return what speaks against it, or ""."""
        try:
            self._events.append(line)
            self.figures.log_lines += 1
        except OSError as error:
            return f"{self._events.path} cannot be written ({error.strerror}); make room"
        return ""

    def _persist(self, effect: Persist, ticket: int, log_size: int, refusal: str) -> list[Effect]:
        if not refusal:
            try:
                self._journal.write(effect)
            except StorageError as error:
                refusal = str(error)
        if refusal:
            return self._take_back(ticket, log_size, refusal)
        return self.core.handle(Persisted(ticket), self.now_ns())

    def _take_back(self, ticket: int, log_size: int, reason: str) -> list[Effect]:
        """Take the lines of what did not happen out of the event log: nobody has heard of them."""
        self._events.cut(log_size)
        return self.core.handle(PersistFailed(ticket, reason), self.now_ns())

    def _remember(self, us: Remember) -> None:
        """Keep who we are, and by which name and at which lockd: these have proved right just now."""
        try:
            self._journal.set_meta(
                {
                    "replica_id": us.replica,
                    "host": us.host,
                    "group": us.group,
                    "epoch": us.epoch,
                    "epoch_id": us.epoch_id,
                    "changes": us.changes,
                    "name": self._identity.name,
                    "lockd": self.lockd,
                }
            )
        except StorageError as error:
            if not self._joined:
                raise _cannot_start(error) from None
            self._diagnostics.note(f"{error}: what is new of lockd is not remembered")

    def _begin(self, op: int, id_: str) -> str:
        """Tell that an op begins; return "" if it is still wanted, else why it does not happen."""
        begin = self._wanted[op].begin
        return "" if begin is None or begin(id_) else "nobody waits for it any more"

    def _read(self, op: int, file: str) -> None:
        wanted = self._wanted[op]
        try:
            if wanted.tail_bytes is None:
                wanted.content = self._journal.read(file)
                wanted.length = len(wanted.content)
            else:
                wanted.length, wanted.content = self._journal.tail(file, wanted.tail_bytes)
        except StorageError as error:
            wanted.trouble = str(error)
        while self._journal.repairs:
            self._diagnostics.note(self._journal.repairs.pop(0))

    def _finish(self, op: int, finished: Finished) -> None:
        wanted = self._wanted.pop(op)
        if wanted.trouble and finished.outcome == "ok":
            finished = structs.replace(finished, outcome="failed", reason=wanted.trouble)
        figures, ended_ns = self.figures, self.now_ns()
        figures.ops[wanted.verb, finished.outcome] += 1
        figures.op_times[wanted.verb].add((ended_ns - wanted.began_ns) // 1000)
        wanted.done(Result(finished, wanted.length, wanted.content))

    def _connect(self, replica: str, endpoint: str, incarnation: str) -> None:
        self._disconnect(replica)
        if self._fan is None:
            self._fan = fan(self._context)
            self._poller.register(self._fan, zmq.POLLIN)
        self._connections += 1
        own, route = [f"{end}.{self._connections}".encode() for end in (self._route, replica + incarnation)]
        try:
            connect(self._fan, endpoint, own, route)
        except zmq.ZMQError as error:
            self._diagnostics.note(f"cannot connect to {replica} at {endpoint!r} ({error})")
            return
        self._routes[replica], self._endpoints[replica] = route, endpoint

    def _disconnect(self, replica: str) -> None:
        endpoint = self._endpoints.pop(replica, None)
        self._routes.pop(replica, None)
        if endpoint is not None and self._fan is not None:
            try:
                self._fan.disconnect(endpoint)
            except zmq.ZMQError as error:
                self._diagnostics.note(f"cannot disconnect from {endpoint} ({error})")


def _cannot_start(error: StorageError) -> CommandError:
    advice = ", or another --data" if ";" in str(error) else "; choose another --data, or mend the disk"
    return refused(f"{error}{advice}")


def _own_address(lockd: str) -> str:
    """Return this machine's address on the way to lockd."""
    if not lockd.startswith("tcp://"):
        return "127.0.0.1"
    host, _, port = lockd.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))
        address: str = probe.getsockname()[0]
        return address
