"""The command `client log`: event logs of any number of processes, merged. It reads files alone."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client.event_logs import EventLog, EventLogs, parse_head
from client.log_filters import OWN_VERBS, Filter, Relation, Wanted, filters_of, related, values_of, verb_of
from client.log_view import Colours, as_json, as_text, event_values
from client.merge import Head, Merge
from common.errors import EXIT_CRASHED, CommandError, refused, wrong_use
from common.names import is_op_id
from common.printing import printable

_POLL_S: Final = 0.05
"""How often logs that are followed are looked at: files have nothing to wait on that every file system has."""
_NEW_LOGS_S: Final = 0.25
PATIENCE_S: Final = 0.5
"""How long a line is waited for that others know of: it is in its log before they can, unless it is lost."""
_FLUSH_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Asked:
    """What `client log` is asked for: where, which lines, and how they are shown."""

    directories: Sequence[Path]
    wanted: Wanted
    causes: str = ""
    concurrent_with: str = ""
    follow: bool = False
    as_json: bool = False


class Complaints:
    """Lines that do not read: the first of each log is told on stderr when it comes, their number at the end."""

    def __init__(self) -> None:
        """Begin without any."""
        self.count = 0
        self._told: set[Path] = set()

    def complain(self, path: Path, number: int, problem: str) -> None:
        """Take in a line that is left out."""
        self.count += 1
        if path not in self._told:
            self._told.add(path)
            where = f"{path}:{number}" if number else str(path)
            warn(f"{where}: a line is left out: {problem}")

    def end(self) -> None:
        """Raise CommandError if there was one."""
        if self.count:
            lines = "1 line that does not read was" if self.count == 1 else f"{self.count} lines that do not read were"
            raise CommandError(EXIT_CRASHED, f"{lines} left out; see what stderr names, or ask scripts/check")


def log(asked: Asked) -> None:
    """Print the lines that are asked for, in causal order; returns at their end, or on SIGINT if it follows."""
    filters = filters_of(asked.wanted, time.time_ns() // 1000)
    complaints = Complaints()
    logs = EventLogs(asked.directories)
    found = find(logs, asked.directories, empty=asked.follow)
    asked_for: list[tuple[Relation, str]] = [("--causes", asked.causes), ("--concurrent-with", asked.concurrent_with)]
    relations = [(relation, id_) for relation, id_ in asked_for if id_]
    filters += [related(relation, find_op(relation, id_, found)) for relation, id_ in relations]
    printer = Printer(filters, complaints, as_json=asked.as_json)
    merge = Merge(live=asked.follow)
    for path in found:
        merge.add(EventLog(path, complaints.complain).head)
    try:
        if asked.follow:
            _follow(merge, logs, printer, complaints)
        else:
            printer.print(merge)
    except KeyboardInterrupt:
        if not asked.follow:
            raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unreadable(error) from None
    wanted = asked.wanted
    is_alone = not (relations or wanted.clients or wanted.files or wanted.since)
    if is_alone and is_op_id(wanted.op) and not printer.printed:
        raise wrong_use(f"--op {wanted.op}: no log here tells of this op; ids stand in the lines, as id=...")
    complaints.end()


def find(logs: EventLogs, directories: Sequence[Path], *, empty: bool = False) -> list[Path]:
    """Return the logs there are. Raises CommandError, also where there are none, unless there may be none yet."""
    try:
        found = logs.new()
    except FileNotFoundError as error:
        raise wrong_use(f"{error.filename}: no such directory") from None
    except NotADirectoryError as error:
        raise wrong_use(f"{error.filename}: it is no directory") from None
    except OSError as error:
        raise unreadable(error) from None
    if not found and not empty:
        names = ", ".join(map(str, directories))
        raise refused(f"{names}: no event log here; name data directories, or a run's, whose clients have one each")
    return found


def unreadable(error: OSError) -> CommandError:
    """Return the error for a log that cannot be read, or for a stdout that cannot be written."""
    if error.filename is None:
        return CommandError(EXIT_CRASHED, f"stdout cannot be written ({error.strerror})")
    return refused(f"{error.filename} cannot be read ({error.strerror})")


def find_op(option: str, id_: str, paths: Sequence[Path]) -> Head:
    """Return an op's own event. Raises CommandError where no log has it."""
    if not is_op_id(id_):
        raise wrong_use(f"{option} {id_!r}: an op's id reads like anna:7")
    sought = f" id={id_} ".encode()
    for path in paths:
        for _, line in EventLog(path, lambda *_: None).lines():
            if sought in line and (head := _own_event(line, id_)):
                return head
    host = id_.partition(":")[0]
    raise wrong_use(f"{option} {id_}: no log here has the op's own event; is the log of {host} given?")


def _own_event(line: bytes, id_: str) -> Head | None:
    try:
        head = parse_head(line)
        if verb_of(head) in OWN_VERBS and values_of(head).get("id") == id_:
            return head
    except ValueError:
        pass  # it is told where the lines are shown
    return None


class Printer:
    """Writes the lines that pass all filters to stdout."""

    def __init__(self, filters: Sequence[Filter], complaints: Complaints, *, as_json: bool) -> None:
        """Colour them on a terminal, unless NO_COLOR is set."""
        self._filters = filters
        self._complaints = complaints
        self._as_json = as_json
        self._colours = colours()
        self._flushed = time.monotonic()
        self._warned = False
        self.printed = False

    def print(self, merge: Merge) -> None:
        """Print what the merge has to give."""
        out = sys.stdout.buffer
        for shown in self._shown(merge.events()):
            out.write(shown)
            self.printed = True
            # A filter may let little through: what has passed is not held back for what comes.
            if time.monotonic() > self._flushed + _FLUSH_S:
                self.flush()
        if merge.cyclic and not self._warned:
            self._warned = True
            warn("some clocks are each before the other, which cannot be: there the order is by time alone")

    def flush(self) -> None:
        """Hand over what was printed."""
        sys.stdout.buffer.flush()
        self._flushed = time.monotonic()

    def _shown(self, heads: Iterator[Head]) -> Iterator[bytes]:
        for head in heads:
            try:
                if not all(passes(head) for passes in self._filters):
                    continue
                shown = as_json(event_values(head)) if self._as_json else as_text(head, self._colours)
            except ValueError as error:
                self._complaints.complain(Path(f"a line of {head.host}, its event {head.count}"), 0, str(error))
                continue
            yield shown


def _follow(merge: Merge, logs: EventLogs, printer: Printer, complaints: Complaints) -> None:
    """Print on and on, as lines and logs come."""
    waits_since_s: float | None = None
    looked_s = time.monotonic()
    while True:
        printer.print(merge)
        printer.flush()
        now_s = time.monotonic()
        new: list[Path] = []
        if merge.missing or now_s > looked_s + _NEW_LOGS_S:
            looked_s = now_s
            new = logs.new()
            for path in new:
                merge.add(EventLog(path, complaints.complain).head)
        if not merge.missing:
            waits_since_s = None
        elif waits_since_s is None and merge.may_come:
            waits_since_s = now_s
        elif waits_since_s is None or now_s > waits_since_s + PATIENCE_S:
            waits_since_s = None
            if not new:
                merge.give_up()
            continue
        if not new:
            time.sleep(_POLL_S)


def colours() -> Colours | None:
    """Return colours where they are of use: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return None if plain else Colours()


def warn(text: str) -> None:
    """Tell something on stderr, in one line, and go on."""
    sys.stdout.buffer.flush()
    print(f"client: {printable(text)}", file=sys.stderr, flush=True)
