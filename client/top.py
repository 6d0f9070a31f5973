"""`client top`: what lockd knows, again and again, on a terminal or as lines.

It needs no session. A lockd that is silent, or starts anew, ends nothing: it says since when
there is no answer, and asks again as soon as there is a connection.
"""

import json
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final

import zmq

from client.inspecting import (
    LOCK_COLUMNS,
    MEMBER_COLUMNS,
    fault_lines,
    is_well,
    lock_rows,
    member_rows,
    rates,
    top_lines,
)
from client.inspecting_json import as_json
from client.reach import reach
from client.tables import fit, table_lines
from common.errors import EXIT_CRASHED, CommandError, refused
from common.messages import FromLockd, Inspect, Inspection, Message
from common.moments import SteadyClock
from common.printing import printable
from common.sockets import caller, connections, send, states
from common.stopping import Stop
from common.wire import WireError, decode, encode

_SILENCE_NS: Final = 1_000_000_000
"""After so long without an answer a request is sent again, and the reader is told."""
_FAULTS_SHOWN_MAX: Final = 5
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
"""The alternate screen, without a cursor: what stood on the terminal is there again afterwards."""
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_QUIT: Final = frozenset(b"qQ\x03")


class Onlooker:
    """Who looks on: what to say next, and what an answer says. It does no I/O.

    `seen` are the newest Inspection and the one before it, `trouble` why what came cannot be read.
    """

    def __init__(self, interval_ns: int, now_ns: int) -> None:
        """Begin without a connection; ask every `interval_ns` nanoseconds."""
        self._interval_ns = interval_ns
        self._request = 0
        self._next_ns = self._sent_ns = now_ns
        self._waiting = False
        self._connected = False
        self._silent_since_ns: int | None = now_ns
        self.seen: tuple[Inspection | None, Inspection | None] = (None, None)
        self.trouble = ""

    def connected(self, up: bool, now_ns: int) -> list[Message]:
        """Take in that the connection with lockd is up or down; return what to send."""
        self._connected = up
        if up:
            return self._ask(now_ns)
        if self._silent_since_ns is None:
            self._silent_since_ns = now_ns
        return []

    def silent_ns(self, now_ns: int) -> int:
        """Return for how long lockd has owed an answer, or has been out of reach."""
        return 0 if self._silent_since_ns is None else now_ns - self._silent_since_ns

    def deadline_ns(self) -> int:
        """Return when `tick` wants to be called."""
        return self._sent_ns + _SILENCE_NS if self._waiting or not self._connected else self._next_ns

    def tick(self, now_ns: int) -> list[Message]:
        """Return what is due to be sent."""
        if not self._connected:
            self._sent_ns = now_ns  # nothing can be sent: look again after a while
            return []
        return self._ask(now_ns) if now_ns >= self.deadline_ns() else []

    def take(self, message: FromLockd, now_ns: int) -> bool:
        """Take in a message; return whether there is a new Inspection to show."""
        if not isinstance(message, Inspection) or message.request != self._request:
            return False
        self._silent_since_ns, self._waiting, self.trouble = None, False, ""
        self._next_ns = max(self._next_ns + self._interval_ns, now_ns)
        self.seen = message, self.seen[0]
        return True

    def _ask(self, now_ns: int) -> list[Message]:
        self._waiting, self._sent_ns = True, now_ns
        if self._silent_since_ns is None:
            self._silent_since_ns = now_ns
        self._request += 1
        return [Inspect(self._request, "")]


def top(lockd: str, interval_ns: int, *, as_json_lines: bool) -> None:
    """Show what lockd knows every `interval_ns` nanoseconds until q, SIGINT or SIGTERM.

    Raises CommandError where it cannot begin.
    """
    reach(lockd)
    on_terminal = not as_json_lines and os.isatty(1) and os.environ.get("TERM") not in (None, "", "dumb")
    context = zmq.Context[zmq.Socket[bytes]]()
    try:
        with closing(Stop((signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))) as stop:
            signal.signal(signal.SIGWINCH, lambda *_: None)  # so that its wake-up descriptor tells of a resize
            clock = SteadyClock()
            onlooker = Onlooker(interval_ns, clock.now_ns())
            socket = caller(context, os.urandom(8).hex().encode())
            link = connections(socket)
            socket.connect(lockd)
            with _screen() if on_terminal else _plain() as keys:
                show = _Screen(lockd) if on_terminal else _Lines(lockd, as_json_lines=as_json_lines)
                try:
                    _look(onlooker, socket, link, stop, keys, show, clock)
                except BrokenPipeError:
                    pass  # whoever read us has had enough
                except OSError as error:
                    raise CommandError(EXIT_CRASHED, f"stdout cannot be written ({error.strerror})") from None
            socket.disable_monitor()
            if stop.caught in (signal.SIGHUP, signal.SIGQUIT):
                raise SystemExit(128 + stop.caught)
    finally:
        context.destroy(linger=200)


def _look(
    onlooker: Onlooker,
    socket: "zmq.Socket[bytes]",
    link: "zmq.Socket[bytes]",
    stop: Stop,
    keys: int | None,
    show: "_Screen | _Lines",
    clock: SteadyClock,
) -> None:
    poller = zmq.Poller()
    for source in (link, socket, stop.descriptor, *(() if keys is None else (keys,))):
        poller.register(source, zmq.POLLIN)
    tell_ns = clock.now_ns() + _SILENCE_NS
    while stop.caught is None:
        now_ns = clock.now_ns()
        wait_ns = min(onlooker.deadline_ns(), tell_ns) - now_ns
        ready = dict(poller.poll(max(0, wait_ns // 1_000_000 + 1)))
        now_ns = clock.now_ns()
        to_send: list[Message] = []
        fresh = resized = False
        if link in ready:
            for up in states(link):
                to_send = onlooker.connected(up, now_ns)
        if socket in ready:
            try:
                message: FromLockd = decode(socket.recv(), FromLockd)  # type: ignore[arg-type]
            except WireError as error:
                onlooker.trouble = f"what listens there is no lockd of this version: {error}"
            else:
                fresh = onlooker.take(message, now_ns)
        if stop.descriptor in ready:
            os.read(stop.descriptor, 64)
            resized = True
        if keys is not None and keys in ready:
            pressed = os.read(keys, 64)
            if not pressed or _QUIT.intersection(pressed):
                return
        to_send += onlooker.tick(now_ns)
        for request in to_send:
            with suppress(zmq.Again):  # it is asked again after the silence
                send(socket, encode(request))
        if onlooker.trouble and onlooker.seen[0] is None:
            raise refused(onlooker.trouble)
        silent_ns = onlooker.silent_ns(now_ns)
        if fresh or resized or now_ns >= tell_ns:
            tell_ns = now_ns + _SILENCE_NS - silent_ns % _SILENCE_NS  # with each whole second of silence
            if fresh or resized or silent_ns >= _SILENCE_NS or onlooker.trouble:
                show.frame(onlooker, silent_ns, fresh=fresh)


class _Lines:
    """Frames where stdout is no terminal: plain text, or a line of JSON each."""

    def __init__(self, lockd: str, *, as_json_lines: bool) -> None:
        self._lockd, self._as_json = lockd, as_json_lines

    def frame(self, onlooker: Onlooker, silent_ns: int, *, fresh: bool) -> None:
        now, before = onlooker.seen
        if fresh and now is not None:
            if self._as_json:
                self._write(json.dumps(as_json(now, before)))
            else:
                self._write("\n".join([*frame_lines(now, before, None, None), ""]))
        elif line := _trouble(onlooker, silent_ns, self._lockd):
            self._write(json.dumps({"trouble": line}) if self._as_json else line)

    def _write(self, text: str) -> None:
        _write_all(f"{text}\n".encode("utf-8", "replace"))


class _Screen:
    """Frames on a terminal, each in the place of the one before."""

    def __init__(self, lockd: str) -> None:
        self._lockd = lockd

    def frame(self, onlooker: Onlooker, silent_ns: int, *, fresh: bool) -> None:
        size = shutil.get_terminal_size()
        width, height = max(20, size.columns), max(4, size.lines)
        now, before = onlooker.seen
        trouble = _trouble(onlooker, silent_ns, self._lockd)
        head = [f"\x1b[7m{fit(trouble or f'lockstep at {printable(self._lockd)}; q ends', width)}\x1b[0m"]
        lines = head + (frame_lines(now, before, width, height - 1) if now is not None else [])
        # Each line clears what is left of the one before it; the last has no line break, or the screen would scroll.
        _write_all(("\x1b[H" + "\x1b[K\r\n".join(lines[:height]) + "\x1b[K\x1b[J").encode("utf-8", "replace"))


def _trouble(onlooker: Onlooker, silent_ns: int, lockd: str) -> str:
    if onlooker.trouble:
        return printable(onlooker.trouble)
    if silent_ns >= _SILENCE_NS:
        return f"lockd at {printable(lockd)} does not answer since {silent_ns // 1_000_000_000} s"
    return ""


def frame_lines(now: Inspection, before: Inspection | None, width: int | None, height: int | None) -> list[str]:
    """Return the lines of what is known, not more than `height`: members and locks share what is left."""
    head = [fit(line, width) for line in top_lines(now, rates(now, before))]
    faults = [fit(line, width) for line in fault_lines(now, _FAULTS_SHOWN_MAX)]
    members, locks = member_rows(now), lock_rows(now)
    styled = width is not None
    for_members = for_locks = None
    if height is not None:
        if height < 16:
            faults = faults[len(faults) - max(0, height - 10) :] if height > 10 else []
        left = max(4, height - len(head) - len(faults) - 3)
        for_members = min(len(members) + 1, max(2, left - min(len(locks) + 1, left // 2)))
        for_locks = max(2, left - for_members)
        if len(members) >= for_members:
            members.sort(key=is_well)  # who is cut off is well
    lines = [
        *head,
        "",
        *table_lines(MEMBER_COLUMNS, members, width, styled=styled, height=for_members),
        "",
        *table_lines(LOCK_COLUMNS, locks, width, styled=styled, height=for_locks),
    ]
    return [*lines, "", *faults] if faults else lines


@contextmanager
def _plain() -> Iterator[int | None]:
    yield None


@contextmanager
def _screen() -> Iterator[int | None]:
    """Take the terminal: the alternate screen, and keys as they are pressed; give it back in any case."""
    keys = 0 if os.isatty(0) else None
    before = termios.tcgetattr(0) if keys is not None else None
    try:
        if keys is not None:
            tty.setcbreak(keys)
            # Ctrl-Z would stop us with the terminal as it is now; Ctrl-C comes as a key, too.
            attributes = termios.tcgetattr(keys)
            attributes[3] &= ~termios.ISIG
            termios.tcsetattr(keys, termios.TCSANOW, attributes)
        _write_all(_ENTER.encode())
        yield keys
    finally:
        try:
            _write_all(_LEAVE.encode())
            if before is not None:
                termios.tcsetattr(0, termios.TCSADRAIN, before)
        except (OSError, termios.error):
            pass  # the terminal has gone


def _write_all(data: bytes) -> None:
    sys.stdout.flush()
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            select.select([], [1], [])
